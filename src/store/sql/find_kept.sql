/* messages.find_kept */
-- $1 Ids that are UUIDs, $2 other Ids
select m.session_key, m.author_key, m.version, m.type, m.created_at, m.content_type, m.id, m.id_text, m.content
from unnest($1::uuid[]) wanted (id)
join messages m on m.id = wanted.id
union all
select m.session_key, m.author_key, m.version, m.type, m.created_at, m.content_type, m.id, m.id_text, m.content
from unnest($2::text[]) wanted (id_text)
join messages m on m.id_text = wanted.id_text
