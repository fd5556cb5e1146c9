/* doctor.indexes */
-- $1 bytes: larger btree indexes, their size, and about what they need: per entry a header (8), a line
-- pointer (4) and the columns, rounded to 8, at nine tenths of each page. Statistics know how wide a
-- text is, where this role may see them. What deduplication saves is not counted, so that an index
-- that has any is not told of too early.
select c.oid::regclass::text, pg_relation_size(c.oid) as bytes,
       (c.reltuples * (12 + 8 * ceil(sum(case when a.attlen > 0 then a.attlen else coalesce(s.avg_width, 32) end) / 8.0)) / 0.9)::float8 as needed
from pg_class c
join pg_am m on m.oid = c.relam and m.amname = 'btree'
join pg_index i on i.indexrelid = c.oid
join pg_class t on t.oid = i.indrelid
join pg_namespace n on n.oid = t.relnamespace
join pg_attribute a on a.attrelid = c.oid
left join pg_stats s on s.schemaname = n.nspname and s.tablename = t.relname and s.attname = a.attname
where c.relnamespace = (select relnamespace from pg_class where oid = to_regclass('_sqlx_migrations'))
  and c.relkind = 'i' and c.reltuples >= 0 and pg_relation_size(c.oid) >= $1
group by c.oid, c.reltuples
order by 2 desc
