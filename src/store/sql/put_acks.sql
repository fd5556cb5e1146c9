/* acks.put */
-- $1..$3 ranges to remove, $4..$7 ranges to write. No range is in both.
with removed as (
    delete from acks a
    using unnest($1::int[], $2::smallint[], $3::bigint[]) r (feed_key, type, first_version)
    where a.feed_key = r.feed_key and a.type = r.type and a.first_version = r.first_version
)
insert into acks (feed_key, type, first_version, last_version)
select feed_key, type, first_version, last_version
from unnest($4::int[], $5::smallint[], $6::bigint[], $7::bigint[]) p (feed_key, type, first_version, last_version)
on conflict on constraint acks_pkey do update set last_version = excluded.last_version
