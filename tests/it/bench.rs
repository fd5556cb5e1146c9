//! The benchmark at its smallest: every job gives its figures, and finds all that was written. How
//! fast anything was does not matter here.

use std::{collections::HashSet, time::Duration};

use serde_json::Value;
use tokio::time::timeout;

use crate::support::process::{Service, command};

const ADMIN_TOKEN: &str = "an admin token for the benchmark of a running service";
/// A debug build beside other tests takes its time.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs the benchmark; gives what it printed as JSON, and its exit code.
async fn bench(arguments: &[&str]) -> (Value, Option<i32>) {
    let mut all = vec!["bench", "--size", "smoke", "--json"];
    all.extend(arguments);
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
async fn a_running_service_is_measured_without_its_database_and_left_tidy() {
    let url = crate::support::postgres::new_database().await;
    let service = Service::serve(&["--database-url", &url, "--admin-token", ADMIN_TOKEN]).await;
    let aimed = ["--jobs", "append,batch,disk", "--url", &service.base, "--admin-token", ADMIN_TOKEN];
    let (printed, code) = bench(&aimed).await;
    assert_eq!((list(&printed, "failures").len(), code), (0, Some(0)), "{printed}");
    assert!(value(&printed, "append", "1 sender", "throughput") > 0.0);
    assert!(!measured(&printed).contains("disk"));
    assert!(list(&printed, "left_out").len() >= 2, "it says what it could not measure: {printed}");

    // Nobody is left to whom the desk would give a customer.
    let admin = crate::support::Client::new(&service.base, ADMIN_TOKEN);
    let agents = admin.get("/admin/agent").await.ok();
    let agents = agents.as_array().expect("agents");
    assert!(!agents.is_empty());
    assert!(agents.iter().all(|agent| agent["Status"] == "away" && agent["OpenSessions"] == 0), "{agents:?}");
    service.terminate().await;
}

#[tokio::test]
async fn it_does_not_touch_a_database_it_was_not_given() {
    let (out, err) = {
        let mut refused = command(&["bench", "--size", "smoke", "--database-url", "postgres://localhost/precious"]);
        let ended = timeout(PATIENCE, refused.output()).await.expect("it ends in time").expect("it runs");
        assert_eq!(ended.status.code(), Some(1));
        (ended.stdout, String::from_utf8_lossy(&ended.stderr).into_owned())
    };
    assert!(out.is_empty());
    assert!(err.contains("--url"), "it says what to do instead: {err}");
}
