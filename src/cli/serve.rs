//! `deskfeed serve`, and [`Desk`]: the whole service, as tests use it too.

use std::{net::SocketAddr, num::NonZeroUsize, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use sqlx::PgConnection;
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::timeout,
};
use uuid::Uuid;

use super::{
    database::{Database, check_schema, connect, migrate},
    token,
};
use crate::{
    clock::Clock,
    config::ServeArgs,
    domain::{caller::Role, limits},
    http::{
        router::front,
        server::{self, Bound},
        state::{App, Parts, Rate},
    },
    lifecycle::Lifecycle,
    live::{
        ack_writer::AckWriter,
        append,
        auth::{activity::Activity, freshness::Freshness, tokens::Tokens},
        feed::{
            Feed, hints::Hints, listen::Listening, parked::Parked, poll::Polls, publisher::Publisher, relay::Relay,
        },
        upkeep,
    },
    store::{
        pool::{Db, is_on_this_machine},
        rights, tokens,
    },
    telemetry,
};

/// How long a start waits for the first contact with the database.
const FIRST_CONTACT: Duration = Duration::from_secs(30);
/// How long connections may take to end when the service stops. The rest of
/// [`limits::SHUTDOWN_S`] is for the writers and the private PostgreSQL.
const CONNECTIONS_END: Duration = Duration::from_secs(limits::SHUTDOWN_S - 4);

/// Runs the command; `page_threads` read pages, if there are any.
pub async fn run(args: &ServeArgs, page_threads: Option<&Handle>) -> anyhow::Result<ExitCode> {
    raise_open_files();
    let admin_token = args.admin_token()?;
    // Before anything slow: two services on one address are a common mistake.
    let bound = Bound::to(args.listen).with_context(|| {
        format!("cannot listen on {}; is another program using it? Set DESKFEED_LISTEN", args.listen)
    })?;
    let database = Database::own(&args.database).await?;
    let served = serve(args, admin_token, bound, &database, page_threads).await;
    database.stop().await?;
    served
}

async fn serve(
    args: &ServeArgs,
    admin_token: Option<String>,
    bound: Bound,
    database: &Database,
    page_threads: Option<&Handle>,
) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let db = match page_threads {
        Some(threads) => Db::with_page_threads(&database.url, args.db_readers, threads.clone()),
        None => Db::new(&database.url, args.db_readers),
    };
    let db = db.context("DATABASE_URL cannot be read; it looks like postgres://user:password@host:5432/database")?;
    let mut connection = connect(&db).await?;
    if database.is_private || args.migrate {
        migrate(&mut connection).await?;
    }
    check_schema(&mut connection).await?;
    check_settings(&mut connection, args.allow_unsafe).await?;
    if !database.is_private {
        log_rights(&mut connection).await?;
    }
    if database.is_private && admin_token.is_none() && !tokens::any_admin(&mut connection).await? {
        let secret = token::create(&mut connection, Role::Admin, None, None).await?;
        println!("Admin token (shown this once): {secret}");
    }
    drop(connection);

    let desk = Desk::start(args, admin_token.as_deref(), bound, db).await?;
    println!("deskfeed serves http://{} (Ctrl-C stops it)", desk.address());
    let crashed = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        () = desk.crashed() => true,
    };
    tracing::info!("stopping");
    let stopped = tokio::select! {
        () = desk.stop() => true,
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
    };
    Ok(if crashed || !stopped { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// How many threads serve requests and how many read pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threads {
    /// Threads for requests and everything else.
    pub service: usize,
    /// Threads for pages of the table; 0: they are read on those for requests.
    pub pages: usize,
}

impl Threads {
    /// As configured, or by what this machine has.
    pub fn of(args: &ServeArgs) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        // The start itself reports a setting that cannot be read.
        let url = args.database.url().ok().flatten();
        Self::on(cores, args.threads.map(usize::from), url.is_none_or(|url| is_on_this_machine(&url)))
    }

    /// PostgreSQL needs some of the cores if it shares them, and idle threads are woken all the same: with half as
    /// many, one sender is answered a third sooner (`bench/record`). Pages may then have all cores: nothing else
    /// wakes those threads.
    fn on(cores: usize, asked: Option<usize>, shared: bool) -> Self {
        let service = asked.unwrap_or(if shared { cores.div_ceil(2) } else { cores });
        Self { service, pages: if service < cores { cores } else { 0 } }
    }
}

/// A running service.
pub struct Desk {
    address: SocketAddr,
    /// Holds the writers' handles, too: a writer whose handles are all gone ends.
    app: App,
    /// The accept loop and the connections.
    serving: Lifecycle,
    /// Writers, relay and the like: they end after the connections.
    working: Lifecycle,
}

impl Desk {
    /// Starts the service on a database whose schema is current.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn start(args: &ServeArgs, admin_token: Option<&str>, bound: Bound, db: Db) -> anyhow::Result<Self> {
        telemetry::count_notices();
        let metrics = telemetry::metrics();
        let address = bound.address()?;
        let (serving, working) = (Lifecycle::default(), Lifecycle::default());
        let stopping = || working.stopping().clone();

        let freshness: Arc<Freshness> = Arc::default();
        let tokens = Arc::new(Tokens::new(db.clone(), Clock, Arc::clone(&freshness), admin_token));
        let parked = Arc::new(Parked::new(args.polls_per_token));
        let feed = Arc::new(Feed::new(Arc::clone(&freshness), args.timezone));
        let hints: Arc<Hints> = Arc::default();
        // Marks what this process notifies: its own appends are no news to it.
        let sender = Uuid::new_v4().as_u64_pair().0;
        let (publisher, committed) = Publisher::new(Arc::clone(&feed), Arc::clone(&hints));

        let (first_look, looked) = oneshot::channel();
        let relay = Relay {
            db: db.clone(),
            feed: Arc::clone(&feed),
            freshness: Arc::clone(&freshness),
            tokens: Arc::clone(&tokens),
            parked: Arc::clone(&parked),
            hints: Arc::clone(&hints),
            committed,
            first_look: Some(first_look),
        };
        working.spawn("relay", relay.run(stopping()));
        let listening = Listening { db: db.clone(), feed: Arc::clone(&feed), hints: Arc::clone(&hints), sender };
        working.spawn("listener", listening.run(stopping()));
        if !matches!(timeout(FIRST_CONTACT, looked).await, Ok(Ok(()))) {
            bail!("PostgreSQL does not answer; see the log for its reason");
        }
        if let Err(error) = tokens.preload().await {
            tracing::debug!(error = %error, "no tokens were preloaded");
        }

        let (writer, lane, notifier) = append::start(db.clone(), publisher, Arc::clone(&hints), sender);
        working.spawn("append lane", lane.run(stopping()));
        working.spawn("notifier", notifier.run(stopping()));
        let (acks, ack_task) = AckWriter::new(db.clone());
        working.spawn("ack writer", ack_task.run(stopping()));
        let activity: Arc<Activity> = Arc::default();
        let recording = upkeep::activity::run(
            Arc::clone(&activity),
            db.clone(),
            Arc::clone(&freshness),
            writer.clone(),
            stopping(),
        );
        working.spawn("activity", recording);
        working.spawn("partitions", upkeep::partitions::run(db.clone(), stopping()));

        let polls =
            Polls::new(db.clone(), Arc::clone(&feed), Arc::clone(&tokens), parked, acks, Arc::clone(&activity), Clock);
        let rate = Rate::new(args.requests_per_second);
        let app = App::new(Parts { db, feed, freshness, hints, tokens, writer, polls, activity, rate, metrics });
        let listener = bound.listen().with_context(|| {
            format!("cannot listen on {address}: another program began to meanwhile; stop one of them, or set DESKFEED_LISTEN")
        })?;
        serving.spawn("accept loop", server::serve(listener, front(app.clone()), serving.clone()));
        Ok(Self { address, app, serving, working })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Completes when a part of the service has died.
    pub async fn crashed(&self) {
        tokio::select! {
            () = self.serving.stopping().cancelled() => {}
            () = self.working.stopping().cancelled() => {}
        }
    }

    /// Stops: accepts nothing new, answers parked polls with what there is, finishes what is being written.
    pub async fn stop(&self) {
        self.app.feed.notices.drain();
        self.serving.stopping().cancel();
        if timeout(CONNECTIONS_END, self.serving.finished()).await.is_err() {
            tracing::warn!("some connections did not end in time; they are cut");
            self.serving.ending().cancel();
            self.serving.finished().await;
        }
        self.working.stopping().cancel();
        if timeout(Duration::from_secs(3), self.working.finished()).await.is_err() {
            tracing::warn!("the writers did not end in time");
        }
        self.app.db.close().await;
    }
}

/// Refuses settings with which a crash of PostgreSQL could lose what was acknowledged.
async fn check_settings(connection: &mut PgConnection, allow_unsafe: bool) -> anyhow::Result<()> {
    let unsafe_settings = crate::store::schema::unsafe_settings(connection).await?;
    if unsafe_settings.is_empty() {
        return Ok(());
    }
    let listed = unsafe_settings.join(", ");
    if allow_unsafe {
        tracing::warn!(
            settings = listed,
            "PostgreSQL may lose acknowledged messages in a crash; served all the same, as DESKFEED_ALLOW_UNSAFE says"
        );
        return Ok(());
    }
    bail!(
        "PostgreSQL runs with {listed}: a crash may lose messages that were acknowledged. Set them on, or DESKFEED_ALLOW_UNSAFE=1 to serve all the same"
    )
}

/// Logs what the database role may do beyond what the service needs, and what it lacks.
async fn log_rights(connection: &mut PgConnection) -> anyhow::Result<()> {
    let role = rights::current_role(connection).await?;
    let excess = rights::excess(connection, &role).await?;
    if !excess.is_empty() {
        tracing::warn!(
            role,
            excess = excess.join("; "),
            "the database role can do more than the service needs; have your DBA run deploy/roles.sql, and let \
             DATABASE_URL log in as deskfeed_app or a member of it (docs/dba.md, Roles)"
        );
    }
    let lacking = rights::lacking(connection, &role).await?;
    if !lacking.is_empty() {
        tracing::error!(
            role,
            lacking = lacking.join("; "),
            "the database role lacks rights that the service needs: requests will fail; run `deskfeed migrate` or \
             deploy/grants.sql as the owner of the tables (docs/dba.md, Roles)"
        );
    }
    Ok(())
}

/// Each parked poll is an open file. The soft limit is often 1024; the hard one is the operator's.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        tracing::debug!(error = %error, "the limit of open files stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_threads_where_the_service_leaves_cores() {
        let threads = |cores, asked, shared| {
            let Threads { service, pages } = Threads::on(cores, asked, shared);
            (service, pages)
        };
        assert_eq!(threads(2, None, true), (1, 2));
        assert_eq!(threads(8, None, true), (4, 8));
        assert_eq!(threads(8, None, false), (8, 0));
        assert_eq!(threads(1, None, true), (1, 0));
        assert_eq!(threads(4, Some(3), false), (3, 4));
        assert_eq!(threads(4, Some(16), true), (16, 0));
    }
}
