//! The schema: plain SQL files, embedded, and how a database stands to them.
//!
//! Applied migrations are recorded in `_sqlx_migrations`, the table of the sqlx command line tool,
//! with a checksum each. A DBA who applies the files with psql runs what [`print_pending`] gives,
//! which records the same.

use std::{fmt::Write as _, time::Duration};

use sqlx::{
    PgConnection, SqlSafeStr,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};

use super::Result;

/// The numbered files of `migrations/`, in order. A test compares this list with the folder.
pub const FILES: [(i64, &str, &str); 6] = [
    (1, "store", include_str!("../../migrations/0001_store.sql")),
    (2, "feeds", include_str!("../../migrations/0002_feeds.sql")),
    (3, "tokens", include_str!("../../migrations/0003_tokens.sql")),
    (4, "sessions", include_str!("../../migrations/0004_sessions.sql")),
    (5, "events", include_str!("../../migrations/0005_events.sql")),
    (6, "acks", include_str!("../../migrations/0006_acks.sql")),
];

/// Two migrators must not meet. Arbitrary, but the same for all of ours.
const MIGRATOR_LOCK: i64 = 0x6465_736b_6665_6564;

/// How long a migrator waits for another one.
const MIGRATOR_WAIT: Duration = Duration::from_secs(30);

/// How a database stands to the schema of this program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SchemaState {
    Current,
    /// Migrations from this number on are not applied.
    Behind {
        next: i64,
    },
    /// A newer program has migrated it, up to this number.
    Ahead {
        newest: i64,
    },
    /// What is recorded of migration `number` is not what this program has: another file, or a failure.
    Different {
        number: i64,
    },
}

/// A migration and whether it is applied.
#[derive(Debug)]
pub struct MigrationLine {
    pub number: i64,
    pub name: &'static str,
    pub applied: bool,
}

/// What can go wrong with a migration.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    #[error("PostgreSQL refused")]
    Database(#[from] sqlx::Error),
    #[error("a migration failed")]
    Migration(#[from] MigrateError),
    #[error("another migrator has been at work for {} s; wait for it, or end its connection (application_name deskfeed/commands)", MIGRATOR_WAIT.as_secs())]
    Locked,
}

fn migrator() -> Migrator {
    let migrations = FILES
        .iter()
        .map(|(number, name, sql)| {
            Migration::new(*number, (*name).into(), MigrationType::Simple, sql.into_sql_str(), false)
        })
        .collect();
    let mut migrator = Migrator::with_migrations(migrations);
    // sqlx would wait inside pg_advisory_lock for ever; we take a lock of our own, with a limit.
    migrator.set_locking(false);
    migrator
}

/// Compares the database with this program.
///
/// # Errors
/// When the database cannot be read.
pub async fn state(connection: &mut PgConnection) -> Result<SchemaState> {
    let applied = applied(connection).await?;
    let newest_known = FILES.last().map_or(0, |(number, ..)| *number);
    if let Some((newest, ..)) = applied.last()
        && *newest > newest_known
    {
        return Ok(SchemaState::Ahead { newest: *newest });
    }
    for migration in migrator().iter() {
        match applied.iter().find(|(number, ..)| *number == migration.version) {
            None => return Ok(SchemaState::Behind { next: migration.version }),
            Some((_, checksum, success)) if !success || *checksum != *migration.checksum => {
                return Ok(SchemaState::Different { number: migration.version });
            }
            Some(_) => {}
        }
    }
    Ok(SchemaState::Current)
}

/// Every migration of this program, and whether the database has it.
///
/// # Errors
/// When the database cannot be read.
pub async fn status(connection: &mut PgConnection) -> Result<Vec<MigrationLine>> {
    let applied = applied(connection).await?;
    Ok(FILES
        .iter()
        .map(|(number, name, _)| MigrationLine {
            number: *number,
            name,
            applied: applied.iter().any(|(found, ..)| found == number),
        })
        .collect())
}

/// (number, checksum, success), in order. Nothing when the table is not there yet.
async fn applied(connection: &mut PgConnection) -> Result<Vec<(i64, Vec<u8>, bool)>> {
    let there: bool = sqlx::query_scalar("/* schema.applied */ select to_regclass('_sqlx_migrations') is not null")
        .fetch_one(&mut *connection)
        .await?;
    if !there {
        return Ok(Vec::new());
    }
    sqlx::query_as("/* schema.applied */ select version, checksum, success from _sqlx_migrations order by version")
        .fetch_all(connection)
        .await
}

/// Applies what is missing. Safe to run twice, and by two at once.
///
/// # Errors
/// When a migration fails (the ones before it stay applied) or another migrator does not end.
pub async fn migrate(connection: &mut PgConnection) -> std::result::Result<(), SchemaError> {
    lock(connection).await?;
    let done = migrator().run_direct(None, connection, false).await;
    let unlocked =
        sqlx::query("/* schema.migrate */ select pg_advisory_unlock($1)").bind(MIGRATOR_LOCK).execute(connection).await;
    done?;
    unlocked?;
    Ok(())
}

async fn lock(connection: &mut PgConnection) -> std::result::Result<(), SchemaError> {
    let until = tokio::time::Instant::now() + MIGRATOR_WAIT;
    loop {
        let locked: bool = sqlx::query_scalar("/* schema.lock */ select pg_try_advisory_lock($1)")
            .bind(MIGRATOR_LOCK)
            .fetch_one(&mut *connection)
            .await?;
        if locked {
            return Ok(());
        }
        if tokio::time::Instant::now() >= until {
            return Err(SchemaError::Locked);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The SQL that a DBA runs instead of `deskfeed migrate`: the files not applied yet, each in a
/// transaction with the line that records it.
///
/// # Errors
/// When the database cannot be read.
pub async fn print_pending(connection: &mut PgConnection) -> Result<String> {
    let applied = applied(connection).await?;
    let mut sql = String::new();
    let pending: Vec<Migration> =
        migrator().iter().filter(|m| !applied.iter().any(|(number, ..)| *number == m.version)).cloned().collect();
    if pending.is_empty() {
        return Ok("-- Nothing to apply: the schema is current.\n".to_owned());
    }
    sql.push_str(
        "-- Run with: psql -X -v ON_ERROR_STOP=1 -f THIS_FILE\n\
         create table if not exists _sqlx_migrations (\n    version bigint primary key,\n    description text not null,\n    \
         installed_on timestamptz not null default now(),\n    success boolean not null,\n    checksum bytea not null,\n    execution_time bigint not null\n);\n",
    );
    for migration in pending {
        let checksum = migration.checksum.iter().fold(String::new(), |mut hex, byte| {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let (number, name) = (migration.version, &migration.description);
        // As above: writing to a String cannot fail.
        let _ = write!(
            sql,
            "\n-- ---- migrations/{number:04}_{name}.sql ----\nbegin;\n\n{}\n\
             insert into _sqlx_migrations (version, description, success, checksum, execution_time)\n\
             values ({number}, '{name}', true, '\\x{checksum}', -1);\n\ncommit;\n",
            migration.sql.as_str()
        );
    }
    Ok(sql)
}

/// Settings of the server that could lose what was committed, as `name=value`.
///
/// # Errors
/// When the database cannot be read.
pub async fn unsafe_settings(connection: &mut PgConnection) -> Result<Vec<String>> {
    sqlx::query_scalar(
        "/* schema.unsafe_settings */
         select name || '=' || setting from pg_settings
         where name in ('fsync', 'full_page_writes', 'synchronous_commit') and setting = 'off' order by name",
    )
    .fetch_all(connection)
    .await
}
