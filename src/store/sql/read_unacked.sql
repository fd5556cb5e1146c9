/* events.read_unacked */
-- $1 feed, $2 ignored (0), $3 rows, $4 AddSession?, $5 Message?, $6 DelSession?
-- What is not acknowledged lies in the gaps between the ranges of acks. For each type the gaps
-- are walked in order, one range of events_by_feed each; (gap_order, version) is version order,
-- because gaps do not overlap, and an incremental sort stops after $3 rows.
-- The first row is no event: it names the newest version and the oldest kept, of this very snapshot.
select greatest(coalesce((select max(version) from events), 0), oldest_version - 1) as version, oldest_version as session_key, null as created_at,
       null as feed_key, null as message_seq, null as profile_key, null as type, null as reason,
       null as message_type, null as content_type, null as id, null as id_text, null as content
from store
union all
(
    select p.version, p.session_key, p.created_at, p.feed_key, p.message_seq, p.profile_key, p.type, p.reason,
           p.message_type, p.content_type, coalesce(p.id, m.id), coalesce(p.id_text, m.id_text), coalesce(p.content, m.content)
    from (
        select version, session_key, created_at, feed_key, message_seq, profile_key, type, reason, message_type, content_type, id, id_text, content
        from (values (0::smallint, $4::boolean), (1::smallint, $5::boolean), (2::smallint, $6::boolean)) lanes (lane, wanted)
        cross join lateral (
            select e.*
            from (select first_version as gap_order, last_version as gap_after,
                         lead(first_version, 1, 9223372036854775807) over (order by first_version) as gap_before
                  from acks where feed_key = $1 and acks.type = lane and last_version >= $2
                  order by first_version) gaps
            cross join lateral (
                select version, session_key, created_at, feed_key, message_seq, profile_key, type, reason, message_type, content_type, id, id_text, content from events
                where feed_key = $1 and events.type = lane and version > gap_after and version < gap_before
                order by version limit $3
            ) e
            order by gap_order, version
            limit $3
        ) lane_events
        where wanted
        order by version limit $3
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
