/* rights.excess */
-- $1 role: powers that no service needs. Those of a superuser, or of the owner, include all others.
with role as (
    select * from pg_roles where rolname = $1
), schema as (
    select n.oid, n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = to_regclass('_sqlx_migrations')
)
select 'is a superuser' from role where rolsuper
union all
select 'may ' || power
from role, lateral (values (rolcreaterole, 'create roles'), (rolcreatedb, 'create databases'), (rolreplication, 'replicate'), (rolbypassrls, 'by-pass row security')) powers (has, power)
where has and not rolsuper
union all
select 'owns ' || string_agg(c.relname, ', ' order by c.relname)
from role, schema
join pg_class c on c.relnamespace = schema.oid and c.relkind in ('r', 'p') and not c.relispartition
where not rolsuper and pg_has_role(role.oid, c.relowner, 'usage')
having count(*) > 0
union all
select 'may create tables in schema ' || nspname from role, schema
where not rolsuper and has_schema_privilege(role.oid, schema.oid, 'create')
union all
select 'may create schemas in database ' || current_database() from role
where not rolsuper and has_database_privilege(role.oid, current_database(), 'create')
