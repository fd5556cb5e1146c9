#!/bin/bash
# Run once, by the postgres image, when the volume is empty: a database, and the roles of
# deploy/roles.sql, of which two log in: the owner migrates, the service does the rest. (A
# superuser could switch the append-only guards off, and the owner could drop them.)
set -euo pipefail

psql=(psql --no-psqlrc --quiet -v ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}")

"${psql[@]}" --dbname postgres <<'SQL'
create database deskfeed template template0 encoding 'UTF8' locale 'C';
revoke connect on database postgres from public;
SQL
# Passwords are read by psql itself: what stands in an argument can be seen by all processes.
"${psql[@]}" --dbname deskfeed <<'SQL'
\set owner_password `cat /run/secrets/deskfeed_owner_password`
\set app_password `cat /run/secrets/deskfeed_db_password`
\i /etc/deskfeed/roles.sql
SQL
