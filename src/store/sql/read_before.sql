/* events.read_before */
-- $1 feed, $2 before, $3 rows, $4 AddSession?, $5 Message?, $6 DelSession?
-- One range of events_by_feed for each type, merged: it stops after $3 rows.
-- The first row is no event: it names the newest version and the oldest kept, of this very snapshot.
select greatest(coalesce((select max(version) from events), 0), oldest_version - 1) as version, oldest_version as session_key, null as created_at,
       null as feed_key, null as message_seq, null as profile_key, null as type, null as reason,
       null as message_type, null as content_type, null as id, null as id_text, null as content
from store
union all
(
    select * from (
        (select version, session_key, created_at, feed_key, message_seq, profile_key, type, reason, message_type, content_type, id, id_text, content from events
         where feed_key = $1 and type = 0 and version < $2 and $4 order by version desc limit $3)
        union all
        (select version, session_key, created_at, feed_key, message_seq, profile_key, type, reason, message_type, content_type, id, id_text, content from events
         where feed_key = $1 and type = 1 and version < $2 and $5 order by version desc limit $3)
        union all
        (select version, session_key, created_at, feed_key, message_seq, profile_key, type, reason, message_type, content_type, id, id_text, content from events
         where feed_key = $1 and type = 2 and version < $2 and $6 order by version desc limit $3)
    ) lanes
    order by version desc limit $3
)
