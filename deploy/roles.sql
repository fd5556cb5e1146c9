-- The roles of a deskfeed database, for the DBA. Run with psql as a superuser (or a role that may
-- create roles), connected to the database that deskfeed is to use:
--
--   psql -X -v ON_ERROR_STOP=1 -d deskfeed -f deploy/roles.sql
--
-- with a password for each role that is to log in itself, such as
--
--   -v owner_password=... -v app_password=... -v readonly_password=... -v monitor_password=... -v eraser_password=...
--
-- (A command line can be seen by everybody on the machine: deploy/postgres-init.sh reads them from
-- files.) A role without one does not log in: give its rights to roles of your own instead,
--
--   grant deskfeed_app to the_role_of_your_service;
--
-- Safe to run again: it makes what is missing, takes away what should not be there, and changes a
-- password only when one is given. Before the first migration or after it: the rights on the tables
-- are given by `deskfeed migrate` (deploy/grants.sql), and here if the tables are there already.
--
--   deskfeed_owner     owns the tables; migrates (DATABASE_URL of `deskfeed migrate`)
--   deskfeed_app       the service (DATABASE_URL of `deskfeed serve`); appends by calling functions of the owner's
--   deskfeed_readonly  reads conversations, but no hashes of tokens
--   deskfeed_monitor   reads figures and the server's statistics (`deskfeed doctor`, exporters)
--   deskfeed_eraser    blanks what it cannot read, and leaves a record (`deskfeed erase`)
--
-- Roles belong to the whole cluster. A second deskfeed database on it shares these five: then let
-- each service log in with a role of its own, and give each CONNECT on its own database only.

-- Made without the right to log in. (Somebody else may be making them at the same time.)
do $roles$
declare
    name text;
begin
    foreach name in array array['deskfeed_owner', 'deskfeed_app', 'deskfeed_readonly', 'deskfeed_monitor', 'deskfeed_eraser'] loop
        if to_regrole(name) is null then
            begin
                execute format('create role %I nologin nosuperuser nocreatedb nocreaterole noreplication nobypassrls', name);
            exception when duplicate_object or unique_violation then
                null;
            end;
        end if;
    end loop;
end
$roles$;

-- The database is theirs alone: nobody else connects (anybody who does can send notifications and
-- take advisory locks), nobody makes temporary tables, and only the owner makes any others.
do $database$ begin
    execute format('revoke all on database %I from public, deskfeed_owner, deskfeed_app, deskfeed_readonly, deskfeed_monitor, deskfeed_eraser', current_database());
    execute format('grant connect on database %I to deskfeed_owner, deskfeed_app, deskfeed_readonly, deskfeed_monitor, deskfeed_eraser', current_database());
end $database$;

revoke all on schema public from public, deskfeed_owner, deskfeed_app, deskfeed_readonly, deskfeed_monitor, deskfeed_eraser;
grant usage on schema public to deskfeed_app, deskfeed_readonly, deskfeed_monitor, deskfeed_eraser;
grant usage, create on schema public to deskfeed_owner;

-- ---- from here on: for superusers, with psql ----

-- The statistics of the server: who is connected, how far standbys are behind.
grant pg_monitor to deskfeed_monitor;

-- Where these roles log in themselves. A forgotten query must not hold back vacuum for a day; the
-- service sets its own limits, connection by connection.
alter role deskfeed_readonly set default_transaction_read_only = on;
alter role deskfeed_readonly set statement_timeout = '60s';
alter role deskfeed_readonly set idle_in_transaction_session_timeout = '60s';
alter role deskfeed_monitor set default_transaction_read_only = on;
alter role deskfeed_monitor set statement_timeout = '10s';
alter role deskfeed_monitor set idle_in_transaction_session_timeout = '10s';
alter role deskfeed_eraser set statement_timeout = '60s';
alter role deskfeed_eraser set idle_in_transaction_session_timeout = '10s';
alter role deskfeed_owner set idle_in_transaction_session_timeout = '10min';

\if :{?owner_password}
alter role deskfeed_owner login password :'owner_password';
\endif
\if :{?app_password}
alter role deskfeed_app login password :'app_password';
\endif
\if :{?readonly_password}
alter role deskfeed_readonly login password :'readonly_password';
\endif
\if :{?monitor_password}
alter role deskfeed_monitor login password :'monitor_password';
\endif
\if :{?eraser_password}
alter role deskfeed_eraser login password :'eraser_password';
\endif

-- The rights on the tables, if all of them are there.
select to_regclass('erasures') is not null as migrated \gset
\if :migrated
\ir grants.sql
\endif
