/* events.read_unacked */
-- $1 feed, $2 ignored (0), $3 rows; the types wanted, else null: $4 0 (AddSession), $5 1 (Message), $6 2 (DelSession).
-- What is not acknowledged lies in the gaps between the ranges of acks. For each type the gaps
-- are walked in order, one range of events_by_feed each; (gap_order, version) is version order,
-- because gaps do not overlap, and an incremental sort stops after $3 rows.
-- The first row is no event: it names the newest version the oldest kept, and the history, of this very snapshot.
select greatest(coalesce((select max(version) from events), 0), oldest_version - 1) as version, oldest_version as session_key, null as created_at,
       null as feed_key, null as message_seq, null as profile_key, null as type, null as reason,
       null as says, history as id, null as id_text, null as content
from store
union all
(
    select version, session_key, created_at, null, message_seq, profile_key, type, reason, message_type + message_type + content_type, id, id_text, content
    from (values ($4::smallint), ($5::smallint), ($6::smallint)) lanes (lane)
    cross join lateral (
        select e.*
        from (select first_version as gap_order, last_version as gap_after,
                     lead(first_version, 1, 9223372036854775807) over (order by first_version) as gap_before
              from acks where feed_key = $1 and acks.type = lane and last_version >= $2
              order by first_version) gaps
        cross join lateral (
            select * from events
            where feed_key = $1 and events.type = lane and version > gap_after and version < gap_before
            order by version limit $3
        ) e
        order by gap_order, version
        limit $3
    ) lane_events
    order by version limit $3
)
