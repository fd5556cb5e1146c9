/* sessions.list */
-- $1 before, $2 rows, $3 statuses, $4 whose (not used by admins): a range of sessions_by_gateway for each status.
select s.session_id, s.session_type, s.from_id, s.from_name, s.from_image, s.status, s.opened_at, s.closed_at,
       f.feed_id as owner_id, p.name as owner_name,
       m.version, m.message_type, m.created_at, m.content_type, m.id, m.id_text, m.content
from (
    select s.* from unnest($3::smallint[]) wanted (status)
    cross join lateral (
        select s.* from sessions s
        where s.status = wanted.status and s.gateway_key = $4 and s.session_key < $1
        order by s.session_key desc limit $2
    ) s
    order by s.session_key desc limit $2
) s
left join feeds f on f.feed_key = s.owner_key
left join agents a on a.feed_key = s.owner_key
left join profiles p on p.profile_key = a.profile_key
left join lateral (select * from events m where m.session_key = s.session_key and m.content is not null order by m.version desc limit 1) m on true
where $4::int is not null
order by s.session_key desc
