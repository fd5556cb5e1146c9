//! Migrations as a script for psql, which records them as the migrator does.

use std::fmt::Write as _;

use sqlx::migrate::Migration;

use super::{MIGRATOR_LOCK, Migrations, of_each_partition};
use crate::store::rights::GRANTS;

/// The script of migrations that are not applied, and the rights of the roles.
pub(super) fn of(known: &Migrations, pending: &[&Migration]) -> String {
    let mut sql = "-- Run as the role that owns the schema:\n\
         --   psql -X -v ON_ERROR_STOP=1 -c 'set role deskfeed_owner' -f THIS_FILE DATABASE_URL\n\
         create table if not exists _sqlx_migrations (\n    version bigint primary key,\n    description text not null,\n    \
         installed_on timestamptz not null default now(),\n    success boolean not null,\n    checksum bytea not null,\n    execution_time bigint not null\n);\n"
        .to_owned();
    for migration in pending {
        let number = migration.version;
        let name = &migration.description;
        let before = known.0.iter().rev().find(|earlier| earlier.version < number).map_or(0, |m| m.version);
        let (begin, commit) = if migration.no_tx { ("", "") } else { ("begin;\n", "\ncommit;\n") };
        // Writing to a String cannot fail; here and below.
        let _ = write!(
            sql,
            "\n-- ---- migrations/{number:04}_{name}.sql ----\n{begin}{}\n{}\n{}{commit}",
            guard(number, before, migration.no_tx),
            body(migration),
            line_of(migration)
        );
    }
    let _ = write!(sql, "\n-- ---- deploy/grants.sql ----\n{GRANTS}");
    sql
}

/// Its text, as psql runs it.
fn body(migration: &Migration) -> String {
    of_each_partition(migration).map_or_else(
        || migration.sql.as_str().to_owned(),
        |statement| {
            let statement = statement.trim_end().trim_end_matches(';');
            format!("select replace($each${statement}$each$, '{{partition}}', name) from event_partitions() \\gexec\n")
        },
    )
}

/// Stops a printed migration that must not run now. In a transaction, all after it is then ignored.
fn guard(number: i64, before: i64, no_transaction: bool) -> String {
    let lock = if no_transaction { "pg_try_advisory_lock" } else { "pg_try_advisory_xact_lock" };
    format!(
        "do $guard$ begin
    if not {lock}({MIGRATOR_LOCK}) then
        raise exception 'another migrator is at work';
    end if;
    if (select coalesce(max(version), 0) from _sqlx_migrations) <> {before} then
        raise exception 'migration {number} comes right after {before}, but the newest applied one is %',
            (select coalesce(max(version), 0) from _sqlx_migrations);
    end if;
end $guard$;
"
    )
}

/// The statement that records a migration.
fn line_of(migration: &Migration) -> String {
    let checksum = migration.checksum.iter().fold(String::new(), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    let unlock = if migration.no_tx {
        format!("do $guard$ begin perform pg_advisory_unlock({MIGRATOR_LOCK}); end $guard$;\n")
    } else {
        String::new()
    };
    format!(
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time)\n\
         values ({}, '{}', true, '\\x{checksum}', -1);\n{unlock}",
        migration.version, migration.description
    )
}
