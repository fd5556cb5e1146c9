/* events.read_before */
-- $1 feed, $2 before, $3 rows; the types wanted, else null: $4 0 (AddSession), $5 1 (Message), $6 2 (DelSession).
-- One range of events_by_feed for each type, merged: it stops after $3 rows. (A type that is null matches
-- nothing, and PostgreSQL sees so before it looks.) What a type has nothing to tell in is null, and so is the
-- type that most events have, 1. says is 2 for an agent's message, and 1 more for an image.
-- The first row is no event: it names the oldest version kept, and the history, of this very snapshot. The newest, which
-- a walk back through history does not need to know, would cost a look into every partition.
select null::bigint as version, oldest_version as session_key, null as created_at,
       null as feed_key, null as message_seq, null as profile_key, null as type, null as reason,
       null as says, history as id, null as id_text, null as content
from store
union all
(
    select * from (
        (select version, session_key, null::timestamptz, null::integer, message_seq, profile_key, type, null::smallint, null::smallint, null::uuid, null::text, null::text from events
         where feed_key = $1 and type = $4 and version < $2 order by version desc limit $3)
        union all
        (select version, session_key, created_at, null, null, profile_key, null, null, message_type + message_type + content_type, id, id_text, content from events
         where feed_key = $1 and type = $5 and version < $2 order by version desc limit $3)
        union all
        (select version, session_key, null, null, null, profile_key, type, reason, null, null, null, null from events
         where feed_key = $1 and type = $6 and version < $2 order by version desc limit $3)
    ) lanes (version)
    order by version desc limit $3
)
