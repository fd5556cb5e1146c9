/* events.read_all */
-- $1 after, $2 rows: the new events of all feeds, for a process's tail.
-- The first row is no event: it names the newest version (if that is not below $1: partitions before
-- it are not looked at) the oldest kept, and the history, of this very snapshot.
select greatest(coalesce((select max(version) from events where version >= $1), 0), oldest_version - 1) as version, oldest_version as session_key, null as created_at,
       null as feed_key, null as message_seq, null as profile_key, null as type, null as reason,
       null as says, history as id, null as id_text, null as content
from store
union all
(
    select version, session_key, created_at, feed_key, message_seq, profile_key, type, reason, message_type + message_type + content_type, id, id_text, content from events
    where version > $1
    order by version limit $2
)
