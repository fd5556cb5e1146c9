//! A tiny process that stops the server when this one ends, however it ends.
//!
//! It holds the reading end of a pipe whose writing end only we hold, so the kernel tells it of our
//! death. (PR_SET_PDEATHSIG would not do: it fires when the *thread* that spawned ends.)

use std::path::Path;
use std::process::Stdio;

use tokio::process::{Child, Command};

use super::account::Account;
use super::error::{Error, file};

/// $1: the server's pid, $2: its postmaster.pid. The pid is checked before each signal, so that it
/// is never a stranger's. The loop ends when the server has taken its file away, at the latest after
/// half a minute, with an abort (SIGQUIT) that loses nothing committed.
const SCRIPT: &str = r#"
is_there() { IFS= read -r pid < "$2" && [ "$pid" = "$1" ] && kill -0 "$1"; }
read -r _
is_there "$@" && kill -INT "$1"
left=30
while is_there "$@" && [ "$left" -gt 0 ]; do sleep 1; left=$((left - 1)); done
is_there "$@" && kill -QUIT "$1"
"#;

#[derive(Debug)]
pub struct Watcher(Child);

impl Watcher {
    pub fn spawn(server_pid: i32, pgdata: &Path, account: &Account) -> Result<Watcher, Error> {
        let shell = Path::new("/bin/sh");
        let mut command: Command = account.command(shell);
        command
            .args(["-c", SCRIPT, "sh", &server_pid.to_string()])
            .arg(pgdata.join("postmaster.pid"))
            // std makes both ends close-on-exec: no other child can keep the pipe open.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.spawn().map(Watcher).map_err(file("run", shell))
    }

    /// For a stop in good order, which needs nobody to watch over it.
    pub async fn dismiss(mut self) {
        if let Err(error) = self.0.kill().await {
            tracing::debug!(%error, "the watcher had ended already");
        }
    }
}
