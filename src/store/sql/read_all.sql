/* events.read_all */
-- $1 after, $2 rows, $3 most bytes of content: the new events of all feeds, for a process's tail.
select head, oldest, version, session_key, feed_key, message_seq, profile_key, type, reason,
       created_at, message_type, content_type, id, id_text, content
from (
    select h.head, h.oldest, p.*, m.created_at, m.type as message_type, m.content_type, m.id, m.id_text, m.content,
           coalesce(sum(octet_length(m.content)) over (order by p.version rows between unbounded preceding and 1 preceding), 0) as bytes_before
    from (select greatest(coalesce((select max(version) from events), 0), oldest_version - 1) as head, oldest_version as oldest from store) h
    left join lateral (
        select version, session_key, feed_key, message_seq, profile_key, type, reason from events
        where version > $1
        order by version limit $2
    ) p on true
    left join messages m on m.session_key = p.session_key and m.seq = p.message_seq and p.type = 1
) page
where bytes_before < $3
order by version
