/* events.last_messages */
-- $1 positions in the page, $2 sessions, $3 versions of the events that brought them, $4 most messages
-- of each, $5 most bytes of content. Each is one range of messages_by_session, read backwards.
select position, version, message_type, created_at, content_type, id, id_text, content
from (
    select wanted.position, m.version, m.message_type, m.created_at, m.content_type, m.id, m.id_text, m.content,
           sum(octet_length(m.content)) over (order by wanted.position, m.version) - octet_length(m.content) as bytes_before
    from unnest($1::int[], $2::bigint[], $3::bigint[]) wanted (position, session_key, version)
    cross join lateral (
        select * from events m
        where m.session_key = wanted.session_key and m.content is not null and m.version < wanted.version
        order by m.version desc limit $4
    ) m
) listed
where bytes_before < $5 or position = 0
order by position, version
