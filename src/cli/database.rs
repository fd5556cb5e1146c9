//! Which database a command works on: the one of `DATABASE_URL`, or the private PostgreSQL.

use std::time::Duration;

use anyhow::Context;
use sqlx::PgConnection;
use tokio::time::{Instant, sleep};

use crate::{
    config::DatabaseArgs,
    private_pg::PrivatePg,
    store::{
        pool::{Db, Purpose},
        schema::{self, SchemaState},
    },
};

/// How long a start waits for a PostgreSQL that is not there yet.
const START_WAIT: Duration = Duration::from_secs(30);
/// How long the private PostgreSQL may take to stop.
const STOP_WAIT: Duration = Duration::from_secs(3);

/// A database, and the private PostgreSQL if it is in one that we run.
pub struct Database {
    pub url: String,
    private: Option<PrivatePg>,
    /// In a private PostgreSQL, whoever runs it.
    pub is_private: bool,
}

/// The schema is not the one that this program needs.
#[derive(Debug, thiserror::Error)]
pub enum WrongSchema {
    #[error(
        "the database lacks migrations from number {0} on; apply them with `deskfeed migrate` (as a role that owns the schema), \
         or have your DBA run what `deskfeed migrate print` prints; then start again"
    )]
    Behind(i64),
    #[error(
        "the database was migrated by a newer deskfeed (migration {0}), in a way that this one cannot work with; start that version, or restore a database of this one"
    )]
    Ahead(i64),
    #[error(
        "migration {0} is recorded differently from this program's file of that number (or did not end well); \
         compare with `deskfeed migrate status`, and start the deskfeed that applied it"
    )]
    Different(i64),
}

impl Database {
    /// Finds the database for a service: takes the private PostgreSQL for itself.
    ///
    /// # Errors
    /// When there is none to be had; the text says what to do.
    pub async fn own(args: &DatabaseArgs) -> anyhow::Result<Self> {
        if let Some(url) = args.url()? {
            return Ok(Self { url, private: None, is_private: false });
        }
        let folder = args.data_folder()?;
        let private = PrivatePg::start(args.private_pg(folder)).await?;
        tracing::info!(folder = %private.url(), programs = %private.programs().display(), adopted = private.adopted(), "the private PostgreSQL runs; for production set DATABASE_URL");
        Ok(Self { url: private.url(), private: Some(private), is_private: true })
    }

    /// Finds the database for a short command: a private PostgreSQL that a service runs is used as
    /// it is, else it is started for the time of the command.
    ///
    /// # Errors
    /// As [`Database::own`].
    pub async fn borrow(args: &DatabaseArgs) -> anyhow::Result<Self> {
        if args.url()?.is_none()
            && let Some(url) = PrivatePg::find_running(&args.data_folder()?).await?
        {
            return Ok(Self { url, private: None, is_private: true });
        }
        Self::own(args).await
    }

    /// Stops the private PostgreSQL, if we run it.
    ///
    /// # Errors
    /// When it does not stop in time; the next start takes it over.
    pub async fn stop(self) -> anyhow::Result<()> {
        match self.private {
            Some(private) => Ok(private.stop(STOP_WAIT).await?),
            None => Ok(()),
        }
    }
}

/// A connection for a command. Waits a while for a server that is starting.
///
/// # Errors
/// When the server cannot be reached.
pub async fn connect(db: &Db) -> anyhow::Result<PgConnection> {
    let until = Instant::now() + START_WAIT;
    let mut told = false;
    loop {
        match db.connect(Purpose::Commands).await {
            Ok(connection) => return Ok(connection),
            Err(error) if error.is_outage() && Instant::now() < until => {
                if !told {
                    tracing::info!(error = %error, "waiting for PostgreSQL");
                    told = true;
                }
                sleep(Duration::from_millis(200)).await;
            }
            Err(error) => {
                return Err(error).context(
                    "PostgreSQL cannot be reached; check DATABASE_URL, and that the server runs and lets this role in",
                );
            }
        }
    }
}

/// Applies the migrations that are missing. A schema that is newer or different is left alone.
///
/// # Errors
/// [`WrongSchema`], or when a migration fails.
pub async fn migrate(connection: &mut PgConnection) -> anyhow::Result<()> {
    if let SchemaState::Behind { .. } = schema::state(connection).await? {
        schema::migrate(connection).await?;
    }
    check_schema(connection).await
}

/// Whether the schema is the one that this program needs.
///
/// # Errors
/// [`WrongSchema`], or when the database cannot be read.
pub async fn check_schema(connection: &mut PgConnection) -> anyhow::Result<()> {
    match schema::state(connection).await? {
        SchemaState::Current => Ok(()),
        SchemaState::Extended { newest } => {
            tracing::info!(newest, "the schema is newer than this program, which can work with it");
            Ok(())
        }
        SchemaState::Behind { next } => Err(WrongSchema::Behind(next).into()),
        SchemaState::Ahead { newest } => Err(WrongSchema::Ahead(newest).into()),
        SchemaState::Different { number } => Err(WrongSchema::Different(number).into()),
    }
}
