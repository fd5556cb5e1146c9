/* events.first_events */
-- $1 versions of the events that hold what the next one, in another feed, tells too. In the order asked for.
select e.version, e.id, e.id_text, e.content
from unnest($1::bigint[]) wanted (version)
cross join lateral (
    select * from events where version >= wanted.version and version <= wanted.version order by version limit 1
) e
