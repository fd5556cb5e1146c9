/* doctor.transactions */
-- $1 seconds: older transactions of this database, oldest first; prepared ones too, which no session holds.
select format('process %s of %s (%s, %s)', pid, usename, coalesce(nullif(application_name, ''), 'no application_name'), coalesce(state, 'its state is hidden')) as who,
       extract(epoch from clock_timestamp() - xact_start)::float8 as age_s
from pg_stat_activity
where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
  and xact_start < clock_timestamp() - make_interval(secs => $1)
union all
select format('prepared transaction %L of %s', gid, owner), extract(epoch from clock_timestamp() - prepared)::float8
from pg_prepared_xacts
where database = current_database() and prepared < clock_timestamp() - make_interval(secs => $1)
order by 2 desc
limit 5
