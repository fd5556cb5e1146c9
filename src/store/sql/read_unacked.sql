/* events.read_unacked */
-- $1 feed, $2 ignored (0), $3 rows, $4 AddSession?, $5 Message?, $6 DelSession?, $7 most bytes of content
-- What is not acknowledged lies in the gaps between the ranges of acks. For each type the gaps
-- are walked in order, one range of events_by_feed each; (gap_order, version) is version order,
-- because gaps do not overlap, and an incremental sort stops after $3 rows.
select head, oldest, version, session_key, feed_key, message_seq, profile_key, type, reason,
       created_at, message_type, content_type, id, id_text, content
from (
    select h.head, h.oldest, p.*, m.created_at, m.type as message_type, m.content_type, m.id, m.id_text, m.content,
           coalesce(sum(octet_length(m.content)) over (order by p.version rows between unbounded preceding and 1 preceding), 0) as bytes_before
    from (select greatest(coalesce((select max(version) from events), 0), oldest_version - 1) as head, oldest_version as oldest from store) h
    left join lateral (
        select version, session_key, feed_key, message_seq, profile_key, type, reason
        from (values (0::smallint, $4::boolean), (1::smallint, $5::boolean), (2::smallint, $6::boolean)) lanes (lane, wanted)
        cross join lateral (
            select e.*
            from (select first_version as gap_order, last_version as gap_after,
                         lead(first_version, 1, 9223372036854775807) over (order by first_version) as gap_before
                  from acks where feed_key = $1 and acks.type = lane and last_version >= $2
                  order by first_version) gaps
            cross join lateral (
                select version, session_key, feed_key, message_seq, profile_key, type, reason from events
                where feed_key = $1 and events.type = lane and version > gap_after and version < gap_before
                order by version limit $3
            ) e
            order by gap_order, version
            limit $3
        ) lane_events
        where wanted
        order by version limit $3
    ) p on true
    left join messages m on m.session_key = p.session_key and m.seq = p.message_seq and p.type = 1
) page
where bytes_before < $7
order by version
