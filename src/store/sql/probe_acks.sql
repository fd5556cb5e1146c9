/* acks.probe */
-- $1 feeds, $2 types, $3 first versions, $4 last versions: the events there are in each range,
-- and the ones before and after it. Four index probes a range.
select *
from (
    select a.feed_key, a.type,
           (select e.version from events e where e.feed_key = a.feed_key and e.type = a.type and e.version >= a.first_version and e.version <= a.last_version
            order by e.version limit 1) as first,
           (select e.version from events e where e.feed_key = a.feed_key and e.type = a.type and e.version >= a.first_version and e.version <= a.last_version
            order by e.version desc limit 1) as last,
           (select e.version from events e where e.feed_key = a.feed_key and e.type = a.type and e.version < a.first_version
            order by e.version desc limit 1) as before,
           (select e.version from events e where e.feed_key = a.feed_key and e.type = a.type and e.version > a.last_version
            order by e.version limit 1) as after
    from unnest($1::int[], $2::smallint[], $3::bigint[], $4::bigint[]) a (feed_key, type, first_version, last_version)
) probed
where first is not null
