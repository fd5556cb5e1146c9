/* events.unacked */
-- The gaps between acknowledged ranges, each counted by an index-only range scan.
select coalesce(sum(unacked), 0)::bigint,
       (select extract(epoch from clock_timestamp() - created_at)::bigint from events where version >= min(oldest) order by version limit 1)
from (values (0::smallint), (1::smallint), (2::smallint)) lanes (lane)
cross join lateral (
    select last_version as gap_after,
           lead(first_version, 1, 9223372036854775807) over (order by first_version) as gap_before
    from acks where feed_key = $1 and acks.type = lane
) gaps
cross join lateral (
    select count(*) as unacked, min(version) as oldest from events
    where feed_key = $1 and events.type = lane and version > gap_after and version < gap_before
) e
