/* rights.lacking */
-- $1 role, $2 tables, sequences and functions, $3 columns (null: all of the table), $4 privileges: those
-- it does not have.
select privilege || coalesce(' (' || needed.attname || ')', '') || ' on ' || needed.object
from unnest($2::text[], $3::text[], $4::text[]) needed (object, attname, privilege)
cross join lateral (select case when privilege = 'execute' and needed.object like '%(%' then to_regprocedure(needed.object)::oid
                              when privilege = 'execute' then to_regproc(needed.object)::oid
                              else to_regclass(needed.object)::oid end) o (oid)
left join pg_class c on c.oid = o.oid and privilege <> 'execute'
left join pg_attribute a on a.attrelid = c.oid and a.attname = needed.attname
where o.oid is not null and not case
    when privilege = 'execute' then has_function_privilege($1::text, o.oid, privilege)
    when needed.attname is not null then a.attnum is null or has_column_privilege($1::text, c.oid, a.attnum, privilege)
    when c.relkind = 'S' then has_sequence_privilege($1::text, c.oid, privilege)
    else has_table_privilege($1::text, c.oid, privilege)
end
