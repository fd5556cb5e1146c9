/* erasures.find_erased */
-- $1 sessions, $2 Ids that are UUIDs, $3 other Ids: those of erased messages.
select m.id, m.id_text
from (select session_key, max(through_seq) as through_seq from erasures where session_key = any ($1) group by session_key) e
join messages m on m.session_key = e.session_key and m.seq <= e.through_seq
where m.id = any ($2) or m.id_text = any ($3)
