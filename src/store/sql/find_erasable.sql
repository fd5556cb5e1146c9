/* erasures.find */
-- $1 session, $2 customer, $3 gateway; null for any. Each session with what is not erased of it yet.
-- A session's key rises with its opening time.
select s.session_key, g.feed_id as gateway_id, e.erased_version, m.versions
from sessions s
left join feeds g on g.feed_key = s.gateway_key
cross join lateral (
    select coalesce(max(through_version), 0) as erased_version from erasures e where e.session_key = s.session_key
) e
cross join lateral (
    select coalesce(array_agg(m.version order by m.version), '{}') as versions
    from erasable m where m.session_key = s.session_key and m.version > e.erased_version
) m
where ($1::text is null or s.session_id = $1)
  and ($2::text is null or s.from_id = $2)
  and ($3::text is null or g.feed_id = $3)
order by s.session_key
