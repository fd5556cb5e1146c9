/* events.last_messages */
-- $1 positions in the page, $2 sessions, $3 newest message of each, $4 most messages of each,
-- $5 most bytes of content. Numbers within a session have no gaps, so each is one index range.
select position, type, created_at, content_type, id, id_text, content
from (
    select wanted.position, m.seq, m.type, m.created_at, m.content_type, m.id, m.id_text, m.content,
           sum(octet_length(m.content)) over (order by wanted.position, m.seq) - octet_length(m.content) as bytes_before
    from unnest($1::int[], $2::bigint[], $3::int[]) wanted (position, session_key, last_seq)
    join messages m on m.session_key = wanted.session_key and m.seq > wanted.last_seq - $4 and m.seq <= wanted.last_seq
) listed
where bytes_before < $5 or position = 0
order by position, seq
