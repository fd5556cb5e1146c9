/* rights.lacking */
-- $1 role, $2 tables, $3 columns (null: all of the table), $4 privileges: those it does not have.
select privilege || coalesce(' (' || needed.attname || ')', '') || ' on ' || needed.object
from unnest($2::text[], $3::text[], $4::text[]) needed (object, attname, privilege)
join pg_class c on c.oid = to_regclass(needed.object)
left join pg_attribute a on a.attrelid = c.oid and a.attname = needed.attname
where not case
    when needed.attname is not null then a.attnum is null or has_column_privilege($1::text, c.oid, a.attnum, privilege)
    when c.relkind = 'S' then has_sequence_privilege($1::text, c.oid, privilege)
    else has_table_privilege($1::text, c.oid, privilege)
end
