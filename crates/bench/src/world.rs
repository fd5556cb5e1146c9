//! The system under test: a private PostgreSQL, service processes on it, and the server of the yardsticks. Or a running
//! service (`--url`).

mod accounts;
mod watch;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde_json::json;
use url::Url;
use uuid::Uuid;

use self::accounts::{ask, token};
pub use self::{
    accounts::{Account, Feed},
    watch::{head, until_parked},
};
use crate::{
    args::BenchArgs,
    binary, machine,
    plan::Size,
    postgres::{Postgres, free_port},
    process::Process,
    wire::Wire,
    yardsticks::tables,
};

/// Database of the service until [`World::renew`].
const DATABASE: &str = "deskfeed";
/// Database of the yardsticks. In the service's database, each of their notifications would wake the service too.
const YARDSTICKS: &str = "yardsticks";
/// WAL segments that a server keeps for reuse (`min_wal_size` of ours).
const WAL_SEGMENTS: u32 = 62;
const GATEWAY: &str = "bench-gateway";

/// The service and what it runs on.
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
    /// Next message number of the run.
    numbers: Arc<AtomicU64>,
    /// Part of the ids of this run's agents.
    run: String,
    /// What to clean up at a service of `--url`.
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
    /// Starts everything, or connects to the service of `--url`.
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

    /// Stops everything that was started and removes its files; at a service of `--url`, closes the sessions and sets
    /// the agents away.
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

    /// Address of the server of yardsticks. It serves `/ok`, and the naive routes where PostgreSQL is ours.
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

    /// The service's program, if the service is ours.
    pub fn service_program(&self) -> Option<&Path> {
        self.own.as_ref().map(|own| own.program.as_path())
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

    /// Starts again with an empty database if it is ours.
    ///
    /// # Errors
    /// As [`World::renew`].
    pub async fn renew_if_own(&mut self) -> anyhow::Result<()> {
        if self.own.is_some() { self.renew().await } else { Ok(()) }
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

/// Creates a folder that PostgreSQL's account may traverse when we are root.
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
