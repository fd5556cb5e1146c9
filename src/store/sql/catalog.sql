/* catalog.read */
-- What the schema is made of, as (kind, name, definition). Read from the catalogs alone, which
-- everybody may read. Left out: what an extension brought, the table of applied migrations, tables
-- that were partitions of events (docs/dba.md, Retention), and the storage parameters, which are the
-- DBA's. The partitions of events are all alike, whatever their number: they appear as one, and what
-- is not in all of them says so.
with schema as (
    select relnamespace as oid from pg_class where oid = to_regclass('_sqlx_migrations')
), of_extensions as (
    select classid, objid from pg_depend where deptype = 'e'
), tables as (
    select c.* from pg_class c join schema on c.relnamespace = schema.oid
    where c.relkind in ('r', 'p', 'v', 'm', 'f') and not c.relispartition and c.relname <> '_sqlx_migrations'
      and not (c.relkind = 'r' and c.relname ~ '^events_[0-9]+$')
      and not exists (select from of_extensions e where e.classid = 'pg_class'::regclass and e.objid = c.oid)
), partitions as (
    select c.oid, c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = to_regclass('events') and not i.inhdetachpending
), of_partitions as (
    select p.relname, 'constraint' as kind, c.conname as name, pg_get_constraintdef(c.oid, true) as definition
    from partitions p join pg_constraint c on c.conrelid = p.oid and c.contype not in ('n', 't')
    union all
    select p.relname, 'index', c.relname, pg_get_indexdef(i.indexrelid, 0, true) || case when i.indisvalid and i.indisready then '' else ' INVALID' end
    from partitions p join pg_index i on i.indrelid = p.oid join pg_class c on c.oid = i.indexrelid
    union all
    select p.relname, 'trigger', g.tgname,
           pg_get_triggerdef(g.oid, true) || case g.tgenabled when 'O' then '' when 'A' then ' ALWAYS' when 'R' then ' REPLICA' else ' DISABLED' end
    from partitions p join pg_trigger g on g.tgrelid = p.oid and not g.tgisinternal
)
select case relkind when 'r' then 'table' when 'p' then 'partitioned table' when 'v' then 'view' when 'm' then 'materialized view' else 'foreign table' end as kind,
       relname::text as name,
       concat_ws(' ',
           case relpersistence when 'p' then 'logged' when 'u' then 'unlogged' else 'temporary' end,
           case when relrowsecurity then 'row security' end,
           pg_get_partkeydef(oid),
           -- Releases of PostgreSQL differ in where they qualify a view's columns.
           case when relkind in ('v', 'm') then regexp_replace(pg_get_viewdef(oid), '\m[a-z_]+\.', '', 'g') end
       ) as definition
from tables
union all
select 'column', t.relname || '.' || a.attname,
       concat_ws(' ',
           format_type(a.atttypid, a.atttypmod),
           case when a.attcollation not in (0, 100) then 'collate ' || a.attcollation::regcollation end,
           case when a.attnotnull then 'not null' end,
           case when a.attgenerated <> '' then 'generated as' end,
           'default ' || pg_get_expr(d.adbin, d.adrelid),
           case a.attidentity when 'a' then 'identity always' when 'd' then 'identity by default' end)
from tables t
join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
union all
-- Not null stands with the columns (and is a constraint of its own from PostgreSQL 18 on).
select 'constraint', t.relname || '.' || c.conname, pg_get_constraintdef(c.oid, true)
from tables t
join pg_constraint c on c.conrelid = t.oid and c.contype not in ('n', 't') and c.conparentid = 0
union all
select 'index', c.relname, pg_get_indexdef(i.indexrelid, 0, true) || case when i.indisvalid and i.indisready then '' else ' INVALID' end
from tables t
join pg_index i on i.indrelid = t.oid
join pg_class c on c.oid = i.indexrelid
union all
select 'trigger', t.relname || '.' || g.tgname,
       pg_get_triggerdef(g.oid, true) || case g.tgenabled when 'O' then '' when 'A' then ' ALWAYS' when 'R' then ' REPLICA' else ' DISABLED' end
from tables t
join pg_trigger g on g.tgrelid = t.oid and not g.tgisinternal and g.tgparentid = 0
union all
select 'partitions'' ' || kind, replace(name, relname, 'events_#'),
       replace(definition, relname, 'events_#')
           || case when count(*) = (select count(*) from partitions) then '' else format(' IN %s OF %s PARTITIONS', count(*), (select count(*) from partitions)) end
from of_partitions
group by 1, 2, replace(definition, relname, 'events_#')
union all
select 'rule', t.relname || '.' || r.rulename, pg_get_ruledef(r.oid, true)
from tables t
join pg_rewrite r on r.ev_class = t.oid and r.rulename <> '_RETURN'
union all
select 'function', p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')',
       concat_ws(' ',
           pg_get_function_result(p.oid),
           (select lanname from pg_language l where l.oid = p.prolang),
           case p.provolatile when 'i' then 'immutable' when 's' then 'stable' else 'volatile' end,
           case when p.proisstrict then 'strict' end,
           case when p.prosecdef then 'security definer' end,
           array_to_string(p.proconfig, ' '),
           'body ' || md5(p.prosrc))
from pg_proc p join schema on p.pronamespace = schema.oid
where not exists (select from of_extensions e where e.classid = 'pg_proc'::regclass and e.objid = p.oid)
union all
-- Those of identity columns stand with their columns.
select 'sequence', c.relname,
       concat_ws(' ', format_type(s.seqtypid, null), 'start', s.seqstart, 'by', s.seqincrement, 'from', s.seqmin, 'to', s.seqmax, case when s.seqcycle then 'cycle' end)
from pg_sequence s
join pg_class c on c.oid = s.seqrelid
join schema on c.relnamespace = schema.oid
where not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype in ('i', 'e'))
