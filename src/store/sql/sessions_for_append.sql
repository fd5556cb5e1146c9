/* sessions.for_append */
-- $1 session ids. Run under append_lock: what it gives stays true until the commit.
-- One row at least, which names the head, the count of changes to sessions and agents, and the time
-- of this append (never before the newest event's).
select h.head, h.changes, h.appended_at, s.*
from (
    select greatest(coalesce((select max(version) from events), 0), oldest_version - 1) as head,
           (select last_value from session_changes) as changes,
           greatest(clock_timestamp(), (select created_at from events order by version desc limit 1)) as appended_at
    from store
) h
left join lateral (
    select s.session_id, s.session_key, s.status, s.owner_key, f.feed_id as owner_id, a.profile_key, s.gateway_key,
           s.assigned_version, s.last_op, s.last_op_by, s.last_op_to, s.last_op_version,
           s.session_type, s.from_id, s.from_name, s.from_image,
           coalesce((select m.message_seq from events m where m.session_key = s.session_key and m.content is not null order by m.version desc limit 1), 0) as last_seq
    from unnest($1::text[]) wanted (session_id)
    join sessions s on s.session_id = wanted.session_id
    left join agents a on a.feed_key = s.owner_key
    left join feeds f on f.feed_key = s.owner_key
) s on true
