//! PostgreSQL servers of the run: the primary that everything is measured on, and a standby of it. They stop with
//! this process, however it ends.

mod programs;
mod settings;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sqlx::{ConnectOptions, postgres::PgConnectOptions};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};
use url::form_urlencoded::byte_serialize;

pub use self::programs::PostgresArgs;
use self::programs::Programs;
use crate::machine;

/// The role that owns everything. Only the owner of the socket's folder, and root, can connect.
const USER: &str = "deskfeed";
/// Part of the socket's name; the servers do not listen on TCP.
const PORT: u16 = 5432;
/// The kernel allows 107 bytes for the path of a socket.
const SOCKET_PATH_MAX: usize = 100;
const START_MAX: Duration = Duration::from_secs(60);
/// How long a server may take to shut down. Nobody needs what it has not written by then.
const STOP_MAX: Duration = Duration::from_secs(3);
const POLL_PAUSE: Duration = Duration::from_millis(20);
/// Stops server $1, whose postmaster.pid is $2, when standard input closes: when this process is gone.
const STOP_WITH_PARENT: &str = r#"
is_there() { IFS= read -r pid < "$2" && [ "$pid" = "$1" ] && kill -0 "$1"; }
read -r _
is_there "$@" && kill -INT "$1"
left=10
while is_there "$@" && [ "$left" -gt 0 ]; do sleep 1; left=$((left - 1)); done
is_there "$@" && kill -QUIT "$1"
"#;

/// A running server.
pub struct Postgres {
    programs: Programs,
    folder: PathBuf,
    socket: PathBuf,
    child: Child,
    /// Holds the write end of the pipe that [`STOP_WITH_PARENT`] reads.
    watcher: Child,
}

impl Postgres {
    /// Creates a cluster in `folder` and starts its server, with the settings that `deskfeed serve` gives its own.
    ///
    /// # Errors
    /// When no usable PostgreSQL is installed, or with the server's log when it does not start.
    pub async fn start(args: &PostgresArgs, folder: PathBuf) -> anyhow::Result<Self> {
        let programs = Programs::find(args).await?;
        programs.make_folder(&folder)?;
        let data = folder.join("data");
        let arguments = ["--username", USER, "--encoding=UTF8", "--locale=C", "--data-checksums", "--auth=trust"];
        let mut initdb = programs.command("initdb");
        run(initdb.args(arguments).arg("--pgdata").arg(&data)).await?;
        Self::serve(programs, folder, &[]).await
    }

    /// Copies this server with `pg_basebackup` into `folder` and starts the copy as a standby that follows
    /// `primary`, a connection string.
    ///
    /// # Errors
    /// When a program fails.
    pub async fn standby(&self, folder: PathBuf, primary: &str) -> anyhow::Result<Self> {
        let programs = self.programs.clone();
        programs.make_folder(&folder)?;
        let from = format!("host={} port={PORT} user={USER}", self.socket.display());
        let mut copy = programs.command("pg_basebackup");
        copy.args(["--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf", "--dbname", &from]);
        run(copy.arg("--pgdata").arg(folder.join("data"))).await?;
        Self::serve(programs, folder, &[("primary_conninfo", primary)]).await
    }

    /// Restarts a standby so that it follows `primary`, a connection string.
    ///
    /// # Errors
    /// When it does not stop or start.
    pub async fn follow(&mut self, primary: &str) -> anyhow::Result<()> {
        self.shut_down().await?;
        *self = Self::serve(self.programs.clone(), self.folder.clone(), &[("primary_conninfo", primary)]).await?;
        Ok(())
    }

    async fn serve(programs: Programs, folder: PathBuf, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let socket = socket_folder(&folder);
        programs.make_folder(&socket)?;
        let data = folder.join("data");
        let log = folder.join("log");
        let both = fs::File::options().create(true).append(true).open(&log)?;
        let mut command = programs.command("postgres");
        command.arg("-D").arg(&data).args(settings::arguments(&socket, settings));
        let mut child = command.stdin(Stdio::null()).stdout(both.try_clone()?).stderr(both).spawn()?;
        let pid = child.id().context("PostgreSQL has ended already")?;
        let mut watcher = programs.command("/bin/sh");
        watcher.args(["-c", STOP_WITH_PARENT, "sh", &pid.to_string()]).arg(data.join("postmaster.pid"));
        let watcher = watcher.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let until = Instant::now() + START_MAX;
        let options: PgConnectOptions = url_of(&socket, "postgres").parse()?;
        while let Err(error) = options.connect().await {
            let has_ended = child.try_wait()?.is_some();
            if has_ended || Instant::now() > until {
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!("PostgreSQL in {} does not serve: {error}; {}", folder.display(), tail(&said));
            }
            sleep(POLL_PAUSE).await;
        }
        Ok(Self { programs, folder, socket, child, watcher })
    }

    /// URL of a database, through the socket.
    pub fn url(&self, database: &str) -> String {
        url_of(&self.socket, database)
    }

    /// Path of the socket itself, for a proxy.
    pub fn socket(&self) -> PathBuf {
        self.socket.join(format!(".s.PGSQL.{PORT}"))
    }

    /// How a standby connects through the socket.
    pub fn conninfo(&self) -> String {
        conninfo(&self.socket.display().to_string(), PORT)
    }

    /// Shuts the server down; kills it (SIGQUIT) when that takes too long.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.shut_down().await?;
        if !self.socket.starts_with(&self.folder) {
            fs::remove_dir_all(&self.socket)?;
        }
        Ok(())
    }

    async fn shut_down(&mut self) -> anyhow::Result<()> {
        for signal in [Signal::SIGINT, Signal::SIGQUIT] {
            // The process is not reaped yet, so the pid is still its own.
            if let Some(pid) = self.child.id() {
                kill(Pid::from_raw(i32::try_from(pid)?), signal)?;
            }
            if let Ok(ended) = timeout(STOP_MAX, self.child.wait()).await {
                ended?;
                self.watcher.kill().await?;
                return Ok(());
            }
        }
        bail!("PostgreSQL in {} does not end", self.folder.display())
    }
}

/// How a standby connects through a proxy.
pub fn conninfo_at(address: SocketAddr) -> String {
    conninfo(&address.ip().to_string(), address.port())
}

fn conninfo(host: &str, port: u16) -> String {
    format!("host='{host}' port={port} user={USER} sslmode=disable application_name=bench")
}

/// URL of a database through a proxy on TCP.
pub fn url_at(address: SocketAddr, database: &str) -> String {
    format!("postgres://{USER}@{address}/{database}?sslmode=disable")
}

fn url_of(socket: &Path, database: &str) -> String {
    let host: String = byte_serialize(socket.to_string_lossy().as_bytes()).collect();
    format!("postgres://{USER}@localhost:{PORT}/{database}?host={host}&sslmode=disable")
}

/// In `folder`, or in the system's folder for temporary files where that path is too long.
fn socket_folder(folder: &Path) -> PathBuf {
    let inside = folder.join("socket");
    if inside.as_os_str().len() < SOCKET_PATH_MAX - ".s.PGSQL.5432".len() {
        return inside;
    }
    std::env::temp_dir().join(format!("deskfeed-bench-{}", uuid::Uuid::new_v4().simple()))
}

async fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.as_std().get_program().to_owned();
    let ended = command.stdin(Stdio::null()).output().await.with_context(|| program.display().to_string())?;
    let said = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.success(), "{} failed: {}", program.display(), tail(&said));
    Ok(())
}

/// The last 20 lines.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// A port outside of the kernel's ephemeral range: while a service restarts, one of the ten thousand clients that
/// reconnect could otherwise be given its port, or even connect to itself.
///
/// # Errors
/// When none is free.
pub fn free_port() -> anyhow::Result<u16> {
    let end = machine::first_ephemeral_port().max(10_100);
    for _ in 0..100 {
        let random = u16::try_from(uuid::Uuid::new_v4().as_u128() % u128::from(end - 10_000))?;
        let port = 10_000 + random;
        if std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("there is no free port")
}
