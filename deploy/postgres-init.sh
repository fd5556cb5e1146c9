#!/bin/bash
# Run once, by the postgres image, when the volume is empty: a database, and a role
# that owns it and is no superuser. (A superuser could switch the append-only guards off.)
set -euo pipefail

psql --no-psqlrc --quiet -v ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
\set password `cat /run/secrets/deskfeed_db_password`
create role deskfeed login nosuperuser nocreatedb nocreaterole noreplication nobypassrls password :'password';
create database deskfeed owner deskfeed template template0 encoding 'UTF8' locale 'C';
revoke all on database deskfeed from public;
revoke connect on database postgres from public;
SQL
