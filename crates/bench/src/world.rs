//! What is measured and what it is measured next to: a private PostgreSQL, service processes on it, and the server
//! of the yardsticks. Or a service that runs already.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep_until};
use url::Url;
use uuid::Uuid;

use crate::{
    args::BenchArgs,
    binary, check, machine,
    plan::Size,
    postgres::{Postgres, free_port},
    process::Process,
    wire::{Wire, get, post},
    yardsticks::tables,
};

/// Connections that prepare a job.
const PREPARING: usize = 64;
/// Connections that fill the table, and messages in each of their requests.
const FILLING: u64 = 4;
const FILL_BATCH: u64 = 1000;
/// From this many on, vacuum and checkpoint run right after filling, so that they do not fall into a measurement.
const SETTLE_FROM: u64 = 50_000;
/// A service that has just started takes this long until it knows that no other process appends.
const ALONE_AFTER: Duration = Duration::from_secs(16);
/// Database of the service until [`World::renew`].
const DATABASE: &str = "deskfeed";
/// Database of the yardsticks, apart from the service's: in one database, each of their notifications would wake
/// the service too.
const YARDSTICKS: &str = "yardsticks";
/// WAL segments that a server which has worked for a while keeps for reuse (`min_wal_size` of ours).
const WAL_SEGMENTS: u32 = 62;
/// How long polls may take to be parked, or to be gone.
const PARK_MAX: Duration = Duration::from_secs(60);
const PARK_PAUSE: Duration = Duration::from_millis(5);
const GATEWAY: &str = "bench-gateway";

/// An agent with one open session of its own.
#[derive(Debug, Clone)]
pub struct Feed {
    pub agent: String,
    pub token: String,
    pub session: String,
}

/// An agent or a gateway, and a token of it.
#[derive(Debug, Clone)]
pub struct Account {
    pub id: String,
    pub token: String,
}

/// The messages that were filled in: numbers `first..first + count`.
#[derive(Debug, Clone, Copy)]
pub struct Filled {
    pub first: u64,
    pub count: u64,
}

/// The service and its surroundings.
pub struct World {
    /// Of the first service process.
    pub address: SocketAddr,
    /// Token of an admin.
    pub admin: String,
    /// Token of the gateway that opens the sessions of [`World::feeds`].
    pub gateway_token: String,
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
    postgres: Postgres,
    /// The service's program.
    program: PathBuf,
    services: Vec<Process>,
    /// Database URL of each process.
    urls: Vec<String>,
    /// Name of the service's database.
    database: String,
}

impl World {
    /// Starts everything, or turns to the service of `--url`.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start(args: &BenchArgs) -> anyhow::Result<Self> {
        let program = if args.url.is_some() { PathBuf::new() } else { binary::find(args.service.as_deref())? };
        let base = args.data.clone().unwrap_or_else(std::env::temp_dir);
        let folder = base.join(format!("deskfeed-bench-{}", Uuid::new_v4().simple()));
        let started = Self::start_in(args, program, folder.clone()).await;
        if started.is_err() {
            remove(&folder);
        }
        started
    }

    async fn start_in(args: &BenchArgs, program: PathBuf, folder: PathBuf) -> anyhow::Result<Self> {
        make_folder(&folder)?;
        let log = folder.join("deskfeed.log");
        let this = std::env::current_exe()?;
        let (address, admin, own, yardsticks) = if let (Some(url), Some(admin)) = (&args.url, &args.admin_token) {
            let yardsticks = Process::start(&this, &["yardsticks"], &[], &log).await?;
            (resolve(url).await?, admin.clone(), None, yardsticks)
        } else {
            let postgres = Postgres::start(&args.postgres, folder.join("postgres")).await?;
            let maintenance = postgres.url("postgres");
            if args.size != Size::Smoke {
                tables::make_wal(&maintenance, WAL_SEGMENTS).await?;
            }
            tables::create_database(&maintenance, DATABASE).await?;
            tables::create_database(&maintenance, YARDSTICKS).await?;
            let url = postgres.url(YARDSTICKS);
            let yardsticks = Process::start(&this, &["yardsticks"], &[("DATABASE_URL", &url)], &log).await?;
            let admin = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
            let url = postgres.url(DATABASE);
            let service = service(&program, free_port()?, &url, &admin, &log).await?;
            let address = service.address;
            let own =
                Own { postgres, program, services: vec![service], urls: vec![url], database: DATABASE.to_owned() };
            (address, admin, Some(own), yardsticks)
        };
        let run = Uuid::new_v4().simple().to_string().split_off(24);
        let mut world = Self {
            address,
            admin,
            gateway_token: String::new(),
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
        self.gateway_token = token(&mut wire, &self.admin, "gateway", GATEWAY).await?;
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
            for service in &mut own.services {
                service.stop().await?;
            }
            own.postgres.stop().await?;
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
        self.own.as_ref().map(|own| own.postgres.url(YARDSTICKS))
    }

    /// The service's database, if it is ours.
    pub fn database_url(&self) -> Option<String> {
        self.own.as_ref().map(|own| own.postgres.url(&own.database))
    }

    /// Name of the service's database, for a URL through a proxy.
    pub fn database(&self) -> Option<&str> {
        self.own.as_ref().map(|own| own.database.as_str())
    }

    /// Our PostgreSQL.
    pub fn postgres(&self) -> Option<&Postgres> {
        self.own.as_ref().map(|own| &own.postgres)
    }

    /// The folder of the run.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where our PostgreSQL keeps its data.
    pub fn data(&self) -> Option<&Path> {
        self.own.as_ref().map(|_| self.folder.as_path())
    }

    /// Addresses of all service processes.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        match &self.own {
            Some(own) => own.services.iter().map(|service| service.address).collect(),
            None => vec![self.address],
        }
    }

    /// Of the first service process.
    pub fn service_pid(&self) -> Option<u32> {
        self.own.as_ref()?.services.first()?.pid()
    }

    /// Waits until a service process that runs alone knows it; before that, it notifies others.
    pub async fn until_alone(&self) {
        if let Some(service) = self.own.as_ref().and_then(|own| own.services.first()) {
            sleep_until((service.served + ALONE_AFTER).into()).await;
        }
    }

    /// Resident memory of the first service process.
    pub fn rss_bytes(&self) -> Option<u64> {
        machine::rss_bytes(self.service_pid()?)
    }

    /// Processor time that the first service process has used.
    pub fn cpu_time(&self) -> Option<Duration> {
        machine::cpu_time(self.service_pid()?)
    }

    /// Stops the service processes and starts one on each of `urls`; the first keeps its port. Returns when the last
    /// one began to serve.
    ///
    /// # Errors
    /// When the service is not ours, or does not start.
    pub async fn serve(&mut self, urls: &[String]) -> anyhow::Result<Instant> {
        let log = self.folder.join("deskfeed.log");
        let own = self.own.as_mut().context("only a service of our own can be restarted")?;
        for mut service in own.services.drain(..) {
            service.stop().await?;
        }
        own.urls = urls.to_vec();
        let mut served = Instant::now();
        for (number, url) in urls.iter().enumerate() {
            let port = if number == 0 { self.address.port() } else { free_port()? };
            let started = service(&own.program, port, url, &self.admin, &log).await?;
            served = started.served;
            own.services.push(started);
        }
        Ok(served)
    }

    /// Restarts the service processes as they were.
    ///
    /// # Errors
    /// As [`World::serve`].
    pub async fn restart_service(&mut self) -> anyhow::Result<Instant> {
        let urls = self.own.as_ref().map(|own| own.urls.clone()).unwrap_or_default();
        self.serve(&urls).await
    }

    /// Starts again with an empty database and one service process. Feeds created before are gone.
    ///
    /// # Errors
    /// As [`World::serve`].
    pub async fn renew(&mut self) -> anyhow::Result<()> {
        let own = self.own.as_mut().context("only a database of our own can be replaced")?;
        let fresh = format!("bench_{}", Uuid::new_v4().simple());
        let beside = own.postgres.url(YARDSTICKS);
        tables::create_database(&beside, &fresh).await?;
        let url = own.postgres.url(&fresh);
        let old = std::mem::replace(&mut own.database, fresh);
        self.serve(&[url]).await?;
        tables::drop_database(&beside, &old).await?;
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
            let (address, admin, gateway) = (self.address, self.admin.clone(), self.gateway_token.clone());
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

    /// Creates agents that are online and have no session. `tag` tells them from those of other calls.
    ///
    /// # Errors
    /// When the service refuses something.
    pub async fn agents(&self, count: usize, tag: &str, max_sessions: u32) -> anyhow::Result<Vec<Account>> {
        let mut wire = Wire::connect(self.address).await?;
        let mut agents = Vec::with_capacity(count);
        for number in 0..count {
            let id = format!("bench-{}-{tag}-{number}", self.run);
            let wanted = json!({"Id": id, "Name": id, "MaxSessions": max_sessions, "Status": "online"});
            ask(&mut wire, &self.admin, "/admin/agent", &wanted).await?;
            let token = token(&mut wire, &self.admin, "agent", &id).await?;
            agents.push(Account { id, token });
        }
        Ok(agents)
    }

    /// Creates a gateway. `tag` tells it from those of other calls.
    ///
    /// # Errors
    /// When the service refuses something.
    pub async fn gateway(&self, tag: &str) -> anyhow::Result<Account> {
        let mut wire = Wire::connect(self.address).await?;
        let id = format!("bench-{}-{tag}-gateway", self.run);
        ask(&mut wire, &self.admin, "/admin/gateway", &json!({"Id": id})).await?;
        let token = token(&mut wire, &self.admin, "gateway", &id).await?;
        Ok(Account { id, token })
    }

    /// Sets agents away: they are assigned no session any more.
    ///
    /// # Errors
    /// When the service refuses something.
    pub async fn set_away(&self, agents: &[Account]) -> anyhow::Result<()> {
        let mut wire = Wire::connect(self.address).await?;
        for agent in agents {
            ask(&mut wire, &self.admin, "/admin/agent", &json!({"Id": agent.id, "Status": "away"})).await?;
        }
        Ok(())
    }

    /// Starts again with an empty database if it is ours.
    ///
    /// # Errors
    /// As [`World::renew`].
    pub async fn renew_if_own(&mut self) -> anyhow::Result<()> {
        if self.own.is_some() { self.renew().await } else { Ok(()) }
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
            let (address, gateway, sessions) = (self.address, self.gateway_token.clone(), Arc::clone(&sessions));
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
        if let Some(url) = self.database_url().filter(|_| events >= SETTLE_FROM) {
            progress.set_message("vacuum, checkpoint");
            tables::settle(&url).await?;
        }
        Ok(filled)
    }

    /// The newest version.
    ///
    /// # Errors
    /// As [`head`].
    pub async fn head(&self) -> anyhow::Result<i64> {
        head(self.address, &self.gateway_token).await
    }

    /// Waits until the first service process holds at least so many polls.
    ///
    /// # Errors
    /// As [`until_parked`].
    pub async fn until_parked(&self, count: usize) -> anyhow::Result<()> {
        until_parked(self.address, &self.admin, count).await
    }

    /// How many polls the first service process holds.
    ///
    /// # Errors
    /// As [`parked`].
    pub async fn parked(&self) -> anyhow::Result<usize> {
        parked(self.address, &self.admin).await
    }

    /// Waits until the polls of a job that has ended are gone.
    ///
    /// # Errors
    /// When they stay for a minute.
    pub async fn until_none_is_parked(&self) -> anyhow::Result<()> {
        // Others poll at a service that is not ours.
        let Some(own) = &self.own else { return Ok(()) };
        let until = Instant::now() + PARK_MAX;
        for service in &own.services {
            while parked(service.address, &self.admin).await? > 0 {
                ensure!(Instant::now() < until, "polls stay parked though their clients are gone");
                tokio::time::sleep(PARK_PAUSE).await;
            }
        }
        Ok(())
    }
}

/// The newest version of a server.
///
/// # Errors
/// When it does not answer.
pub async fn head(server: SocketAddr, token: &str) -> anyhow::Result<i64> {
    let mut wire = Wire::connect(server).await?;
    Ok(wire.exchange_ok(&get("/message/query?a=now&wait=0", token)).await?.feed_next)
}

/// How many polls a server holds.
///
/// # Errors
/// When it does not answer, or does not count them.
pub async fn parked(server: SocketAddr, token: &str) -> anyhow::Result<usize> {
    let mut wire = Wire::connect(server).await?;
    let answered = wire.exchange_ok(&get("/metrics", token)).await?;
    let text = String::from_utf8_lossy(&answered.body);
    let held = text.lines().find_map(|line| line.strip_prefix("deskfeed_poll_waiters "));
    // A gauge that was never touched is absent.
    Ok(held.unwrap_or("0").trim().split('.').next().unwrap_or("0").parse()?)
}

/// Waits until a server holds at least so many polls.
///
/// # Errors
/// When it does not within a minute.
pub async fn until_parked(server: SocketAddr, token: &str, count: usize) -> anyhow::Result<()> {
    let until = Instant::now() + PARK_MAX;
    loop {
        let parked = parked(server, token).await?;
        if parked >= count {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{parked} polls of {count} are parked");
        tokio::time::sleep(PARK_PAUSE).await;
    }
}

async fn service(program: &Path, port: u16, database_url: &str, admin: &str, log: &Path) -> anyhow::Result<Process> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string();
    let arguments = ["serve", "--listen", &listen, "--migrate", "--polls-per-token", "1000000"];
    Process::start(program, &arguments, &[("DATABASE_URL", database_url), ("DESKFEED_ADMIN_TOKEN", admin)], log).await
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
