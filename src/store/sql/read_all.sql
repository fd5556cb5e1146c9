/* events.read_all */
-- $1 after, $2 rows: the new events of all feeds, for a process's tail.
-- The first row is no event: it names the newest version (if that is not below $1: partitions before
-- it are not looked at) and the oldest kept, of this very snapshot.
select greatest(coalesce((select max(version) from events where version >= $1), 0), oldest_version - 1) as version, oldest_version as session_key, null as created_at,
       null as feed_key, null as message_seq, null as profile_key, null as type, null as reason,
       null as message_type, null as content_type, null as id, null as id_text, null as content
from store
union all
(
    select p.version, p.session_key, p.created_at, p.feed_key, p.message_seq, p.profile_key, p.type, p.reason,
           p.message_type, p.content_type, coalesce(p.id, m.id), coalesce(p.id_text, m.id_text), coalesce(p.content, m.content)
    from (
        select version, session_key, created_at, feed_key, message_seq, profile_key, type, reason, message_type, content_type, id, id_text, content from events
        where version > $1
        order by version limit $2
    ) p
    -- The second event of an agent's message holds no content: the first one does, just before it.
    -- `limit` keeps this apart, so that it is not looked for where there is nothing to find; `order by`
    -- leaves the primary key alone to look with, also in a plan made while a partition was empty.
    left join lateral (
        select m.id, m.id_text, m.content from events m
        where p.type = 1 and p.content is null
          and m.version >= p.version - 1 and m.version < p.version and m.session_key = p.session_key and m.message_seq = p.message_seq
        order by m.version limit 1
    ) m on true
)
