/* rights.excess */
-- $1 role: what it may do to whole tables of the schema, but for reading; and the functions of the schema, but for
-- those of extensions, that it may call.
with schema as (
    select relnamespace as oid from pg_class where oid = to_regclass('_sqlx_migrations')
)
select c.relname::text, privilege
from pg_class c
join schema on c.relnamespace = schema.oid
cross join unnest(array['insert', 'update', 'delete', 'truncate']) privilege
where c.relkind in ('r', 'p', 'v') and has_table_privilege($1::text, c.oid, privilege)
union all
select p.proname::text, 'execute'
from pg_proc p
join schema on p.pronamespace = schema.oid
where has_function_privilege($1::text, p.oid, 'execute')
  and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
order by 1, 2
