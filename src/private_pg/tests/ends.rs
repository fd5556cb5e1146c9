//! Every way an owner or a server may end.

use std::io::{BufRead, BufReader, Write, stdin};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};

use super::*;

/// Another process that owns a folder: this test binary, told to run `owner` alone.
struct Owner {
    process: Child,
    server_pid: i32,
}

impl Owner {
    fn start(temp: &TempFolder, ending: &str) -> Owner {
        let (_, module) = module_path!().split_once("::").expect("a module");
        let mut process = Command::new(std::env::current_exe().expect("ourselves"))
            .args(["--exact", &format!("{module}::owner"), "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut input = process.stdin.take().expect("piped");
        write!(input, "{}\n{ending}\n", temp.0.display()).expect("told");
        // Its stdin must stay open: its end would end the owner.
        process.stdin = Some(input);
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let server_pid =
            lines.find_map(|line| line.expect("text").split_once("server pid=")?.1.parse().ok()).expect("a server");
        Owner { process, server_pid }
    }

    fn kill(mut self) -> i32 {
        self.process.kill().expect("killed");
        self.process.wait().expect("gone");
        self.server_pid
    }
}

/// Not a test: what `Owner` runs. With nothing on stdin it does nothing.
#[tokio::test]
#[ignore = "a helper of the other tests"]
async fn owner() {
    let mut lines = stdin().lines().map(|line| line.expect("text"));
    let (Some(folder), Some(ending)) = (lines.next(), lines.next()) else {
        return;
    };
    // Forgotten: the folder is the other process's to remove.
    let temp = std::mem::ManuallyDrop::new(TempFolder(folder.into()));
    let options = Options { stop_with_parent: ending == "stop", ..temp.options() };
    let pg = PrivatePg::start(options).await.expect("started");
    println!("\nserver pid={}", pg.pid());
    assert_eq!(lines.next(), None);
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("sent");
}

#[tokio::test]
async fn a_server_left_by_a_killed_owner_is_adopted_and_stopped() {
    let temp = TempFolder::new();
    let left = Owner::start(&temp, "leave").kill();
    let found = PrivatePg::find_running(&temp.data()).await.expect("looked");
    write_note(&found.expect("it runs")).await;

    let pg = PrivatePg::start(temp.options()).await.expect("adopted");
    assert!(pg.adopted());
    assert_eq!(pg.pid(), left);
    assert_eq!(read_note(&pg.url()).await, "kept");
    pg.stop(STOP_MAX).await.expect("stopped");
    assert!(!is_alive(left));
    assert!(!temp.data().join("pgdata/postmaster.pid").exists());
}

#[tokio::test]
async fn a_start_after_both_were_killed_recovers() {
    let temp = TempFolder::new();
    let owner = Owner::start(&temp, "leave");
    let url = PrivatePg::find_running(&temp.data()).await.expect("looked");
    write_note(&url.expect("it runs")).await;
    send(owner.server_pid, Signal::SIGKILL);
    owner.kill();

    let pg = PrivatePg::start(temp.options()).await.expect("started");
    assert!(!pg.adopted());
    assert_eq!(read_note(&pg.url()).await, "kept");
    pg.stop(STOP_MAX).await.expect("stopped");
}

#[tokio::test]
async fn a_server_that_is_shutting_down_is_waited_for() {
    let temp = TempFolder::new();
    let left = Owner::start(&temp, "leave").kill();
    // SIGTERM: it stays up, and lets nobody in, until this connection goes.
    let url = PrivatePg::find_running(&temp.data()).await.expect("looked");
    let connection = connect(&url.expect("it runs")).await;
    send(left, Signal::SIGTERM);
    let (pg, closed) = tokio::join!(PrivatePg::start(temp.options()), async {
        tokio::task::yield_now().await;
        connection.close().await
    });
    closed.expect("closed");
    let pg = pg.expect("started");
    pg.stop(STOP_MAX).await.expect("stopped");
    wait_until_gone(left);
}

#[tokio::test]
async fn with_its_parent_a_server_stops_however_that_ends() {
    let temp = TempFolder::new();
    let server = Owner::start(&temp, "stop").kill();
    wait_until_gone(server);
    assert!(!temp.data().join("pgdata/postmaster.pid").exists());
}

#[tokio::test]
async fn a_dropped_owner_tells_the_server_to_stop() {
    let temp = TempFolder::new();
    let pg = PrivatePg::start(temp.options()).await.expect("started");
    let pid = pg.pid();
    drop(pg);
    let pg = PrivatePg::start(temp.options()).await.expect("started again");
    assert_ne!(pg.pid(), pid);
    pg.stop(STOP_MAX).await.expect("stopped");
}

/// The cuts fall into initdb, between it and the server, and into the server's start.
#[tokio::test]
async fn a_cancelled_start_can_be_repeated() {
    let temp = TempFolder::new();
    for cut_ms in [10, 100, 300, 500, 700, 900, 1100] {
        let cut = Duration::from_millis(cut_ms);
        // Whether it was in time does not matter: what it started is dropped either way.
        drop(tokio::time::timeout(cut, PrivatePg::start(temp.options())).await);
    }
    let pg = PrivatePg::start(temp.options()).await.expect("started");
    assert!(connect(&pg.url()).await.ping().await.is_ok());
    pg.stop(STOP_MAX).await.expect("stopped");
}

#[tokio::test]
async fn stop_ends_at_its_deadline_even_if_the_server_does_not() {
    let temp = TempFolder::new();
    let pg = PrivatePg::start(temp.options()).await.expect("started");
    let pid = pg.pid();
    send(pid, Signal::SIGSTOP);
    let deadline = Duration::from_secs(1);
    let start = Instant::now();
    let failure = pg.stop(deadline).await.expect_err("it cannot stop");
    assert!(matches!(failure, Error::StillRunning { .. }), "{failure:?}");
    assert!(start.elapsed() < 2 * deadline);
    send(pid, Signal::SIGCONT);
    wait_until_gone(pid);
}
