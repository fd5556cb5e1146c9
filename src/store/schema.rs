//! The schema: plain SQL files, embedded, and how a database stands to them.
//!
//! Applied migrations are recorded in `_sqlx_migrations`, the table of the sqlx command line tool,
//! with a checksum each. A DBA who applies the files with psql runs what [`Migrations::print`]
//! gives, which records the same.
//!
//! **Old programs on a newer schema.** Migrations come before the programs that need them, so the
//! programs that run (and are started anew) meanwhile know fewer than the database has. They go on
//! as long as `store.oldest_program` is no newer than what they know; the migration that takes away
//! what they need raises it.

mod script;

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use sqlx::{
    AssertSqlSafe, PgConnection, SqlSafeStr,
    migrate::{Migrate, MigrateError, Migration, MigrationType},
};

use super::Result;

/// A migration's number, name and text.
pub type File = (i64, &'static str, &'static str);

/// The numbered files of `migrations/`, in order. A test compares this list with the folder.
pub const FILES: [File; 8] = [
    (1, "store", include_str!("../../migrations/0001_store.sql")),
    (2, "feeds", include_str!("../../migrations/0002_feeds.sql")),
    (3, "tokens", include_str!("../../migrations/0003_tokens.sql")),
    (4, "sessions", include_str!("../../migrations/0004_sessions.sql")),
    (5, "events", include_str!("../../migrations/0005_events.sql")),
    (6, "acks", include_str!("../../migrations/0006_acks.sql")),
    (7, "erasures", include_str!("../../migrations/0007_erasures.sql")),
    (8, "append", include_str!("../../migrations/0008_append.sql")),
];

/// First line of a file that cannot run in a transaction (an index made concurrently): one statement.
const NO_TRANSACTION: &str = "-- no-transaction\n";

/// Its second line, if the statement is to be run for each partition of events, whose name it has as
/// `{partition}`: an index cannot be made concurrently on all of them at once.
const EACH_PARTITION: &str = "-- for each partition of events\n";

/// Where applied migrations are recorded.
const TABLE: &str = "_sqlx_migrations";

/// Two migrators must not meet. Arbitrary, but the same for all of ours.
const MIGRATOR_LOCK: i64 = 0x6465_736b_6665_6564;

/// How long a migrator waits for another one.
const MIGRATOR_WAIT: Duration = Duration::from_secs(30);

/// How often a migration is tried that does not get its locks within its lock_timeout, and the
/// pause between, in which those who waited behind it go on.
const LOCK_TRIES: u32 = 60;
const LOCK_PAUSE: Duration = Duration::from_millis(300);

/// How a database stands to the schema of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaState {
    Current,
    /// A newer program has migrated it, up to this number, and has left what this one needs.
    Extended {
        newest: i64,
    },
    /// Migrations from this number on are not applied.
    Behind {
        next: i64,
    },
    /// A newer program has migrated it, up to this number, and this one cannot work with it.
    Ahead {
        newest: i64,
    },
    /// What is recorded of migration `number` is not what this program has: another file, or a failure.
    Different {
        number: i64,
    },
}

impl SchemaState {
    /// Whether the program can serve.
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Current | Self::Extended { .. })
    }
}

/// A migration, and when it was applied.
#[derive(Debug)]
pub struct MigrationLine {
    pub number: i64,
    pub name: String,
    pub applied_at: Option<DateTime<Utc>>,
    /// Whether this program has it.
    pub known: bool,
}

/// What can go wrong with a migration.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    #[error(transparent)]
    Database(#[from] super::Error),
    #[error("a migration failed")]
    Migration(#[from] MigrateError),
    #[error("another migrator has been at work for {} s; wait for it, or end its connection (application_name deskfeed/commands)", MIGRATOR_WAIT.as_secs())]
    Locked,
    #[error("there is no migration {0}; `deskfeed migrate status` shows them")]
    Unknown(i64),
    #[error("migration {number} comes after {missing}, which is not applied")]
    OutOfOrder { number: i64, missing: i64 },
    #[error("migration {0} is recorded differently from this program's file of that number (or did not end well)")]
    Different(i64),
}

impl From<sqlx::Error> for SchemaError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

/// The migrations that a program knows, in order.
#[derive(Debug)]
pub struct Migrations(Vec<Migration>);

/// A line of the table of applied migrations.
struct Applied {
    number: i64,
    name: String,
    at: DateTime<Utc>,
    checksum: Vec<u8>,
    success: bool,
}

impl Migrations {
    /// Those of this program.
    pub fn embedded() -> &'static Self {
        static EMBEDDED: LazyLock<Migrations> = LazyLock::new(|| Migrations::of(&FILES));
        &EMBEDDED
    }

    /// Those of a program that has these files.
    pub fn of(files: &[File]) -> Self {
        let migration = |(number, name, sql): &File| {
            let no_transaction = sql.starts_with(NO_TRANSACTION);
            Migration::new(*number, (*name).into(), MigrationType::Simple, sql.into_sql_str(), no_transaction)
        };
        Self(files.iter().map(migration).collect())
    }

    fn newest(&self) -> i64 {
        self.0.last().map_or(0, |migration| migration.version)
    }

    /// Compares the database with the program.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn state(&self, connection: &mut PgConnection) -> Result<SchemaState> {
        let applied = applied(connection).await?;
        let newest = applied.last().map_or(0, |line| line.number);
        if newest > self.newest() && oldest_program(connection).await? > self.newest() {
            return Ok(SchemaState::Ahead { newest });
        }
        for migration in &self.0 {
            match applied.iter().find(|line| line.number == migration.version) {
                None => return Ok(SchemaState::Behind { next: migration.version }),
                Some(line) if !line.is(migration) => {
                    return Ok(SchemaState::Different { number: migration.version });
                }
                Some(_) => {}
            }
        }
        Ok(if newest > self.newest() { SchemaState::Extended { newest } } else { SchemaState::Current })
    }

    /// Every migration, of the program and of the database.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn status(&self, connection: &mut PgConnection) -> Result<Vec<MigrationLine>> {
        let applied = applied(connection).await?;
        let ours = self.0.iter().map(|migration| MigrationLine {
            number: migration.version,
            name: migration.description.to_string(),
            applied_at: applied.iter().find(|line| line.number == migration.version).map(|line| line.at),
            known: true,
        });
        let newer = applied.iter().filter(|line| self.find(line.number).is_none()).map(|line| MigrationLine {
            number: line.number,
            name: line.name.clone(),
            applied_at: Some(line.at),
            known: false,
        });
        Ok(ours.chain(newer).collect())
    }

    fn find(&self, number: i64) -> Option<&Migration> {
        self.0.iter().find(|migration| migration.version == number)
    }

    /// Applies what is missing, up to a number if one is given. Safe to run twice, and by two at
    /// once. Tells of each migration that it has applied and how long that took.
    ///
    /// # Errors
    /// When a migration fails (the ones before it stay applied) or another migrator does not end.
    pub async fn up(
        &self,
        connection: &mut PgConnection,
        to: Option<i64>,
        tell: impl FnMut(&Migration, Duration),
    ) -> std::result::Result<(), SchemaError> {
        if let Some(unknown) = to.filter(|number| self.find(*number).is_none()) {
            return Err(SchemaError::Unknown(unknown));
        }
        lock(connection).await?;
        let done = self.apply_missing(connection, to, tell).await;
        unlock(connection).await?;
        done
    }

    async fn apply_missing(
        &self,
        connection: &mut PgConnection,
        to: Option<i64>,
        mut tell: impl FnMut(&Migration, Duration),
    ) -> std::result::Result<(), SchemaError> {
        ensure_table(connection).await?;
        let applied = applied(connection).await?;
        for migration in self.0.iter().filter(|migration| to.is_none_or(|to| migration.version <= to)) {
            match applied.iter().find(|line| line.number == migration.version) {
                Some(line) if line.is(migration) => {}
                Some(line) => return Err(SchemaError::Different(line.number)),
                None => {
                    let began = Instant::now();
                    apply(connection, migration).await?;
                    tell(migration, began.elapsed());
                }
            }
        }
        Ok(())
    }

    /// Records a migration whose SQL was run by hand. False when it is recorded already.
    ///
    /// # Errors
    /// When it is unknown, recorded differently, or one before it is not applied.
    pub async fn mark_applied(
        &self,
        connection: &mut PgConnection,
        number: i64,
    ) -> std::result::Result<bool, SchemaError> {
        let migration = self.find(number).ok_or(SchemaError::Unknown(number))?;
        lock(connection).await?;
        let done = self.record(connection, migration).await;
        unlock(connection).await?;
        done
    }

    async fn record(
        &self,
        connection: &mut PgConnection,
        migration: &Migration,
    ) -> std::result::Result<bool, SchemaError> {
        ensure_table(connection).await?;
        let applied = applied(connection).await?;
        let number = migration.version;
        if let Some(line) = applied.iter().find(|line| line.number == number) {
            return if line.is(migration) { Ok(false) } else { Err(SchemaError::Different(number)) };
        }
        let before = self.0.iter().map(|earlier| earlier.version).take_while(|earlier| *earlier < number);
        for missing in before {
            if !applied.iter().any(|line| line.number == missing) {
                return Err(SchemaError::OutOfOrder { number, missing });
            }
        }
        connection.skip(TABLE, migration).await?;
        Ok(true)
    }

    /// The SQL that a DBA runs instead of `deskfeed migrate`: the files that are not applied, each
    /// with the line that records it, and the rights of the roles. Each file that runs in a
    /// transaction refuses to run twice, out of order or beside another migrator.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn print(&self, connection: &mut PgConnection) -> Result<String> {
        let applied = applied(connection).await?;
        let pending: Vec<&Migration> =
            self.0.iter().filter(|m| !applied.iter().any(|line| line.number == m.version)).collect();
        if pending.is_empty() {
            return Ok("-- Nothing to apply.\n".to_owned());
        }
        Ok(script::of(self, &pending))
    }

    /// As [`Migrations::print`], for a database that lacks all from a number on.
    ///
    /// # Errors
    /// When there is no such migration.
    pub fn print_from(&self, number: i64) -> std::result::Result<String, SchemaError> {
        self.find(number).ok_or(SchemaError::Unknown(number))?;
        let pending: Vec<&Migration> = self.0.iter().filter(|migration| migration.version >= number).collect();
        Ok(script::of(self, &pending))
    }
}

impl Applied {
    /// Whether it is this very file, applied to its end.
    fn is(&self, migration: &Migration) -> bool {
        self.success && self.checksum == *migration.checksum
    }
}

/// Applies a migration and records it. What does not get its locks in time is tried again: each
/// try is short (the file sets lock_timeout), so nobody waits long behind it.
async fn apply(connection: &mut PgConnection, migration: &Migration) -> std::result::Result<(), MigrateError> {
    if let Some(statement) = of_each_partition(migration) {
        let failed = |error| MigrateError::ExecuteMigration(error, migration.version);
        let partitions: Vec<String> = sqlx::query_scalar("/* schema.apply */ select name from event_partitions()")
            .fetch_all(&mut *connection)
            .await
            .map_err(failed)?;
        for partition in partitions {
            let statement = statement.replace("{partition}", &partition);
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *connection).await.map_err(failed)?;
        }
        return connection.skip(TABLE, migration).await;
    }
    let mut tries = 1;
    loop {
        match connection.apply(TABLE, migration).await {
            // What runs without a transaction leaves something behind when it fails.
            Err(error) if waited_for_lock(&error) && !migration.no_tx && tries < LOCK_TRIES => tries += 1,
            done => return done.map(drop),
        }
        tracing::info!(migration = migration.version, tries, "a lock was not to be had in time; trying again");
        tokio::time::sleep(LOCK_PAUSE).await;
    }
}

/// The statement of a migration that is run for each partition of events.
fn of_each_partition(migration: &Migration) -> Option<&str> {
    migration.sql.as_str().strip_prefix(NO_TRANSACTION)?.strip_prefix(EACH_PARTITION)
}

fn waited_for_lock(error: &MigrateError) -> bool {
    let (MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = error else { return false };
    // 55P03: lock_timeout.
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "55P03")
}

/// Compares the database with this program.
///
/// # Errors
/// When the database cannot be read.
pub async fn state(connection: &mut PgConnection) -> Result<SchemaState> {
    Migrations::embedded().state(connection).await
}

/// Applies what is missing of this program's migrations, and gives the roles their rights.
///
/// # Errors
/// As [`Migrations::up`].
pub async fn migrate(connection: &mut PgConnection) -> std::result::Result<(), SchemaError> {
    Migrations::embedded().up(connection, None, |_, _| {}).await?;
    grant(connection).await
}

/// Gives the roles of `deploy/roles.sql` their rights, as far as the roles are there. Does nothing for
/// a role that does not own the tables.
///
/// # Errors
/// When the database refuses it, or another migrator does not end.
pub async fn grant(connection: &mut PgConnection) -> std::result::Result<(), SchemaError> {
    // Two who grant at once would meet in the catalog.
    lock(connection).await?;
    let done = super::rights::grant(connection).await;
    unlock(connection).await?;
    Ok(done?)
}

/// What is recorded, in order. Nothing when the table is not there yet.
async fn applied(connection: &mut PgConnection) -> Result<Vec<Applied>> {
    let there: bool = sqlx::query_scalar("/* schema.applied */ select to_regclass('_sqlx_migrations') is not null")
        .fetch_one(&mut *connection)
        .await?;
    if !there {
        return Ok(Vec::new());
    }
    type Row = (i64, String, DateTime<Utc>, Vec<u8>, bool);
    let rows: Vec<Row> = sqlx::query_as(
        "/* schema.applied */ select version, description, installed_on, checksum, success from _sqlx_migrations order by version",
    )
    .fetch_all(connection)
    .await?;
    let line = |(number, name, at, checksum, success)| Applied { number, name, at, checksum, success };
    Ok(rows.into_iter().map(line).collect())
}

/// The newest migration that a program must know to work on the database's schema.
async fn oldest_program(connection: &mut PgConnection) -> Result<i64> {
    Ok(sqlx::query_scalar("/* schema.oldest_program */ select oldest_program from store").fetch_one(connection).await?)
}

/// Makes the table of what is applied, if it is not there.
async fn ensure_table(connection: &mut PgConnection) -> std::result::Result<(), SchemaError> {
    // `if not exists` fails when somebody else (psql, which has no lock yet) makes it at this very moment. Then it
    // is there the second time.
    if connection.ensure_migrations_table(TABLE).await.is_err() {
        connection.ensure_migrations_table(TABLE).await?;
    }
    Ok(())
}

async fn lock(connection: &mut PgConnection) -> std::result::Result<(), SchemaError> {
    // Not pg_advisory_lock: whoever waits in it has a snapshot, and CREATE INDEX CONCURRENTLY of the
    // other migrator would wait for that.
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

async fn unlock(connection: &mut PgConnection) -> Result<()> {
    sqlx::query("/* schema.unlock */ select pg_advisory_unlock($1)").bind(MIGRATOR_LOCK).execute(connection).await?;
    Ok(())
}

/// Settings of the server that could lose what was committed, as `name=value`.
///
/// # Errors
/// When the database cannot be read.
pub async fn unsafe_settings(connection: &mut PgConnection) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(
        "/* schema.unsafe_settings */
         select name || '=' || setting from pg_settings
         where name in ('fsync', 'full_page_writes', 'synchronous_commit') and setting = 'off' order by name",
    )
    .fetch_all(connection)
    .await?)
}
