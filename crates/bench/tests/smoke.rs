//! The benchmark at its smallest: every job gives its figures and finds all that was sent. How fast anything was
//! does not matter here.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    sync::Mutex,
    time::timeout,
};

const ADMIN_TOKEN: &str = "an admin token for the benchmark of a running service";

/// A debug build next to other tests takes its time.
const PATIENCE: Duration = Duration::from_secs(300);

/// The benchmark, with nothing of the tests' own settings in its environment.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deskfeed-bench"));
    for name in ["DATABASE_URL", "DESKFEED_DATA", "DESKFEED_ADMIN_TOKEN"] {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// One run at a time: several starve each other, and the service then refuses what it cannot do in time.
static RUNS: Mutex<()> = Mutex::const_new(());

/// Runs the benchmark; returns what it printed as JSON, and its exit code.
async fn bench(arguments: &[&str]) -> (Value, Option<i32>) {
    let mut all = vec!["--size", "smoke", "--json"];
    all.extend(arguments);
    let _alone = RUNS.lock().await;
    let ended = timeout(PATIENCE, command(&all).output()).await.expect("it ends in time").expect("it runs");
    let errors = String::from_utf8_lossy(&ended.stderr);
    let printed = serde_json::from_slice(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {errors}"));
    (printed, ended.status.code())
}

fn list<'a>(printed: &'a Value, name: &str) -> &'a Vec<Value> {
    printed[name].as_array().unwrap_or_else(|| panic!("no {name}: {printed}"))
}

/// The jobs that have figures, all of which are numbers.
fn measured(printed: &Value) -> HashSet<&str> {
    let figures = list(printed, "figures");
    for figure in figures {
        assert!(figure["value"].as_f64().is_some_and(f64::is_finite), "{figure}");
        let rounds = figure["rounds"].as_array().expect("rounds");
        assert_eq!(Some(rounds.len() as u64), printed["rounds"].as_u64(), "{figure}");
        if !figure["yardstick"].is_null() {
            assert!(figure["ratio"].as_f64().is_some_and(f64::is_finite), "{figure}");
        }
    }
    figures.iter().filter_map(|figure| figure["job"].as_str()).collect()
}

fn value(printed: &Value, job: &str, what: &str, metric: &str) -> f64 {
    let found = list(printed, "figures").iter().find(|figure| {
        figure["job"] == job && figure["what"] == what && figure["metric"] == metric && figure["yardstick"].is_null()
    });
    found.and_then(|figure| figure["value"].as_f64()).unwrap_or_else(|| panic!("no {job}, {what}, {metric}"))
}

#[tokio::test]
async fn the_writing_jobs_give_their_figures_and_lose_nothing() {
    let out = std::env::temp_dir().join(format!("deskfeed-bench-test-{}", uuid::Uuid::new_v4().simple()));
    let folder = out.to_str().expect("a plain name");
    let (printed, code) = bench(&["--jobs", "append,batch,disk", "--rounds", "2", "--out", folder]).await;
    assert_eq!((list(&printed, "failures").len(), code), (0, Some(0)), "{printed}");
    assert_eq!(measured(&printed), HashSet::from(["append", "batch", "disk", "yardsticks"]));
    assert!(value(&printed, "append", "16 senders", "throughput") > 0.0);
    assert!(value(&printed, "append", "1 sender", "p99") >= value(&printed, "append", "1 sender", "p50"));
    // A message has 300 bytes of content; whatever else, it takes more than that.
    assert!(value(&printed, "disk", "messages of 300 bytes", "size") > 300.0);
    assert_eq!(printed["machine"]["postgresql fsync"], "on");

    let kept = std::fs::read(out.join("results.json")).expect("results.json");
    assert_eq!(serde_json::from_slice::<Value>(&kept).expect("JSON"), printed);
    for name in ["machine.txt", "report.txt"] {
        assert!(std::fs::read_to_string(out.join(name)).is_ok_and(|text| !text.is_empty()), "{name}");
    }
    std::fs::remove_dir_all(&out).expect("it can be removed");
}

#[tokio::test]
async fn the_reading_jobs_give_their_figures_and_every_reader_gets_what_was_sent() {
    let (printed, code) = bench(&["--jobs", "wake,fanout,pages,parked,restart,growth"]).await;
    assert_eq!((list(&printed, "failures").len(), code), (0, Some(0)), "{printed}");
    let jobs = HashSet::from(["wake", "fanout", "pages", "parked", "restart", "growth", "yardsticks"]);
    assert_eq!(measured(&printed), jobs);
    assert!(value(&printed, "wake", "20 parked, quiet", "p50") > 0.0);
    assert!(value(&printed, "fanout", "20 readers", "throughput") > 0.0);
    for walk in ["a, 100 a page, tail", "a, 1,000 a page, cold", "b, 1,000 a page, cold"] {
        assert!(value(&printed, "pages", &format!("5,000 events: {walk}, 1 reader"), "throughput") > 0.0, "{walk}");
    }
    // A hundred polls are less than what a service that has just begun gives back.
    assert!(value(&printed, "parked", "100 parked", "memory per poll") < 1000.0);
    assert!((value(&printed, "parked", "100 parked", "held at once") - 100.0).abs() < 0.5);
    assert!(value(&printed, "restart", "50 clients", "messages meanwhile") > 0.0);
    assert!(value(&printed, "growth", "last / first", "append") > 0.0);
}

#[tokio::test]
async fn the_jobs_of_desks_and_replicas_give_their_figures_and_every_reader_gets_what_was_sent() {
    let (printed, code) = bench(&["--jobs", "replicas,desk,rare,acks,distance,standby,demo"]).await;
    assert_eq!((list(&printed, "failures").len(), code), (0, Some(0)), "{printed}");
    let jobs = HashSet::from(["replicas", "desk", "rare", "acks", "distance", "standby", "demo", "yardsticks"]);
    assert_eq!(measured(&printed), jobs);
    assert!(value(&printed, "replicas", "2 processes, 8 senders", "throughput") > 0.0);
    assert!(value(&printed, "replicas", "2 processes, 20 parked, quiet", "p50") > 0.0);
    assert!(value(&printed, "desk", "8 conversations, 2 processes", "wake p99") > 0.0);
    assert!(value(&printed, "rare", "opens, 8 clients", "throughput") > 0.0);
    assert!(value(&printed, "acks", "8 agents", "throughput") > 0.0);
    // What is 1 ms away takes at least that.
    assert!(value(&printed, "yardsticks", "select 1, 1 ms away", "p50") >= 1.0);
    assert!(value(&printed, "distance", "1 ms away, 1 process, 16 senders", "p50") >= 1.0);
    assert!(value(&printed, "standby", "2 ms away, 16 senders", "p50") >= 2.0);
    assert!(value(&printed, "demo", "64 conversations", "wake p50") > 0.0);
}

#[tokio::test]
async fn a_running_service_is_measured_without_its_database_and_left_tidy() {
    let service = Service::start().await;
    let aimed = ["--jobs", "append,batch,disk,desk,rare,acks", "--url", &service.base, "--admin-token", ADMIN_TOKEN];
    let (printed, code) = bench(&aimed).await;
    assert_eq!((list(&printed, "failures").len(), code), (0, Some(0)), "{printed}");
    assert!(value(&printed, "append", "1 sender", "throughput") > 0.0);
    assert!(value(&printed, "desk", "8 conversations, 1 process", "throughput") > 0.0);
    assert!(value(&printed, "acks", "8 agents", "throughput") > 0.0);
    assert!(!measured(&printed).contains("disk"));
    assert!(!measured(&printed).contains("rare"));
    assert!(list(&printed, "left_out").len() >= 2, "it says what it could not measure: {printed}");

    // No agent is left who could be assigned a customer.
    let agents = service.get("/admin/agent").await;
    let agents = agents.as_array().expect("agents");
    assert!(!agents.is_empty());
    assert!(agents.iter().all(|agent| agent["Status"] == "away" && agent["OpenSessions"] == 0), "{agents:?}");
    service.stop().await;
}

#[tokio::test]
async fn it_cannot_be_given_a_database() {
    let mut refused = command(&["--size", "smoke", "--database-url", "postgres://localhost/precious"]);
    let ended = timeout(PATIENCE, refused.output()).await.expect("it ends in time").expect("it runs");
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.stdout.is_empty());
}

/// A service on a private PostgreSQL of its own.
struct Service {
    child: Child,
    base: String,
    data: PathBuf,
}

impl Service {
    async fn start() -> Self {
        let own = Path::new(env!("CARGO_BIN_EXE_deskfeed-bench"));
        let (folder, manifest) =
            (own.parent().expect("a folder"), concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"));
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--bin", "deskfeed", "--manifest-path", manifest, "--target-dir"]);
        assert!(build.arg(folder.parent().expect("a target folder")).status().await.expect("cargo").success());
        let data = std::env::temp_dir().join(format!("deskfeed-bench-test-{}", uuid::Uuid::new_v4().simple()));
        let mut serve = Command::new(folder.join("deskfeed"));
        serve.args(["serve", "--listen", "127.0.0.1:0", "--admin-token", ADMIN_TOKEN, "--data"]).arg(&data);
        serve.env_remove("DATABASE_URL").env("DESKFEED_LOG", "warn").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = serve.kill_on_drop(true).spawn().expect("the service runs");
        let mut said = BufReader::new(child.stdout.take().expect("piped")).lines();
        let line = timeout(PATIENCE, said.next_line()).await.expect("it serves in time").expect("text");
        let line = line.expect("it serves");
        let base = line.split_whitespace().find(|word| word.starts_with("http://")).expect("an address");
        Self { child, base: base.to_owned(), data }
    }

    async fn get(&self, path: &str) -> Value {
        let address = self.base.trim_start_matches("http://").trim_end_matches('/');
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
        serde_json::from_str(body).expect("JSON")
    }

    async fn stop(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id().expect("it runs")).expect("a pid"));
        kill(pid, Signal::SIGTERM).expect("it runs");
        timeout(PATIENCE, self.child.wait()).await.expect("it ends in time").expect("it ends");
        std::fs::remove_dir_all(&self.data).expect("it can be removed");
    }
}
