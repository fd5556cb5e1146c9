/* retention.concerned */
-- $1 version: whom it concerns that the events before it go. Open sessions that were assigned before it,
-- closed ones whose last event lies before it, events before it that are not acknowledged, and their feeds.
select (select count(*) from sessions where status = 1 and assigned_version > 0 and assigned_version < $1),
       (select count(*) from sessions where status = 2 and last_op_version < $1),
       coalesce(sum(u.events), 0)::bigint,
       count(distinct gaps.feed_key) filter (where u.events > 0)
from (
    select feed_key, type, last_version as gap_after,
           lead(first_version, 1, 9223372036854775807) over (partition by feed_key, type order by first_version) as gap_before
    from acks
) gaps
cross join lateral (
    select count(*) as events from events e
    where e.feed_key = gaps.feed_key and e.type = gaps.type
      and e.version > gaps.gap_after and e.version < least(gaps.gap_before, $1)
) u
where gaps.gap_after < $1 - 1
