//! `deskfeed serve`, and [`Desk`]: the whole service, as tests use it too.

use std::{net::SocketAddr, num::NonZeroUsize, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use sqlx::PgConnection;
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

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
        activity::{self, Activity},
        append::{self, notifier},
        freshness::Freshness,
        parked::Parked,
        partitions,
        poll::Polls,
        relay::{self, Live, Relay},
        tokens::Tokens,
    },
    store::{
        pool::{Db, is_on_this_machine},
        rights, tokens,
    },
    telemetry,
};

/// Batches that may wait for the relay; beyond that it looks for itself.
const RELAY_QUEUE: usize = 64;
/// How long a start waits for the first contact with the database.
const FIRST_CONTACT: Duration = Duration::from_secs(30);
/// How long connections may take to end when the service stops. The rest of
/// [`limits::SHUTDOWN_S`] is for the writers and the private PostgreSQL.
const CONNECTIONS_END: Duration = Duration::from_secs(limits::SHUTDOWN_S - 4);

/// `page_threads` read pages, if there are any.
pub async fn run(args: &ServeArgs, page_threads: Option<&Handle>) -> anyhow::Result<ExitCode> {
    raise_open_files();
    let admin_token = args.admin_token()?;
    // Before anything that takes long: two services on one address are a common mistake.
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
        tell_of_rights(&mut connection).await?;
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

/// How many threads do what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threads {
    /// Requests, and all else.
    pub service: usize,
    /// Pages of the table; 0: they are read where requests are served.
    pub pages: usize,
}

impl Threads {
    /// As asked, or by what this machine has.
    pub fn of(args: &ServeArgs) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        // A setting that cannot be read is told of by the start itself.
        let url = args.database.url().ok().flatten();
        Self::on(cores, args.threads.map(usize::from), url.is_none_or(|url| is_on_this_machine(&url)))
    }

    /// PostgreSQL needs some of the cores where it shares them, and threads that find nothing to do are woken
    /// all the same: with half as many, one sender is answered a third sooner. Pages may have all cores then:
    /// those threads are woken by nothing else.
    fn on(cores: usize, asked: Option<usize>, shared: bool) -> Self {
        let service = asked.unwrap_or(if shared { cores.div_ceil(2) } else { cores });
        Self { service, pages: if service < cores { cores } else { 0 } }
    }
}

/// A running service.
pub struct Desk {
    address: SocketAddr,
    live: Arc<Live>,
    /// The accept loop and the connections.
    serving: Lifecycle,
    /// Writers, relay and the like: they end after the connections.
    working: Lifecycle,
    /// Keeps the writers' handles: a writer whose handles are all gone ends.
    _app: App,
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
        let freshness = Arc::new(Freshness::default());
        let tokens = Tokens::new(db.clone(), Clock, Arc::clone(&freshness), admin_token);
        let parked = Arc::new(Parked::new(args.polls_per_token));
        let live = Arc::new(Live::new(db.clone(), tokens, Arc::clone(&freshness), parked, args.timezone));

        let (committed, to_relay) = mpsc::channel(RELAY_QUEUE);
        let (first_look, looked) = oneshot::channel();
        let relay = Relay { live: Arc::clone(&live), committed: to_relay, first_look: Some(first_look) };
        working.spawn("relay", relay.run(working.stopping().clone()));
        working.spawn("listener", relay::listen(Arc::clone(&live), working.stopping().clone()));
        if !matches!(timeout(FIRST_CONTACT, looked).await, Ok(Ok(()))) {
            bail!("PostgreSQL does not answer; see the log for its reason");
        }

        if let Err(error) = live.tokens.preload().await {
            tracing::debug!(error = %error, "no tokens were read ahead");
        }

        let (heads, notified) = watch::channel(0);
        working.spawn("notifier", notifier::run(Arc::clone(&live), notified, working.stopping().clone()));
        let (writer, lanes) = append::lanes(&live, committed, heads);
        for lane in lanes {
            working.spawn("append lane", lane.run(working.stopping().clone()));
        }
        let (acks, ack_task) = AckWriter::new(Arc::clone(&live));
        working.spawn("ack writer", ack_task.run(working.stopping().clone()));
        let activity = Arc::new(Activity::default());
        working.spawn(
            "activity",
            activity::run(Arc::clone(&activity), db.clone(), freshness, writer.clone(), working.stopping().clone()),
        );

        working.spawn("partitions", partitions::run(db, working.stopping().clone()));

        let app = App::new(Parts {
            live: Arc::clone(&live),
            writer,
            polls: Polls::new(Arc::clone(&live), acks, Arc::clone(&activity), Clock),
            activity,
            rate: Rate::new(args.requests_per_second),
            metrics,
        });
        let listener = bound.listen().with_context(|| {
            format!("cannot listen on {address}: another program began to meanwhile; stop one of them, or set DESKFEED_LISTEN")
        })?;
        serving.spawn("accept loop", server::serve(listener, front(app.clone()), serving.clone()));
        Ok(Self { address, live, serving, working, _app: app })
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

    /// Stops: takes nothing new, answers parked polls with what there is, finishes what is being
    /// written.
    pub async fn stop(&self) {
        self.live.bulletin.drain();
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
        self.live.db.close().await;
    }
}

/// Whether a crash of PostgreSQL could take what was acknowledged.
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

/// Says in the log when the database role may do more than the service needs, or less.
async fn tell_of_rights(connection: &mut PgConnection) -> anyhow::Result<()> {
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
