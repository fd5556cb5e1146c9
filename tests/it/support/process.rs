//! The program as a process of its own, the way an operator runs it.

use std::{
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

/// How long a start may take on a machine that has much else to do.
pub const START: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);

/// A command line of the program, with nothing of the tests' own settings in its environment.
pub fn command(arguments: &[&str]) -> Command {
    // The tests' own clients need it; installing it twice is no harm.
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut command = Command::new(env!("CARGO_BIN_EXE_deskfeed"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("DESKFEED_") && text != "DESKFEED_PG_BIN" || text.starts_with("DATABASE_URL") {
            command.env_remove(name);
        }
    }
    command.args(arguments).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Runs a command to its end.
pub async fn run(arguments: &[&str]) -> Ended {
    end_of(command(arguments)).await
}

/// Runs a prepared command to its end.
pub async fn end_of(mut command: Command) -> Ended {
    let output = timeout(START, command.output()).await.expect("it ends in time").expect("the program runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

/// A running service. It is killed when this is dropped.
#[derive(Debug)]
pub struct Service {
    child: Child,
    pid: Pid,
    /// `http://127.0.0.1:port`
    pub base: String,
    pub out: Output,
    pub err: Output,
}

impl Service {
    /// Starts `deskfeed serve` on a free port and waits until it serves.
    pub async fn serve(arguments: &[&str]) -> Self {
        let mut all = vec!["serve", "--listen", "127.0.0.1:0"];
        all.extend(arguments);
        Self::start(command(&all)).await.unwrap_or_else(|ended| panic!("the service does not start: {ended:?}"))
    }

    /// Starts a prepared command; gives what it said when it ends instead of serving.
    pub async fn start(mut command: Command) -> Result<Self, Ended> {
        let mut child = command.spawn().expect("the program runs");
        let pid = Pid::from_raw(child.id().expect("it has just begun").cast_signed());
        let (out, err) = (Output::default(), Output::default());
        out.follow(child.stdout.take().expect("piped"));
        err.follow(child.stderr.take().expect("piped"));
        let until = Instant::now() + START;
        loop {
            if let Some(base) = out.text().lines().find_map(address) {
                return Ok(Self { child, pid, base, out, err });
            }
            if let Some(status) = child.try_wait().expect("it can be waited for") {
                out.finished().await;
                err.finished().await;
                return Err(Ended { code: status.code(), out: out.text(), err: err.text() });
            }
            assert!(Instant::now() < until, "it neither serves nor ends: {} {}", out.text(), err.text());
            sleep(LOOK).await;
        }
    }

    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    pub fn signal(&self, signal: Signal) {
        // It is our child and not reaped before `ended`, so the pid is still its own.
        kill(self.pid, signal).expect("the service is there");
    }

    /// Waits for the process to end.
    pub async fn ended(&mut self, within: Duration) -> ExitStatus {
        let ended = timeout(within, self.child.wait()).await;
        ended.unwrap_or_else(|_| panic!("it does not end: {}", self.err.text())).expect("it can be waited for")
    }

    pub async fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.ended(START).await;
    }

    /// Ends it as an operator does; it must take no longer and end no other way than it promises.
    pub async fn terminate(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.ended(Duration::from_secs(10)).await;
        assert_eq!(status.code(), Some(0), "{}", self.err.text());
    }
}

fn address(line: &str) -> Option<String> {
    let rest = line.strip_prefix("deskfeed serves ")?;
    rest.split_whitespace().next().map(str::to_owned)
}

/// What a process has written so far.
#[derive(Debug, Clone, Default)]
pub struct Output(Arc<Mutex<(String, bool)>>);

impl Output {
    pub fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    fn follow(&self, from: impl AsyncRead + Unpin + Send + 'static) {
        let written = self.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(from).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let mut written = written.0.lock().unwrap_or_else(PoisonError::into_inner);
                written.0.push_str(&line);
                written.0.push('\n');
            }
            written.0.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        });
    }

    /// Waits until all that was written has been read, for a moment: a child of the process may hold the pipe open.
    async fn finished(&self) {
        for _ in 0..100 {
            if self.0.lock().unwrap_or_else(PoisonError::into_inner).1 {
                return;
            }
            sleep(LOOK).await;
        }
    }
}
