/* messages.find_kept */
-- $1 Ids that are UUIDs, $2 other Ids, $3 versions that Ids may be made of. `version` is 0 where nobody was
-- told, `kept_as` never is.
select e.session_key, e.author_key, case when e.feed_key = 0 then 0 else e.version end as version, e.version as kept_as,
       e.message_type, e.created_at, e.content_type, e.id, e.id_text, e.content
from unnest($1::uuid[]) wanted (id)
join events e on e.id = wanted.id
union all
select e.session_key, e.author_key, case when e.feed_key = 0 then 0 else e.version end as version, e.version as kept_as,
       e.message_type, e.created_at, e.content_type, e.id, e.id_text, e.content
from unnest($2::text[]) wanted (id_text)
join events e on e.id_text = wanted.id_text
union all
select e.session_key, e.author_key, case when e.feed_key = 0 then 0 else e.version end as version, e.version as kept_as,
       e.message_type, e.created_at, e.content_type, e.id, e.id_text, e.content
from unnest($3::bigint[]) wanted (version)
cross join lateral (
    select * from events where version >= wanted.version and version <= wanted.version order by version limit 1
) e
where e.id is null and e.id_text is null and e.content is not null
