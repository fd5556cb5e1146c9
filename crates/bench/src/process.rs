//! Child processes: the service under test, and the server of yardsticks, which is this program again. As separate
//! processes their memory and processor time can be told apart.

use std::{
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// How long a process may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(60);
/// Settings of the operator's own service, removed from the children's environment.
const SETTINGS: [&str; 13] = [
    "DATABASE_URL",
    "DATABASE_URL_FILE",
    "DESKFEED_DATA",
    "DESKFEED_LISTEN",
    "DESKFEED_ADMIN_TOKEN",
    "DESKFEED_ADMIN_TOKEN_FILE",
    "DESKFEED_TIMEZONE",
    "DESKFEED_MIGRATE",
    "DESKFEED_ALLOW_UNSAFE",
    "DESKFEED_POLLS_PER_TOKEN",
    "DESKFEED_REQUESTS_PER_SECOND",
    "DESKFEED_DB_READERS",
    "DESKFEED_LOG_FORMAT",
];

/// A running server.
pub struct Process {
    child: Child,
    pub address: SocketAddr,
    /// When it reported its address.
    pub served: Instant,
    /// Kept open, so that the process can still write.
    _said: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts a program and waits until it reports its address. It logs to `log`.
    ///
    /// # Errors
    /// With its log, when it does not serve.
    pub async fn start(
        program: &Path,
        arguments: &[&str],
        settings: &[(&str, &str)],
        log: &Path,
    ) -> anyhow::Result<Self> {
        let file = std::fs::File::options().create(true).append(true).open(log)?;
        let mut command = Command::new(program);
        for name in SETTINGS {
            command.env_remove(name);
        }
        let mut child = command
            .args(arguments)
            .env("DESKFEED_LOG", "warn")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()?;
        let mut said = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        let address = timeout(PATIENCE, address(&mut said)).await.context("it does not serve in time")?;
        let Ok(address) = address else {
            let logged = std::fs::read_to_string(log).unwrap_or_default();
            bail!("{} {} does not serve: {}", program.display(), arguments.join(" "), logged.trim());
        };
        Ok(Self { child, address, served: Instant::now(), _said: said })
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Stops it with SIGTERM.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id() {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid)?);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        }
        timeout(PATIENCE, self.child.wait()).await.context("a process does not end")??;
        Ok(())
    }
}

/// Reads the address from a line such as `deskfeed serves http://127.0.0.1:8080 (...)`.
async fn address(said: &mut Lines<BufReader<ChildStdout>>) -> anyhow::Result<SocketAddr> {
    while let Some(line) = said.next_line().await? {
        if let Some((_, address)) = line.split_once("http://") {
            return Ok(address.split([' ', '/']).next().unwrap_or_default().parse()?);
        }
    }
    bail!("it has ended")
}
