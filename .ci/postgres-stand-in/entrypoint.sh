#!/usr/bin/env bash
# What the official image's entrypoint does, as far as the tests and docker-compose.yml
# need it: POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB (each also as NAME_FILE),
# POSTGRES_HOST_AUTH_METHOD, POSTGRES_INITDB_ARGS, /docker-entrypoint-initdb.d/*.{sql,sh}.
set -euo pipefail

[[ ${1:-postgres} != -* ]] || set -- postgres "$@"
[[ ${1:-} == postgres ]] || exec "$@"

from_file() { # NAME default
    local file=${1}_FILE
    if [[ -n ${!file:-} ]]; then
        [[ -z ${!1:-} ]] || { echo "error: both $1 and $file are set" >&2; exit 1; }
        printf -v "$1" '%s' "$(<"${!file}")"
    elif [[ -z ${!1:-} ]]; then
        printf -v "$1" '%s' "$2"
    fi
    export "${1?}"
    unset "$file"
}

if [[ $(id -u) == 0 ]]; then
    install -d -o postgres -g postgres -m 0700 "$PGDATA"
    install -d -o postgres -g postgres -m 3777 /var/run/postgresql
    find "$PGDATA" ! -user postgres -exec chown postgres:postgres {} +
    exec setpriv --reuid=postgres --regid=postgres --init-groups "${BASH_SOURCE[0]}" "$@"
fi

mkdir -p "$PGDATA"
chmod 0700 "$PGDATA"

if [[ ! -s $PGDATA/PG_VERSION ]]; then
    from_file POSTGRES_PASSWORD ''
    from_file POSTGRES_USER postgres
    from_file POSTGRES_DB "$POSTGRES_USER"
    method=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
    if [[ -z $POSTGRES_PASSWORD && $method != trust ]]; then
        echo 'error: the database is uninitialized and POSTGRES_PASSWORD is not set' >&2
        exit 1
    fi

    # shellcheck disable=SC2086 # several arguments in one variable
    if [[ -n $POSTGRES_PASSWORD ]]; then
        initdb --username="$POSTGRES_USER" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") ${POSTGRES_INITDB_ARGS:-}
    else
        initdb --username="$POSTGRES_USER" ${POSTGRES_INITDB_ARGS:-}
    fi
    printf '\nhost all all all %s\n' "$method" >>"$PGDATA/pg_hba.conf"
    printf "\nlisten_addresses = '*'\n" >>"$PGDATA/postgresql.conf"

    # Without -l its log goes to standard output, so a reader sees `ready to accept
    # connections` there first and on standard error once the port is open.
    # No TCP meanwhile, so nobody connects too early.
    pg_ctl -D "$PGDATA" -w -t 60 -o "-c listen_addresses=''" start
    sql() { psql -v ON_ERROR_STOP=1 --no-psqlrc --no-password --username "$POSTGRES_USER" "$@"; }
    if [[ $POSTGRES_DB != postgres ]]; then
        # :"db" is quoted by psql, so any name works.
        sql --dbname postgres --set db="$POSTGRES_DB" <<<'CREATE DATABASE :"db";'
    fi
    shopt -s nullglob
    for file in /docker-entrypoint-initdb.d/*; do
        case $file in
        *.sql) echo "running $file"; sql --dbname "$POSTGRES_DB" -f "$file" ;;
        *.sh) echo "running $file"; if [[ -x $file ]]; then "$file"; else bash "$file"; fi ;;
        *) echo "ignoring $file" ;;
        esac
    done
    pg_ctl -D "$PGDATA" -m fast -w stop
    printf '\nPostgreSQL init process complete; ready for start up.\n\n'
fi

unset POSTGRES_PASSWORD
exec "$@"
