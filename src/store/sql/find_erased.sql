/* erasures.find_erased */
-- $1 sessions, $2 Ids that are UUIDs, $3 other Ids, $4 versions that Ids may be made of: those of erased messages.
select e.id, e.id_text, e.version, e.created_at
from (
    select session_key, max(through_version) as through_version from erasures where session_key = any ($1) group by session_key
) s
join events e on e.session_key = s.session_key and e.version <= s.through_version and e.content is not null
where e.id = any ($2) or e.id_text = any ($3) or (e.version = any ($4) and e.id is null and e.id_text is null)
