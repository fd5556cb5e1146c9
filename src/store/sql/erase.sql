/* erasures.erase */
-- $1 sessions (each once), $2 after which version of each, $3 through which, $4 what was asked for, $5 its
-- id, $6 the Content of an erased image. Run under append_lock, which puts erasures in order.
-- One statement: what is blank and the record of it are one.
with pieces as (
    select session_key, after_version, through_version, position
    from unnest($1::bigint[], $2::bigint[], $3::bigint[]) with ordinality p (session_key, after_version, through_version, position)
), blanked as (
    update erasable e
    set content = case e.content_type when 1 then $6::text else '' end
    from pieces p
    where e.session_key = p.session_key and e.version > p.after_version and e.version <= p.through_version
    returning e.session_key
), unnamed as (
    update sessions s
    set from_name = null, from_image = null
    from pieces p
    where s.session_key = p.session_key
), counted as (
    select session_key, count(*) as messages from blanked group by session_key
), recorded as (
    insert into erasures (erasure, session_key, through_version, messages, asked, asked_id)
    select (select coalesce(max(erasure), 0) from erasures) + p.position, p.session_key, p.through_version,
           coalesce(c.messages, 0), $4::smallint, $5::text
    from pieces p
    left join counted c using (session_key)
    returning messages
)
select coalesce(sum(messages), 0)::bigint from recorded
