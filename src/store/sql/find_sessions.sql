/* sessions.find */
-- $1 session ids. One row at least, which names the newest version.
select h.head, s.*
from (
    select greatest(coalesce((select max(version) from events), 0), oldest_version - 1) as head from store
) h
left join lateral (
    select s.session_id, s.session_key, s.revision, s.status, s.owner_key, f.feed_id as owner_id, s.gateway_key,
           s.assigned_version, s.last_op, s.last_op_by, s.last_op_to, s.last_op_version,
           s.session_type, s.from_id, s.from_name, s.from_image,
           coalesce((select m.message_seq from events m where m.session_key = s.session_key and m.content is not null order by m.version desc limit 1), 0) as seq
    from unnest($1::text[]) wanted (session_id)
    join sessions s on s.session_id = wanted.session_id
    left join feeds f on f.feed_key = s.owner_key
) s on true
