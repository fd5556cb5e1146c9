//! Connections: pools for reads, single ones for the writers and the listener.

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

use crate::domain::{fault::Fault, limits};

/// How long after its last use a connection is taken for alive.
const BELIEVED_FOR: Duration = Duration::from_secs(1);

/// What a connection is for; shown to the DBA in `pg_stat_activity.application_name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Reads,
    Appends,
    Acks,
    Listens,
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
            Self::Commands => "deskfeed/commands",
        }
    }
}

/// What every connection of the service sets. The time-outs let PostgreSQL end what a hanging
/// process left behind; the plan settings are argued in the module documentation of `store`.
fn session_settings() -> String {
    format!(
        "set statement_timeout = {}; set lock_timeout = {}; set idle_in_transaction_session_timeout = {}; \
         set client_connection_check_interval = 1000; \
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
    readers: PgPool,
    /// None: pages are read as everything else is.
    pages: Option<Pages>,
    doubt: Doubt,
}

/// Where pages are read. A connection belongs to the threads that opened it, so these have their own.
#[derive(Debug, Clone)]
struct Pages {
    threads: Handle,
    readers: PgPool,
}

/// Since when connections are no longer believed that were used before.
#[derive(Debug, Clone)]
struct Doubt {
    started: Instant,
    /// In milliseconds since `started`.
    since_ms: Arc<AtomicU64>,
}

impl Doubt {
    fn new() -> Self {
        Self { started: Instant::now(), since_ms: Arc::default() }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether a connection that was last used so long ago is taken for alive.
    fn believes(&self, idle_for: Duration) -> bool {
        let used_ms = self.now_ms().saturating_sub(u64::try_from(idle_for.as_millis()).unwrap_or(u64::MAX));
        idle_for < BELIEVED_FOR && used_ms > self.since_ms.load(Ordering::Acquire)
    }
}

impl Db {
    /// Prepares connections to `url`; none is opened yet.
    ///
    /// # Errors
    /// When `url` cannot be read.
    pub fn new(url: &str, readers_max: u32) -> super::Result<Self> {
        let options = PgConnectOptions::from_str(url)?.disable_statement_logging();
        let doubt = Doubt::new();
        let readers = readers(&options, readers_max, &doubt);
        Ok(Self { options, readers, pages: None, doubt })
    }

    /// [`Db::new`] with threads for pages, which have five of eight connections.
    ///
    /// # Errors
    /// When `url` cannot be read.
    pub fn with_page_threads(url: &str, readers_max: u32, threads: Handle) -> super::Result<Self> {
        let others = readers_max * 3 / 8;
        if others == 0 {
            return Self::new(url, readers_max);
        }
        let mut db = Self::new(url, others)?;
        // The pool's own task and its sockets are the threads' too.
        let entered = threads.enter();
        let readers = readers(&db.options, readers_max - others, &db.doubt);
        drop(entered);
        db.pages = Some(Pages { threads, readers });
        Ok(db)
    }

    /// A connection of its own, outside the pool.
    ///
    /// # Errors
    /// When the server cannot be reached in [`limits::DB_ACQUIRE_MS`].
    pub async fn connect(&self, purpose: Purpose) -> super::Result<PgConnection> {
        let options = self.options.clone().application_name(purpose.application_name());
        deadline(limits::DB_ACQUIRE_MS, async {
            let mut connection = PgConnection::connect_with(&options).await?;
            if purpose != Purpose::Commands {
                set_up(&mut connection, purpose).await?;
            }
            Ok(connection)
        })
        .await
    }

    /// A pooled connection for one read or small change.
    ///
    /// # Errors
    /// 50300 when none is free in [`limits::DB_ACQUIRE_MS`].
    pub async fn lease(&self) -> Result<Lease, Fault> {
        Lease::of(&self.readers).await
    }

    /// Does `work`, which reads a page, where pages are read. It is given up when nobody waits for it
    /// any more.
    ///
    /// # Errors
    /// As `work`, or 50300 when no connection is free in [`limits::DB_ACQUIRE_MS`].
    pub async fn page<T, F>(&self, work: impl FnOnce(Lease) -> F + Send + 'static) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send,
    {
        let Some(Pages { threads, readers }) = &self.pages else { return work(self.lease().await?).await };
        let readers = readers.clone();
        let page = threads.spawn(async move { work(Lease::of(&readers).await?).await });
        AbortOnDropHandle::new(page).await.map_err(Fault::internal)?
    }

    /// PostgreSQL was away: whatever was connected to it before may be dead.
    pub fn doubt(&self) {
        self.doubt.since_ms.store(self.doubt.now_ms(), Ordering::Release);
    }

    /// How to connect, for those who cannot use ours (the listener).
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
        std::iter::once(&self.readers).chain(self.pages.as_ref().map(|pages| &pages.readers))
    }
}

fn readers(options: &PgConnectOptions, most: u32, doubt: &Doubt) -> PgPool {
    let believing = doubt.clone();
    PgPoolOptions::new()
        .max_connections(most)
        .acquire_timeout(Duration::from_millis(limits::DB_ACQUIRE_MS))
        .idle_timeout(Duration::from_secs(60))
        .max_lifetime(Duration::from_secs(1800))
        // To ask each time whether a connection still works is a round trip for each read. One that worked a
        // moment ago is believed, unless somebody has met PostgreSQL away since; who is the first to meet it
        // is told to come back.
        .test_before_acquire(false)
        .before_acquire(move |connection, meta| {
            let is_believed = believing.believes(meta.idle_for);
            Box::pin(async move { Ok(is_believed || connection.ping().await.is_ok()) })
        })
        .after_connect(|connection, _| Box::pin(set_up(connection, Purpose::Reads)))
        .connect_lazy_with(options.clone().application_name(Purpose::Reads.application_name()))
}

/// Whether a database's URL leads to this very machine: by a socket or a loopback address.
pub fn is_on_this_machine(url: &str) -> bool {
    PgConnectOptions::from_str(url).is_ok_and(|options| {
        let host = options.get_host().trim_matches(['[', ']']);
        let is_loopback = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        options.get_socket().is_some() || host.starts_with('/') || host == "localhost" || is_loopback
    })
}

async fn set_up(connection: &mut PgConnection, purpose: Purpose) -> super::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(session_settings())).execute(&mut *connection).await?;
    if purpose == Purpose::Appends {
        let standby: bool = sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(connection).await?;
        if standby {
            return Err(sqlx::Error::Configuration(
                "DATABASE_URL leads to a standby, which cannot be written to; point it at the primary".into(),
            ));
        }
    }
    Ok(())
}

/// A pooled connection that goes back to the pool only when [`Lease::finish`] was called: one that
/// was dropped in the middle of something (a client went away, a time-out) is closed instead,
/// because nobody knows what is still on its way.
pub struct Lease {
    connection: PoolConnection<Postgres>,
    finished: bool,
}

impl Lease {
    async fn of(pool: &PgPool) -> Result<Self, Fault> {
        Ok(Self { connection: pool.acquire().await?, finished: false })
    }

    pub fn finish(mut self) {
        self.finished = true;
    }

    /// [`Lease::finish`], unless a statement still has much to give that nobody wants.
    pub fn finish_unless(mut self, cut: bool) {
        self.finished = !cut;
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
        if !self.finished {
            self.connection.close_on_drop();
        }
    }
}

/// Runs `work` for at most `ms` milliseconds.
///
/// # Errors
/// `PoolTimedOut` when the time is over; the connection it used must then be dropped.
pub async fn deadline<T>(ms: u64, work: impl Future<Output = super::Result<T>>) -> super::Result<T> {
    tokio::time::timeout(Duration::from_millis(ms), work).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// [`deadline`] for reads.
///
/// # Errors
/// As `work`, or `PoolTimedOut`.
pub async fn read_deadline<T>(work: impl Future<Output = super::Result<T>>) -> super::Result<T> {
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
