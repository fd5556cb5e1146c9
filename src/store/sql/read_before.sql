/* events.read_before */
-- $1 feed, $2 before, $3 rows, $4 AddSession?, $5 Message?, $6 DelSession?, $7 most bytes of content
-- One range of events_by_feed for each type, merged: it stops after $3 rows.
select head, oldest, version, created_at, session_key, feed_key, message_seq, profile_key, type, reason,
       message_type, content_type, id, id_text, content
from (
    select h.head, h.oldest, p.version, p.created_at, p.session_key, p.feed_key, p.message_seq, p.profile_key, p.type, p.reason,
           p.message_type, p.content_type, coalesce(p.id, m.id) as id, coalesce(p.id_text, m.id_text) as id_text,
           coalesce(p.content, m.content) as content,
           sum(octet_length(coalesce(p.content, m.content))) over (order by p.version desc rows between unbounded preceding and 1 preceding) as bytes_before
    from (select greatest(coalesce((select max(version) from events), 0), oldest_version - 1) as head, oldest_version as oldest from store) h
    left join lateral (
        select * from (
            (select version, created_at, session_key, feed_key, message_seq, profile_key, type, reason, message_type, content_type, id, id_text, content from events
             where feed_key = $1 and type = 0 and version < $2 and $4 order by version desc limit $3)
            union all
            (select version, created_at, session_key, feed_key, message_seq, profile_key, type, reason, message_type, content_type, id, id_text, content from events
             where feed_key = $1 and type = 1 and version < $2 and $5 order by version desc limit $3)
            union all
            (select version, created_at, session_key, feed_key, message_seq, profile_key, type, reason, message_type, content_type, id, id_text, content from events
             where feed_key = $1 and type = 2 and version < $2 and $6 order by version desc limit $3)
        ) lanes
        order by version desc limit $3
    ) p on true
    -- The second event of an agent's message holds no content. `offset 0` keeps this apart, so that
    -- it is not looked for where there is nothing to find.
    left join lateral (
        select m.id, m.id_text, m.content from messages m
        where p.type = 1 and p.content is null and m.session_key = p.session_key and m.seq = p.message_seq
        offset 0
    ) m on true
) page
where bytes_before is null or bytes_before < $7
order by version desc
