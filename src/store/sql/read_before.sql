/* events.read_before */
-- $1 feed, $2 before, $3 rows, $4 AddSession?, $5 Message?, $6 DelSession?, $7 most bytes of content
-- One range of events_by_feed for each type, merged: it stops after $3 rows.
select head, oldest, version, session_key, feed_key, message_seq, profile_key, type, reason,
       created_at, message_type, content_type, id, id_text, content
from (
    select h.head, h.oldest, p.*, m.created_at, m.type as message_type, m.content_type, m.id, m.id_text, m.content,
           coalesce(sum(octet_length(m.content)) over (order by p.version desc rows between unbounded preceding and 1 preceding), 0) as bytes_before
    from (select greatest(coalesce((select max(version) from events), 0), oldest_version - 1) as head, oldest_version as oldest from store) h
    left join lateral (
        select * from (
            (select version, session_key, feed_key, message_seq, profile_key, type, reason from events
             where feed_key = $1 and type = 0 and version < $2 and $4 order by version desc limit $3)
            union all
            (select version, session_key, feed_key, message_seq, profile_key, type, reason from events
             where feed_key = $1 and type = 1 and version < $2 and $5 order by version desc limit $3)
            union all
            (select version, session_key, feed_key, message_seq, profile_key, type, reason from events
             where feed_key = $1 and type = 2 and version < $2 and $6 order by version desc limit $3)
        ) lanes
        order by version desc limit $3
    ) p on true
    left join messages m on m.session_key = p.session_key and m.seq = p.message_seq and p.type = 1
) page
where bytes_before < $7
order by version desc
