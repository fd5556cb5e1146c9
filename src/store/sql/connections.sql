/* doctor.connections */
-- Connections that anybody may have, those in use, and replicas of this database.
select current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint
           - coalesce(current_setting('reserved_connections', true)::bigint, 0),
       (select count(*) from pg_stat_activity where backend_type = 'client backend'),
       (select count(*) from pg_stat_activity where application_name = 'deskfeed/listens' and datname = current_database())
