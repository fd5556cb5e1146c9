/* retention.partitions */
-- Each partition of events, oldest first, with its size and its oldest and newest event. One that was
-- begun to be detached shows no events any more.
select to_regclass(quote_ident(p.name))::text, p.first_version, p.end_version, p.detaching,
       pg_total_relation_size(to_regclass(quote_ident(p.name))), o.version, o.created_at, n.version, n.created_at
from event_partitions() p
left join lateral (
    select version, created_at from events where version >= p.first_version and version < p.end_version order by version limit 1
) o on true
left join lateral (
    select version, created_at from events where version >= p.first_version and version < p.end_version order by version desc limit 1
) n on true
order by p.first_version
