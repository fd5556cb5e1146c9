/* doctor.partitions */
-- First version, and first version after it, of each partition of events; null: no limit. No row when
-- events is not partitioned. (A default partition has no bounds to read, and is left out.)
select substring(bound from 'FROM \(''?(\d+)')::bigint, substring(bound from 'TO \(''?(\d+)')::bigint
from (
    select pg_get_expr(c.relpartbound, c.oid) as bound
    from pg_inherits i
    join pg_class c on c.oid = i.inhrelid and c.relispartition
    where i.inhparent = to_regclass('events')
) b
where bound like 'FOR VALUES FROM%'
