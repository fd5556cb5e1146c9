/* rights.excess */
-- $1 role: what it may do to whole tables of the schema, but for reading.
select c.relname::text, privilege
from pg_class c
cross join unnest(array['insert', 'update', 'delete', 'truncate']) privilege
where c.relnamespace = (select relnamespace from pg_class where oid = to_regclass('_sqlx_migrations'))
  and c.relkind in ('r', 'p', 'v')
  and has_table_privilege($1::text, c.oid, privilege)
order by 1, 2
