//! docker-compose.yml on an engine: what the promise test does to processes is done to containers,
//! with every request going through the balancer. Nothing may be lost, and no request may end in
//! another way than the wire contract says.
//!
//! Needs root, a Docker engine and the images (`.ci/engine start`, `.ci/engine images`), so it runs
//! when asked for: `cargo test --test it -- --ignored compose::`. `DESKFEED_TEST_COMPOSE` is the
//! command to use, `docker-compose` or `docker compose`.

mod composition;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use http::StatusCode;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use self::composition::Composition;
use crate::{
    observability,
    promise::{
        HEALING, checker,
        history::{Change, Kind, Op, Outcome, Random, Session},
        populate, read_all, read_end, setting, settled_head, start_actors, summary,
        workload::AGENTS,
        world::{World, pause},
        write_healed,
    },
    support::{Client, client::finish},
};

/// Longest time from an event to a scrape that shows it.
const SCRAPED: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Docker engine and root; .ci/run runs it"]
async fn the_composition_loses_nothing_and_fails_no_request() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let began = Instant::now();
    let reached = |what: &str| println!("{:>6} ms: {what}", began.elapsed().as_millis());
    let composition = Composition::start().await;
    reached("the composition is up");
    are_confined(&composition).await;
    let admin = Client::new(&composition.base, &composition.secret("admin_token"));
    speaks_the_wire_contract(&admin).await;
    composition.compose(&["--profile", "observability", "up", "-d", "prometheus"]).await;

    let seed = setting("DESKFEED_PROMISE_SEED").unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
    println!("DESKFEED_PROMISE_SEED={seed}");
    let mut random = Random::new(seed);
    let world = Arc::new(populate(vec![composition.base.clone()], &composition.secret("admin_token")).await);
    // The run is long, and more sessions are opened in it than closed.
    for agent in AGENTS {
        admin.post("/admin/agent", json!({"Id": agent, "MaxSessions": 10_000})).await.ok();
    }
    let (mut writers, mut readers) = (JoinSet::new(), JoinSet::new());
    let names = start_actors(&world, &mut random, &mut writers, &mut readers);
    operate(&composition, &world, &mut random).await;
    reached("all has happened");

    // All is well again: what is begun now must succeed, and everybody must get everything.
    world.stop_writing();
    timeout(HEALING, writers.join_all()).await.expect("the writers end");
    write_healed(&world, &mut random).await;
    let mut sql = connect(&composition).await;
    world.set_end(settled_head(&world, &mut random, &mut sql).await);
    let ended =
        async { while readers.join_next().await.is_some_and(|ended| ended.map(|()| true).expect("no panic")) {} };
    // Those who are left behind are named by the checker.
    drop(timeout(HEALING, ended).await);
    reached("all readers are done");
    read_all(&world, &mut random, 1).await;
    let end = read_end(&mut sql, names).await;
    reached("all was read again");
    let ops = world.recorder.take();
    println!("{}", summary(&ops, &end, seed));
    are_refused_with_reason(&ops);
    let violations = checker::check(&ops, &end);
    assert!(violations.is_empty(), "DESKFEED_PROMISE_SEED={seed}: {violations:#?}");
    let faults = world.faults.lock().expect("no panic").clone();
    assert!(faults.is_empty(), "DESKFEED_PROMISE_SEED={seed}: answered what nobody should be: {faults:#?}");
    assert!(end.log.len() > 1000, "too little happened for the run to mean anything: {}", end.log.len());
    reached("all was checked");
    is_watched(&composition).await;
    plays_the_demo(&composition, &admin).await;
    reached("the profiles were seen");
}

/// What operators do, and what happens to them, while everybody works.
async fn operate(composition: &Composition, world: &World, random: &mut Random) {
    let done = |what: &str| {
        let broken = std::mem::take(&mut *world.broken.lock().expect("no panic"));
        println!("{what}; {} requests without an answer", broken.len());
        // The balancer has been there all the time, and repeats reads. A write that a killed
        // process was at may end with its connection: its sender repeats it.
        let broken: Vec<&String> =
            broken.iter().filter(|path| !what.contains("killed") || path.starts_with("/message/query")).collect();
        assert!(broken.is_empty(), "{what}: {broken:#?}");
    };
    pause(random, 1000..2000).await;
    done("all is well");
    for replica in composition.containers("deskfeed").await {
        composition.program(&["docker", "restart", &replica]).await;
        composition.await_healthy("deskfeed", 3).await;
    }
    done("each replica was restarted in its turn");
    composition.program(&["deploy/roll"]).await;
    done("all replicas were replaced");
    let replica = random.pick(&composition.containers("deskfeed").await).clone();
    composition.crash(&replica).await;
    composition.await_healthy("deskfeed", 3).await;
    done("a replica was killed, and came back");
    composition.compose(&["up", "-d", "--no-recreate", "--scale", "deskfeed=5"]).await;
    composition.await_healthy("deskfeed", 5).await;
    pause(random, 1000..2000).await;
    composition.compose(&["up", "-d", "--no-recreate", "--scale", "deskfeed=3"]).await;
    composition.await_healthy("deskfeed", 3).await;
    done("there were five replicas, and three again");
    let db = composition.container("db").await;
    composition.program(&["docker", "restart", &db]).await;
    composition.await_healthy("db", 1).await;
    composition.await_healthy("deskfeed", 3).await;
    pause(random, 1000..2000).await;
    done("PostgreSQL was restarted");
    composition.crash(&db).await;
    composition.await_healthy("db", 1).await;
    composition.await_healthy("deskfeed", 3).await;
    pause(random, 1000..2000).await;
    done("PostgreSQL was gone all at once, and came back");
}

/// Requests are refused because of what they ask for; never because of what went on meanwhile.
fn are_refused_with_reason(ops: &[Op]) {
    let mut opened: HashMap<&str, u64> = HashMap::new();
    for op in ops.iter().filter(|op| op.outcome == Outcome::Ok) {
        if let Kind::Session(Session { change: Change::Open, session, .. }) = &op.kind {
            let first = opened.entry(session).or_insert(op.returned);
            *first = op.returned.min(*first);
        }
    }
    let mut refused = BTreeMap::new();
    for op in ops {
        let Outcome::Fail(code) = op.outcome else { continue };
        // Senders, actors and readers ask for what they may not have, at times.
        let (kind, session, reasons): (&str, &str, &[u64]) = match &op.kind {
            Kind::Send(send) => ("send", &send.session, &[40301, 40401, 40900, 40901]),
            Kind::Session(change) => ("session", &change.session, &[40300, 40301, 40401, 40900, 40902, 40903]),
            Kind::Read(_) => ("read", "", &[41001]),
        };
        let is_known = opened.get(session).is_some_and(|returned| *returned < op.invoked);
        assert!(reasons.contains(&code) && !(code == 40401 && is_known), "{op:?}");
        *refused.entry((kind, code)).or_insert(0) += 1;
    }
    println!("refused: {refused:?}");
}

/// What docker-compose.yml promises of each container holds of the containers.
async fn are_confined(composition: &Composition) {
    for service in ["db", "deskfeed", "balancer"] {
        for id in composition.containers(service).await {
            let container = composition.inspect(&id).await;
            let host = &container["HostConfig"];
            let user = container["Config"]["User"].as_str().expect("a user");
            assert!(!user.is_empty() && !user.starts_with("0:") && user != "root", "{service} runs as {user:?}");
            assert_eq!(host["ReadonlyRootfs"], true, "{service}");
            assert_eq!(host["CapDrop"], json!(["ALL"]), "{service}");
            assert_eq!(host["CapAdd"], Value::Null, "{service}");
            assert_eq!(host["SecurityOpt"], json!(["no-new-privileges:true"]), "{service}");
            assert_eq!(host["RestartPolicy"]["Name"], "unless-stopped", "{service}");
            for limit in ["Memory", "PidsLimit", "NanoCpus"] {
                assert!(host[limit].as_i64().is_some_and(|limit| limit > 0), "{service} has no limit of {limit}");
            }
            assert!(container["State"]["Health"].is_object(), "{service} is not checked");
            let published = container["NetworkSettings"]["Ports"].as_object().expect("ports");
            let published: Vec<&Value> = published.values().filter_map(Value::as_array).flatten().collect();
            assert_eq!(published.len(), usize::from(service == "balancer"), "{service}: {published:?}");
            assert!(published.iter().all(|port| port["HostIp"] == "127.0.0.1"), "{service}: {published:?}");
            let environment = container["Config"]["Env"].to_string();
            for secret in ["postgres_password", "deskfeed_db_password", "database_url", "admin_token"] {
                assert!(!environment.contains(&composition.secret(secret)), "{service} shows {secret}");
            }
        }
    }
}

/// The balancer refuses what the service refuses, in the same form, and nothing that it takes.
async fn speaks_the_wire_contract(admin: &Client) {
    let long = format!("/session/list?status=open&limit=1&unknown={}", "x".repeat(16 * 1024 - 60));
    assert_eq!(admin.get(&long).await.status, StatusCode::OK, "a URL that the service takes");
    assert_eq!(admin.get("/nowhere").await.code(), 40400);
    let head = admin.request(http::Method::GET, &long).header("x-long", "x".repeat(12 * 1024));
    assert_eq!(finish(head).await.expect("an answer").status, StatusCode::OK, "and 12 KiB of other headers");
    let batch: Vec<Value> = (0..1000).map(|_| json!({"SessionId": "none", "Content": "x".repeat(7000)})).collect();
    let refused = admin.post("/message/send", json!(batch)).await;
    assert_eq!(refused.code(), 40300, "a body of 7 MB comes through");
}

/// The profile `demo`, on a desk where nobody else is.
async fn plays_the_demo(composition: &Composition, admin: &Client) {
    for agent in admin.get("/admin/agent").await.ok().as_array().expect("agents") {
        admin.post("/admin/agent", json!({"Id": agent["Id"], "Status": "away"})).await.ok();
    }
    let printed = composition.compose(&["--profile", "demo", "run", "--rm", "demo"]).await;
    assert!(printed.contains("nothing lost, changed, doubled or out of order"), "{printed}");
}

async fn connect(composition: &Composition) -> PgConnection {
    let url =
        composition.secret("database_url").replace("@db:", &format!("@{}:", composition.address("db", "data").await));
    PgConnection::connect(&url).await.expect("PostgreSQL answers")
}

/// Prometheus scrapes all there is, its rules are loaded, and what they ask of the balancer is there.
async fn is_watched(composition: &Composition) {
    composition.await_healthy("prometheus", 1).await;
    let base = format!("http://{}:9090", composition.address("prometheus", "watch").await);
    let prometheus = Client::new(&base, "none");
    let until = Instant::now() + SCRAPED;
    loop {
        let answer = prometheus.get("/api/v1/targets?state=active").await.ok();
        let mut up = BTreeMap::new();
        for target in answer["data"]["activeTargets"].as_array().expect("targets") {
            if target["health"] == "up" {
                *up.entry(target["labels"]["job"].as_str().expect("a job").to_owned()).or_insert(0) += 1;
            }
        }
        let wanted = [("balancer", 1), ("deskfeed", 3), ("prometheus", 1)].map(|(job, count)| (job.to_owned(), count));
        if up == BTreeMap::from(wanted) {
            break;
        }
        assert!(Instant::now() < until, "these are up: {up:?}");
        sleep(Duration::from_millis(500)).await;
    }
    let rules = prometheus.get("/api/v1/rules").await.ok();
    let health: Vec<&Value> = rules["data"]["groups"]
        .as_array()
        .expect("groups")
        .iter()
        .flat_map(|group| group["rules"].as_array().expect("rules"))
        .map(|rule| &rule["health"])
        .collect();
    assert!(health.len() > 10 && health.iter().all(|health| *health == "ok"), "{health:?}");
    let balancer = Client::new(&format!("http://{}:8405", composition.address("balancer", "app").await), "none");
    let asked = observability::asked_for(&["haproxy_"]);
    assert!(asked.len() >= 4, "only {asked:?}");
    observability::check(&asked, &observability::exposed(&balancer.get("/metrics").await.text));
}
