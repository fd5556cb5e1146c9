/* acks.near */
-- $1 feeds, $2 types, $3 first versions, $4 last versions: the stored ranges within each span,
-- the one before and the one after it.
select s.feed_key, s.type, r.first_version, r.last_version
from unnest($1::int[], $2::smallint[], $3::bigint[], $4::bigint[]) s (feed_key, type, first_version, last_version)
cross join lateral (
    (select a.first_version, a.last_version from acks a
     where a.feed_key = s.feed_key and a.type = s.type and a.first_version <= s.first_version
     order by a.first_version desc limit 1)
    union all
    (select a.first_version, a.last_version from acks a
     where a.feed_key = s.feed_key and a.type = s.type and a.first_version > s.first_version and a.first_version <= s.last_version)
    union all
    (select a.first_version, a.last_version from acks a
     where a.feed_key = s.feed_key and a.type = s.type and a.first_version > s.last_version
     order by a.first_version limit 1)
) r
