//! What is measured and what it is measured beside: a private PostgreSQL, the service as a process
//! of its own on it, and the server of yardsticks. Or a service that runs already.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep_until};
use url::Url;
use uuid::Uuid;

use super::{
    BenchArgs, check, machine,
    plan::Size,
    process::Process,
    wire::{Wire, get, post},
};
use crate::{
    private_pg::{DATABASE, Options, PrivatePg},
    store::yardsticks,
};

/// Connections that prepare a job.
const PREPARING: usize = 64;
/// Connections that fill the table, and messages in each of their requests.
const FILLING: u64 = 4;
const FILL_BATCH: u64 = 1000;
/// From this many on, what was filled in is put in order as the server's own housekeeping would
/// in the next minute, so that it does not fall into a measurement.
const SETTLE_FROM: u64 = 50_000;
/// How long the private PostgreSQL may take to stop; what it has not written by then nobody wants.
const STOP: Duration = Duration::from_secs(3);
/// Database of the yardsticks, apart from the service's: in one database, each of their
/// notifications would wake the service too.
const YARDSTICKS: &str = "yardsticks";
/// A server that has worked for a while has about so many to write over (`min_wal_size` of the private one).
const WAL_SEGMENTS: u32 = 62;
const GATEWAY: &str = "bench-gateway";

/// An agent with one open session of its own.
#[derive(Debug, Clone)]
pub struct Feed {
    pub agent: String,
    pub token: String,
    pub session: String,
}

/// The messages that were filled in: numbers `first..first + count`.
#[derive(Debug, Clone, Copy)]
pub struct Filled {
    pub first: u64,
    pub count: u64,
}

/// The service and its surroundings.
pub struct World {
    pub address: SocketAddr,
    /// Token of an admin.
    pub admin: String,
    /// Token of the gateway that opened all sessions.
    pub gateway: String,
    /// The service's database, if it is ours.
    pub database_url: Option<String>,
    own: Option<Own>,
    yardsticks: Process,
    folder: PathBuf,
    /// Numbers the messages of the whole run: what each says.
    numbers: Arc<AtomicU64>,
    /// Tells the agents of this run from others'.
    run: String,
    /// What to clear away at a service that goes on.
    made: Mutex<Vec<Feed>>,
}

/// What was started for the run.
struct Own {
    postgres: PrivatePg,
    service: Process,
    /// Name of the service's database.
    database: String,
}

impl World {
    /// Starts everything, or turns to the service of `--url`.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start(args: &BenchArgs) -> anyhow::Result<Self> {
        let base = args.database.data.clone().unwrap_or_else(std::env::temp_dir);
        let folder = base.join(format!("deskfeed-bench-{}", Uuid::new_v4().simple()));
        let started = Self::start_in(args, folder.clone()).await;
        if started.is_err() {
            remove(&folder);
        }
        started
    }

    async fn start_in(args: &BenchArgs, folder: PathBuf) -> anyhow::Result<Self> {
        make_folder(&folder)?;
        let log = folder.join("deskfeed.log");
        let (address, admin, database_url, own, yardsticks) =
            if let (Some(url), Some(admin)) = (&args.url, &args.admin_token) {
                let yardsticks = Process::start(&["bench-yardsticks"], &[], &log).await?;
                (resolve(url).await?, admin.clone(), None, None, yardsticks)
            } else {
                let options = Options { stop_with_parent: true, ..args.database.private_pg(folder.join("postgres")) };
                let postgres = PrivatePg::start(options).await?;
                if args.size != Size::Smoke {
                    yardsticks::make_wal(&postgres.url(), WAL_SEGMENTS).await?;
                }
                yardsticks::create_database(&postgres.url(), YARDSTICKS).await?;
                let url = postgres.url_of(YARDSTICKS);
                let yardsticks = Process::start(&["bench-yardsticks"], &[("DATABASE_URL", &url)], &log).await?;
                let admin = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
                let service = service(free_port()?, &postgres.url(), &admin, &log).await?;
                let (address, url) = (service.address, postgres.url());
                (address, admin, Some(url), Some(Own { postgres, service, database: DATABASE.to_owned() }), yardsticks)
            };
        let run = Uuid::new_v4().simple().to_string().split_off(24);
        let mut world = Self {
            address,
            admin,
            gateway: String::new(),
            database_url,
            own,
            yardsticks,
            folder,
            numbers: Arc::default(),
            run,
            made: Mutex::default(),
        };
        world.make_gateway().await?;
        Ok(world)
    }

    async fn make_gateway(&mut self) -> anyhow::Result<()> {
        let mut wire = Wire::connect(self.address).await?;
        ask(&mut wire, &self.admin, "/admin/gateway", &json!({"Id": GATEWAY})).await?;
        self.gateway = token(&mut wire, &self.admin, "gateway", GATEWAY).await?;
        Ok(())
    }

    /// Stops what was started and removes it; at a service of `--url`, closes the sessions and takes the agents
    /// off the desk.
    ///
    /// # Errors
    /// When something does not stop.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let ended = self.end().await;
        remove(&self.folder);
        ended
    }

    async fn end(&mut self) -> anyhow::Result<()> {
        self.yardsticks.stop().await?;
        if let Some(mut own) = self.own.take() {
            own.service.stop().await?;
            own.postgres.stop(STOP).await?;
        } else {
            let mut wire = Wire::connect(self.address).await?;
            let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
            for feed in made {
                ask(&mut wire, &self.admin, "/admin/agent", &json!({"Id": feed.agent, "Status": "away"})).await?;
                ask(&mut wire, &self.admin, "/session/close", &json!({"SessionId": feed.session})).await?;
            }
        }
        Ok(())
    }

    /// The server of yardsticks. It knows `/ok`, and `/naive` and `/single` where PostgreSQL is ours.
    pub fn yardsticks(&self) -> SocketAddr {
        self.yardsticks.address
    }

    /// The database of the yardsticks, if PostgreSQL is ours.
    pub fn yardsticks_url(&self) -> Option<String> {
        self.own.as_ref().map(|own| own.postgres.url_of(YARDSTICKS))
    }

    /// Where our PostgreSQL keeps its data.
    pub fn data(&self) -> Option<&Path> {
        self.own.as_ref().map(|_| self.folder.as_path())
    }

    pub fn service_pid(&self) -> Option<u32> {
        self.own.as_ref()?.service.pid()
    }

    /// Waits until the service knows that it is the only one; before that, it notifies others.
    pub async fn until_alone(&self) {
        if let Some(own) = &self.own {
            sleep_until((own.service.served + std::time::Duration::from_secs(0) + Duration::from_secs(1)).into()).await;
        }
    }

    /// Resident memory of the service.
    pub fn rss_bytes(&self) -> Option<u64> {
        machine::rss_bytes(self.service_pid()?)
    }

    /// Processor time that the service has used.
    pub fn cpu_time(&self) -> Option<Duration> {
        machine::cpu_time(self.service_pid()?)
    }

    /// Stops the service and starts it anew on the same port; gives the moment at which it served again.
    ///
    /// # Errors
    /// When the service is not ours, or does not start.
    pub async fn restart_service(&mut self) -> anyhow::Result<Instant> {
        let log = self.folder.join("deskfeed.log");
        let own = self.own.as_mut().context("only a service of our own can be restarted")?;
        let url = self.database_url.as_deref().context("a service of our own has a database")?;
        own.service.stop().await?;
        own.service = service(self.address.port(), url, &self.admin, &log).await?;
        Ok(own.service.served)
    }

    /// Begins with an empty table and a fresh service, on the same port. Feeds made before are gone.
    ///
    /// # Errors
    /// As [`World::restart_service`].
    pub async fn renew(&mut self) -> anyhow::Result<()> {
        let own = self.own.as_mut().context("only a database of our own can be made anew")?;
        let fresh = format!("bench_{}", Uuid::new_v4().simple());
        let beside = own.postgres.url_of(YARDSTICKS);
        yardsticks::create_database(&beside, &fresh).await?;
        self.database_url = Some(own.postgres.url_of(&fresh));
        let old = std::mem::replace(&mut own.database, fresh);
        self.restart_service().await?;
        yardsticks::drop_database(&beside, &old).await?;
        self.make_gateway().await
    }

    /// The source of numbers for messages.
    pub fn numbers(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.numbers)
    }

    /// Makes agents, each online with one open session of its own and no room for another, and a token.
    /// `tag` tells them from those of other calls.
    ///
    /// # Errors
    /// When the service refuses something.
    pub async fn feeds(&self, count: usize, tag: &str) -> anyhow::Result<Vec<Feed>> {
        let mut tasks = JoinSet::new();
        for worker in 0..PREPARING.min(count) {
            let (address, admin, gateway) = (self.address, self.admin.clone(), self.gateway.clone());
            let name = format!("bench-{}-{tag}", self.run);
            tasks.spawn(async move {
                let mut wire = Wire::connect(address).await?;
                let mut made = Vec::new();
                for number in (worker..count).step_by(PREPARING) {
                    let (agent, session) = (format!("{name}-{number}"), format!("{name}-session-{number}"));
                    let wanted = json!({"Id": agent, "Name": agent, "MaxSessions": 1, "Status": "online"});
                    ask(&mut wire, &admin, "/admin/agent", &wanted).await?;
                    let token = token(&mut wire, &admin, "agent", &agent).await?;
                    let open =
                        json!({"SessionId": session, "FromId": "customer", "FromName": "Customer", "ToId": agent});
                    let opened = ask(&mut wire, &gateway, "/session/open", &open).await?;
                    ensure!(opened["ToId"] == agent.as_str(), "session {session} was opened as {opened}");
                    made.push((number, Feed { agent, token, session }));
                }
                anyhow::Ok(made)
            });
        }
        let mut feeds = Vec::with_capacity(count);
        while let Some(made) = tasks.join_next().await {
            feeds.extend(made??);
        }
        feeds.sort_by_key(|(number, _)| *number);
        let feeds: Vec<Feed> = feeds.into_iter().map(|(_, feed)| feed).collect();
        if self.own.is_none() {
            self.made.lock().unwrap_or_else(PoisonError::into_inner).extend(feeds.iter().cloned());
        }
        Ok(feeds)
    }

    /// Appends so many messages, in arrays of 1,000. Message number n goes to feed n, counted round
    /// ([`check::turn`]).
    ///
    /// # Errors
    /// When one is refused.
    pub async fn fill(&self, feeds: &[Feed], events: u64, progress: &ProgressBar) -> anyhow::Result<Filled> {
        let filled = Filled { first: self.numbers.fetch_add(events, Ordering::Relaxed), count: events };
        let sessions: Arc<[String]> = feeds.iter().map(|feed| feed.session.clone()).collect();
        let (batches, done) = (events.div_ceil(FILL_BATCH), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        for worker in 0..FILLING {
            let (address, gateway, sessions) = (self.address, self.gateway.clone(), Arc::clone(&sessions));
            let (done, progress) = (Arc::clone(&done), progress.clone());
            tasks.spawn(async move {
                let mut wire = Wire::connect(address).await?;
                for batch in (worker..batches).step_by(usize::try_from(FILLING)?) {
                    let count = FILL_BATCH.min(events - batch * FILL_BATCH);
                    let body = check::batch(&sessions, filled.first + batch * FILL_BATCH, count);
                    let answered = wire.exchange_ok(&post("/message/send", &gateway, &body)).await?;
                    let versions = check::versions_of(&answered.body)?;
                    let is_whole = versions.len() as u64 == count && versions.windows(2).all(|pair| pair[0] < pair[1]);
                    ensure!(is_whole, "an array of {count} messages was answered with {} versions", versions.len());
                    let done = done.fetch_add(count, Ordering::Relaxed) + count;
                    progress.set_message(format!("filling the table: {done} of {events} messages"));
                }
                anyhow::Ok(())
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        if let Some(url) = self.database_url.as_deref().filter(|_| events >= SETTLE_FROM) {
            progress.set_message("vacuum, checkpoint");
            yardsticks::settle(url).await?;
        }
        Ok(filled)
    }

    /// The newest version.
    ///
    /// # Errors
    /// When the service does not answer.
    pub async fn head(&self) -> anyhow::Result<i64> {
        let mut wire = Wire::connect(self.address).await?;
        let answered = wire.exchange_ok(&get("/message/query?a=now&wait=0", &self.gateway)).await?;
        Ok(answered.feed_next)
    }

    /// How many polls the service holds.
    ///
    /// # Errors
    /// When the service does not answer, or does not count them.
    pub async fn parked(&self) -> anyhow::Result<usize> {
        let mut wire = Wire::connect(self.address).await?;
        let answered = wire.exchange_ok(&get("/metrics", &self.admin)).await?;
        let text = String::from_utf8_lossy(&answered.body);
        let held = text.lines().find_map(|line| line.strip_prefix("deskfeed_poll_waiters "));
        // A gauge that was never touched is not there.
        Ok(held.unwrap_or("0").trim().split('.').next().unwrap_or("0").parse()?)
    }

    /// Waits until the service holds at least so many polls.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub async fn until_parked(&self, count: usize) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let parked = self.parked().await?;
            if parked >= count {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{parked} polls of {count} are parked");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the polls of a job that has ended are gone.
    ///
    /// # Errors
    /// When they stay for a minute.
    pub async fn until_none_is_parked(&self) -> anyhow::Result<()> {
        // Others poll at a service that is not ours.
        let until = Instant::now() + Duration::from_secs(60);
        while self.own.is_some() {
            let parked = self.parked().await?;
            if parked == 0 {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{parked} polls stay parked though their clients are gone");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

async fn service(port: u16, database_url: &str, admin: &str, log: &Path) -> anyhow::Result<Process> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string();
    let arguments = ["serve", "--listen", &listen, "--migrate", "--polls-per-token", "1000000"];
    Process::start(&arguments, &[("DATABASE_URL", database_url), ("DESKFEED_ADMIN_TOKEN", admin)], log).await
}

/// A port below those that the kernel gives to clients: while a service is being restarted, one of
/// ten thousand clients that come back could be given its port, even be connected to itself.
fn free_port() -> anyhow::Result<u16> {
    let end = machine::first_ephemeral_port().max(10_100);
    for _ in 0..100 {
        let random = u16::try_from(Uuid::new_v4().as_u128() % u128::from(end - 10_000))?;
        let port = 10_000 + random;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("there is no free port")
}

async fn resolve(url: &str) -> anyhow::Result<SocketAddr> {
    let url = Url::parse(url).context("--url cannot be read; it looks like http://127.0.0.1:8080")?;
    ensure!(url.scheme() == "http", "--url must begin with http://; what is measured is the service, not TLS");
    let host = url.host_str().context("--url has no host")?;
    let port = url.port_or_known_default().unwrap_or(80);
    let mut found = tokio::net::lookup_host((host, port)).await?;
    found.next().with_context(|| format!("{host} has no address"))
}

/// One that PostgreSQL's account may pass through when we are root.
fn make_folder(folder: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711))?;
    Ok(())
}

fn remove(folder: &Path) {
    if let Err(error) = std::fs::remove_dir_all(folder) {
        tracing::warn!(folder = %folder.display(), %error, "the run's folder is left behind; remove it by hand");
    }
}

async fn token(wire: &mut Wire, admin: &str, role: &str, subject: &str) -> anyhow::Result<String> {
    let made = ask(wire, admin, "/admin/token", &json!({"Role": role, "Subject": subject})).await?;
    Ok(made["Token"].as_str().context("/admin/token gave no Token")?.to_owned())
}

async fn ask(wire: &mut Wire, token: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
    let request = post(path, token, body.to_string().as_bytes());
    let answered = wire.exchange_ok(&request).await.with_context(|| format!("POST {path}"))?;
    Ok(serde_json::from_slice(&answered.body)?)
}
