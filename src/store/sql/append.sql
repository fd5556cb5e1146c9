/* appends.finish */
-- $1..$9 messages, $10 time, $11..$17 events, $18 the new head. All of a batch in one statement: every
-- round trip under append_lock keeps the other replicas waiting.
with kept as (
    insert into messages (session_key, created_at, version, seq, author_key, type, content_type, id, id_text, content)
    select session_key, $10, version, seq, author_key, type, content_type, id, id_text, content
    from unnest($1::bigint[], $2::bigint[], $3::int[], $4::int[], $5::smallint[], $6::smallint[], $7::uuid[], $8::text[], $9::text[])
        m (session_key, version, seq, author_key, type, content_type, id, id_text, content)
), told as (
    insert into events (version, created_at, session_key, feed_key, message_seq, profile_key, type, reason)
    select version, $10, session_key, feed_key, message_seq, profile_key, type, reason
    from unnest($11::bigint[], $12::bigint[], $13::int[], $14::int[], $15::int[], $16::smallint[], $17::smallint[])
        e (version, session_key, feed_key, message_seq, profile_key, type, reason)
)
select pg_notify('deskfeed', $18)
