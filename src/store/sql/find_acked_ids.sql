/* acks.find_ids */
-- $1 positions, $2 feeds, $3 Ids that are UUIDs, $4 other Ids, $5 versions that Ids may be made of.
-- A message's Id names the event that brought it to this feed: its own Message event (an agent's
-- message has a second one, in the gateway's feed, with the next version), and an AddSession
-- whose last message it was.
with named as (
    select a.position, a.feed_key, m.session_key, m.message_seq, m.version
    from unnest($1::int[], $2::int[], $3::uuid[], $4::text[]) a (position, feed_key, id, id_text)
    join events m on m.id = a.id
    union all
    select a.position, a.feed_key, m.session_key, m.message_seq, m.version
    from unnest($1::int[], $2::int[], $3::uuid[], $4::text[]) a (position, feed_key, id, id_text)
    join events m on m.id_text = a.id_text
    union all
    select a.position, a.feed_key, m.session_key, m.message_seq, m.version
    from unnest($1::int[], $2::int[], $3::uuid[], $5::bigint[]) a (position, feed_key, id, version)
    cross join lateral (
        select * from events where version >= a.version and version <= a.version order by version limit 1
    ) m
    where m.id is null and m.id_text is null and m.content is not null and made_message_id(m.version, m.created_at) = a.id
)
select n.position, e.type, e.version
from named n
cross join lateral (select * from events e where e.version >= n.version and e.version <= n.version + 1 order by e.version limit 2) e
where e.feed_key = n.feed_key and e.type = 1 and e.session_key = n.session_key and e.message_seq = n.message_seq
union all
select n.position, e.type, e.version
from named n
cross join lateral (
    select * from events e
    where e.session_key = n.session_key and e.message_seq = n.message_seq and e.type = 0 and e.version > n.version
    offset 0
) e
where e.feed_key = n.feed_key
