/* doctor.locks */
-- $1 seconds: who has waited longer for a lock of this database, and for whom.
select format('process %s of %s (%s) waits for process %s', a.pid, a.usename, coalesce(nullif(a.application_name, ''), 'no application_name'),
              array_to_string(pg_blocking_pids(a.pid), ', ')) as who,
       extract(epoch from clock_timestamp() - l.waitstart)::float8 as waited_s
from (select pid, min(waitstart) as waitstart from pg_locks where not granted group by pid) l
join pg_stat_activity a on a.pid = l.pid
where a.datname = current_database() and l.waitstart < clock_timestamp() - make_interval(secs => $1)
order by 2 desc
limit 5
