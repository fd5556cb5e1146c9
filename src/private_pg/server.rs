//! The server process: adopted when a killed owner left one behind, else started; stopped in the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::PgConnection;
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout};

use super::account::Account;
use super::cluster::tail;
use super::error::{Error, file};
use super::folder::Folder;
use super::postmaster::{Postmaster, is_alive};
use super::programs::Programs;
use super::settings;
use super::socket::{Answer, SocketDir};

/// A server that neither answers nor says that it is starting.
const READY_MAX: Duration = Duration::from_secs(60);
/// How long the traces of a dead server may keep a new one from starting: its last backends, or
/// itself as a zombie of an init that is slow to reap.
const TRACES_MAX: Duration = Duration::from_secs(15);
const TRACES_PAUSE: Duration = Duration::from_millis(250);
const POLL_PAUSE: Duration = Duration::from_millis(20);
/// Of the time given to `stop`, what is kept for the abort that follows a shutdown that hangs.
const ABORT_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Server {
    folder: PathBuf,
    pid: i32,
    /// None when adopted: then it is not our child, and its file says whether the pid is still its own.
    child: Option<Child>,
    adopted: Option<Postmaster>,
    socket: SocketDir,
    stopped: bool,
}

impl Server {
    /// The server that a killed owner left behind; None when it is dead or does not answer, and
    /// then PostgreSQL itself decides, at the start of another, whether the folder is free.
    pub async fn adopt(folder: &Path) -> Result<Option<(Server, PgConnection)>, Error> {
        let mut patience = Patience::new(TRACES_MAX);
        loop {
            let Some(found) = Postmaster::of(folder)?.filter(Postmaster::looks_alive) else {
                return Ok(None);
            };
            // It writes down its socket a moment after its pid.
            if let Some(dir) = &found.socket_dir {
                let socket = SocketDir::at(dir.clone());
                match socket.call("postgres").await {
                    Answer::Ready(connection) => {
                        let server = Server {
                            folder: folder.to_owned(),
                            pid: found.pid,
                            child: None,
                            adopted: Some(found),
                            socket,
                            stopped: false,
                        };
                        return Ok(Some((server, connection)));
                    }
                    Answer::Refused(source) => {
                        let doing = "to let deskfeed in";
                        return Err(Error::Refused { doing, source });
                    }
                    Answer::Busy => patience.renew("shutting down or recovering"),
                    Answer::Silent => {}
                }
            }
            if patience.is_over() {
                return Ok(None);
            }
            sleep(POLL_PAUSE).await;
        }
    }

    /// Starts a server and waits until it answers.
    pub async fn start(
        folder: &Folder,
        programs: &Programs,
        account: &Account,
        asked: &[(String, String)],
    ) -> Result<(Server, PgConnection), Error> {
        let give_up = Instant::now() + TRACES_MAX;
        loop {
            let (mut server, log_start) = Server::spawn(folder, programs, account, asked)?;
            let failure = match server.wait_ready(folder, log_start).await {
                Ok(connection) => return Ok((server, connection)),
                Err(failure) => failure,
            };
            let passes = matches!(&failure, Error::Failed { log_tail, .. } if names_traces(log_tail));
            if !passes || Instant::now() > give_up {
                return Err(failure);
            }
            sleep(TRACES_PAUSE).await;
        }
    }

    fn spawn(
        folder: &Folder,
        programs: &Programs,
        account: &Account,
        asked: &[(String, String)],
    ) -> Result<(Server, u64), Error> {
        let socket = SocketDir::make(folder.path(), account)?;
        let (log, log_start) = folder.open_log()?;
        let both = log.try_clone().map_err(file("open", folder.log_path()))?;
        let postgres = programs.bin.join("postgres");
        let child = account
            .command(&postgres)
            .arg("-D")
            .arg(folder.pgdata())
            .args(settings::arguments(asked, &socket))
            .stdin(Stdio::null())
            .stdout(both)
            .stderr(log)
            .spawn()
            .map_err(file("run", &postgres))?;
        // None only once it has been reaped, which it can't have been yet.
        let pid = child.id().map_or(0, u32::cast_signed);
        let server =
            Server { folder: folder.path().to_owned(), pid, child: Some(child), adopted: None, socket, stopped: false };
        Ok((server, log_start))
    }

    async fn wait_ready(&mut self, folder: &Folder, log_start: u64) -> Result<PgConnection, Error> {
        let mut patience = Patience::new(READY_MAX);
        loop {
            if let Some(status) = self.exit_status()? {
                self.stopped = true;
                return Err(failed(format!("PostgreSQL ended as it started ({status})"), folder, log_start));
            }
            match self.socket.call("postgres").await {
                Answer::Ready(connection) => return Ok(connection),
                Answer::Refused(source) => {
                    let doing = "to let deskfeed in";
                    return Err(Error::Refused { doing, source });
                }
                Answer::Busy => patience.renew("recovering"),
                Answer::Silent => {}
            }
            if patience.is_over() {
                let what = format!("PostgreSQL did not answer within {} s", READY_MAX.as_secs());
                return Err(failed(what, folder, log_start));
            }
            sleep(POLL_PAUSE).await;
        }
    }

    fn exit_status(&mut self) -> Result<Option<ExitStatus>, Error> {
        match &mut self.child {
            Some(child) => child.try_wait().map_err(file("wait for the server of", &self.folder)),
            None => Ok(None),
        }
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn is_adopted(&self) -> bool {
        self.adopted.is_some()
    }

    pub fn socket(&self) -> &SocketDir {
        &self.socket
    }

    /// Fast shutdown; when most of `deadline` is over, an abort. Returns when the server is gone.
    pub async fn stop(mut self, deadline: Duration) -> Result<(), Error> {
        let abort = ABORT_MAX.min(deadline / 3);
        self.signal(Signal::SIGINT);
        if timeout(deadline.saturating_sub(abort), self.gone()).await.is_err() {
            tracing::warn!(pid = self.pid, "PostgreSQL is slow to shut down; aborting it");
            self.signal(Signal::SIGQUIT);
            if timeout(abort, self.gone()).await.is_err() {
                self.stopped = true;
                return Err(Error::StillRunning { pid: self.pid });
            }
        }
        self.stopped = true;
        self.socket.forget(&self.folder);
        Ok(())
    }

    /// Our child's pid is ours until it is reaped; another's may have passed to a stranger.
    fn signal(&mut self, signal: Signal) {
        let is_ours = match (&self.child, &self.adopted) {
            (Some(child), _) => child.id().is_some(),
            (None, adopted) => Postmaster::of(&self.folder).is_ok_and(|now| now.is_some() && now == *adopted),
        };
        if !is_ours {
            return;
        }
        if let Err(error) = kill(Pid::from_raw(self.pid), signal) {
            tracing::debug!(pid = self.pid, %error, "the server had ended already");
        }
    }

    async fn gone(&mut self) {
        if let Some(child) = &mut self.child {
            // An error means that there is nothing left to wait for.
            if let Err(error) = child.wait().await {
                tracing::debug!(%error, "waiting for PostgreSQL");
            }
            return;
        }
        while is_alive(self.pid) {
            sleep(POLL_PAUSE).await;
        }
    }
}

/// A start that is given up, or an owner that returns early, leaves no server behind for long.
impl Drop for Server {
    fn drop(&mut self) {
        if !self.stopped {
            self.signal(Signal::SIGINT);
        }
    }
}

/// How long to wait for a server that says nothing. One that says it is busy (a recovery may take
/// minutes) is waited for: stopping it would only make it begin again.
struct Patience {
    limit: Duration,
    until: Instant,
    told: bool,
}

impl Patience {
    fn new(limit: Duration) -> Patience {
        Patience { limit, until: Instant::now() + limit, told: false }
    }

    fn renew(&mut self, because: &'static str) {
        self.until = Instant::now() + self.limit;
        if !self.told {
            tracing::info!(because, "waiting for PostgreSQL");
            self.told = true;
        }
    }

    fn is_over(&self) -> bool {
        Instant::now() > self.until
    }
}

/// What PostgreSQL says of a server that is dead or dying but not all gone: the two sentences of its
/// `CreateLockFile`. They are English because the server runs with LC_ALL=C.
fn names_traces(log_tail: &str) -> bool {
    log_tail.contains("lock file \"postmaster.pid\"") || log_tail.contains("pre-existing shared memory block")
}

fn failed(what: String, folder: &Folder, log_start: u64) -> Error {
    let log = folder.log_path();
    let log_tail = match fs::read(&log) {
        Ok(bytes) => {
            let start = usize::try_from(log_start).unwrap_or(0).min(bytes.len());
            tail(&String::from_utf8_lossy(&bytes[start..]))
        }
        Err(error) => format!("({error})"),
    };
    Error::Failed { what, log, log_tail }
}
