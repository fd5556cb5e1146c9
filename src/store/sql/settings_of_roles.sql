/* doctor.settings */
-- What is set for everybody in this database, or for a role that the service runs as, and must not be.
select coalesce(r.rolname::text, 'everybody in ' || current_database()), option
from pg_db_role_setting s
left join pg_roles r on r.oid = s.setrole
cross join unnest(s.setconfig) option
where s.setdatabase in (0, (select oid from pg_database where datname = current_database()))
  and (s.setrole = 0
       or r.rolname = 'deskfeed_app'
       or r.rolname in (select usename from pg_stat_activity where application_name = 'deskfeed/listens' and datname = current_database()))
  and lower(option) similar to '(synchronous_commit=(off|local|false|0)|default_transaction_read_only=(on|true|yes|1))'
order by 1, 2
