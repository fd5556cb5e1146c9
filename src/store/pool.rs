//! Connections: pools for reads, single connections for the writers and the listener.

use std::{
    net::IpAddr,
    ops::{Deref, DerefMut},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions, Postgres},
};
use tokio::{runtime::Handle, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::{Error, events::Page};
use crate::domain::{fault::Fault, limits};

type Result<T, E = Error> = std::result::Result<T, E>;

/// How long after its last use a connection is used without a test.
const BELIEVED_FOR: Duration = Duration::from_secs(1);

/// What a connection is for; shown to the DBA in `pg_stat_activity.application_name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Reads,
    Appends,
    Acks,
    Listens,
    Notifies,
    /// Migrations and one-off commands.
    Commands,
}

impl Purpose {
    fn application_name(self) -> &'static str {
        match self {
            Self::Reads => "deskfeed/reads",
            Self::Appends => "deskfeed/appends",
            Self::Acks => "deskfeed/acks",
            Self::Listens => "deskfeed/listens",
            Self::Notifies => "deskfeed/notifies",
            Self::Commands => "deskfeed/commands",
        }
    }
}

/// What every connection of the service sets. The timeouts let PostgreSQL end what a hanging process left
/// behind; the module documentation of `store` argues for the plan settings.
fn session_settings() -> String {
    format!(
        "set statement_timeout = {}; set lock_timeout = {}; set idle_in_transaction_session_timeout = {}; \
         set client_connection_check_interval = 1000; set client_min_messages = warning; \
         set plan_cache_mode = force_generic_plan; set jit = off; set random_page_cost = 1.1; \
         set enable_seqscan = off; set enable_bitmapscan = off; set enable_hashjoin = off; set enable_mergejoin = off; \
         set enable_sort = off; set enable_memoize = off; set enable_material = off; \
         set default_transaction_isolation = 'read committed'; set timezone = 'UTC'",
        limits::DB_STATEMENT_MS,
        limits::DB_LOCK_MS,
        limits::DB_IDLE_IN_TRANSACTION_MS
    )
}

/// A database and how to reach it.
#[derive(Debug, Clone)]
pub struct Db {
    options: PgConnectOptions,
    reader: Reader,
    /// `None`: pages are read as everything else is.
    pages: Option<Pages>,
    trust: Trust,
}

/// Where pages are read. A connection belongs to the threads that opened it, so these have their own.
#[derive(Debug, Clone)]
struct Pages {
    threads: Handle,
    reader: Reader,
}

/// Pooled connections for reads and small changes.
#[derive(Debug, Clone)]
pub struct Reader {
    pool: PgPool,
}

/// Which pooled connections are used without a test, and which not at all.
#[derive(Debug, Clone)]
struct Trust {
    started: Instant,
    /// Connections last used before this are tested first. In milliseconds since `started`, as the next.
    tested_before_ms: Arc<AtomicU64>,
    /// Connections made before this are closed.
    closed_before_ms: Arc<AtomicU64>,
}

impl Trust {
    fn new() -> Self {
        Self { started: Instant::now(), tested_before_ms: Arc::default(), closed_before_ms: Arc::default() }
    }

    fn now_ms(&self) -> u64 {
        millis(self.started.elapsed())
    }

    /// Whether a connection that was last used this long ago may be used without a test.
    fn is_alive(&self, idle_for: Duration) -> bool {
        let used_ms = self.now_ms().saturating_sub(millis(idle_for));
        idle_for < BELIEVED_FOR && used_ms > self.tested_before_ms.load(Ordering::Acquire)
    }

    /// Whether a connection of this age leads to another server, for all we know.
    fn is_too_old(&self, age: Duration) -> bool {
        let closed_before_ms = self.closed_before_ms.load(Ordering::Acquire);
        closed_before_ms > 0 && self.now_ms().saturating_sub(millis(age)) <= closed_before_ms
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Db {
    /// Prepares connections to `url`; none is opened yet.
    ///
    /// # Errors
    /// When `url` cannot be read.
    pub fn new(url: &str, readers_max: u32) -> Result<Self> {
        let options = PgConnectOptions::from_str(url)?.disable_statement_logging();
        let trust = Trust::new();
        let reader = Reader::new(&options, readers_max, &trust);
        Ok(Self { options, reader, pages: None, trust })
    }

    /// [`Db::new`] with threads for pages, which have five of eight connections.
    ///
    /// # Errors
    /// When `url` cannot be read.
    pub fn with_page_threads(url: &str, readers_max: u32, threads: Handle) -> Result<Self> {
        let others = readers_max * 3 / 8;
        if others == 0 {
            return Self::new(url, readers_max);
        }
        let mut db = Self::new(url, others)?;
        // The pool's own task and its sockets belong to these threads, too.
        let entered = threads.enter();
        let reader = Reader::new(&db.options, readers_max - others, &db.trust);
        drop(entered);
        db.pages = Some(Pages { threads, reader });
        Ok(db)
    }

    /// A connection of its own, outside the pool.
    ///
    /// # Errors
    /// When the server cannot be reached in [`limits::DB_ACQUIRE_MS`].
    pub async fn connect(&self, purpose: Purpose) -> Result<PgConnection> {
        let options = self.options.clone().application_name(purpose.application_name());
        deadline(limits::DB_ACQUIRE_MS, async {
            let mut connection = PgConnection::connect_with(&options).await?;
            if purpose != Purpose::Commands {
                set_up(&mut connection).await?;
            }
            if purpose == Purpose::Appends {
                refuse_standby(&mut connection).await?;
            }
            Ok(connection)
        })
        .await
    }

    /// Runs `work` on a pooled connection, within [`limits::DB_READ_MS`].
    ///
    /// # Errors
    /// As `work`, or when no connection is free in [`limits::DB_ACQUIRE_MS`], or time is up.
    pub async fn read<T>(&self, work: impl AsyncFnOnce(&mut PgConnection) -> Result<T>) -> Result<T> {
        self.reader.read(work).await
    }

    /// [`Db::read`] for a small change that needs neither the append lock nor a version.
    ///
    /// # Errors
    /// As [`Db::read`]; the change may then have happened all the same.
    pub async fn change<T>(&self, work: impl AsyncFnOnce(&mut PgConnection) -> Result<T>) -> Result<T> {
        self.reader.read(work).await
    }

    /// Runs `work`, which reads a page, on the threads for pages if there are any. It is aborted when this
    /// future is dropped.
    ///
    /// # Errors
    /// As `work`.
    pub async fn page<T, F>(&self, work: impl FnOnce(Reader) -> F + Send + 'static) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        let Some(Pages { threads, reader }) = &self.pages else { return work(self.reader.clone()).await };
        let page = threads.spawn(work(reader.clone()));
        AbortOnDropHandle::new(page).await.map_err(Fault::internal)?
    }

    /// PostgreSQL was away: connections that were used before are tested before their next use.
    pub fn doubt(&self) {
        self.trust.tested_before_ms.store(self.trust.now_ms(), Ordering::Release);
    }

    /// The history has changed: connections made before may lead to the old primary, and are closed.
    pub fn replace_connections(&self) {
        self.trust.closed_before_ms.store(self.trust.now_ms().max(1), Ordering::Release);
    }

    /// How to connect, for those who cannot use our connections (the listener).
    pub fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// (connections open, of them idle)
    pub fn readers(&self) -> (u32, usize) {
        self.pools().fold((0, 0), |(open, idle), pool| (open + pool.size(), idle + pool.num_idle()))
    }

    pub async fn close(&self) {
        for pool in self.pools() {
            pool.close().await;
        }
    }

    fn pools(&self) -> impl Iterator<Item = &PgPool> {
        std::iter::once(&self.reader).chain(self.pages.as_ref().map(|pages| &pages.reader)).map(|reader| &reader.pool)
    }
}

impl Reader {
    fn new(options: &PgConnectOptions, connections_max: u32, trust: &Trust) -> Self {
        let trust = trust.clone();
        let pool = PgPoolOptions::new()
            .max_connections(connections_max)
            .acquire_timeout(Duration::from_millis(limits::DB_ACQUIRE_MS))
            .idle_timeout(Duration::from_secs(60))
            .max_lifetime(Duration::from_secs(1800))
            // Testing a connection before each use is a round trip for each read. One that worked a moment ago
            // is used untested, unless somebody has found PostgreSQL away since; the first to find that out
            // is answered 50300.
            .test_before_acquire(false)
            .before_acquire(move |connection, meta| {
                let (is_alive, is_too_old) = (trust.is_alive(meta.idle_for), trust.is_too_old(meta.age));
                Box::pin(async move { Ok(!is_too_old && (is_alive || connection.ping().await.is_ok())) })
            })
            .after_connect(|connection, _| Box::pin(set_up(connection)))
            .connect_lazy_with(options.clone().application_name(Purpose::Reads.application_name()));
        Self { pool }
    }

    /// [`Db::read`].
    ///
    /// # Errors
    /// As [`Db::read`].
    pub async fn read<T>(&self, work: impl AsyncFnOnce(&mut PgConnection) -> Result<T>) -> Result<T> {
        let mut lease = Lease::of(&self.pool).await?;
        let done = read_deadline(work(&mut lease)).await?;
        lease.finish();
        Ok(done)
    }

    /// [`Reader::read`] for a page and what goes with it. A page that was cut leaves rows behind that nobody
    /// wants; its connection is closed.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub async fn read_page<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<(Page, T)>,
    ) -> Result<(Page, T)> {
        let mut lease = Lease::of(&self.pool).await?;
        let read = read_deadline(work(&mut lease)).await?;
        if !read.0.cut {
            lease.finish();
        }
        Ok(read)
    }
}

/// Whether a database's URL leads to this very machine: by a socket or a loopback address.
pub fn is_on_this_machine(url: &str) -> bool {
    PgConnectOptions::from_str(url).is_ok_and(|options| {
        let host = options.get_host().trim_matches(['[', ']']);
        let is_loopback = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        options.get_socket().is_some() || host.starts_with('/') || host == "localhost" || is_loopback
    })
}

async fn set_up(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(session_settings())).execute(connection).await?;
    Ok(())
}

async fn refuse_standby(connection: &mut PgConnection) -> Result<()> {
    let is_standby: bool = sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(connection).await?;
    if is_standby {
        return Err(Error::Away(
            "DATABASE_URL leads to a standby, which cannot be written to; point it at the primary",
        ));
    }
    Ok(())
}

/// A pooled connection that goes back to the pool only after [`Lease::finish`]: one that was dropped in the
/// middle of something (a client went away, a timeout) is closed, because an answer may still be on its way.
struct Lease {
    connection: PoolConnection<Postgres>,
    is_finished: bool,
}

impl Lease {
    async fn of(pool: &PgPool) -> Result<Self> {
        Ok(Self { connection: pool.acquire().await?, is_finished: false })
    }

    fn finish(mut self) {
        self.is_finished = true;
    }
}

impl Deref for Lease {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.is_finished {
            self.connection.close_on_drop();
        }
    }
}

/// Runs `work` for at most `ms` milliseconds.
///
/// # Errors
/// As `work`, or [`Error::Timeout`]; the connection it used must then be dropped.
pub async fn deadline<T>(ms: u64, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(Duration::from_millis(ms), work).await.unwrap_or(Err(Error::Timeout(ms)))
}

/// [`deadline`] for reads.
///
/// # Errors
/// As [`deadline`].
pub async fn read_deadline<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    deadline(limits::DB_READ_MS, work).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_on_this_machine_is_known() {
        for url in [
            "postgres://u:p@localhost/d",
            "postgres://u@127.0.0.1:5433/d",
            "postgres://u@[::1]/d",
            "postgres://u@localhost/d?host=/run/postgresql",
            "postgres://%2Frun%2Fpostgresql/d",
        ] {
            assert!(is_on_this_machine(url), "{url}");
        }
        for url in ["postgres://u@db/d", "postgres://u@10.0.0.1/d", "postgres://u@localhost/d?host=db", "rubbish"] {
            assert!(!is_on_this_machine(url), "{url}");
        }
    }
}
