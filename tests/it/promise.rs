//! The promise, under everything that can go wrong on one machine: three real processes on a real
//! PostgreSQL are written to and read from while they are killed, stopped and cut off, and while standbys are
//! promoted. All that was done and answered is written down and judged afterwards.
//!
//! `DESKFEED_PROMISE_SEED` repeats a run's choices (not its timing), `DESKFEED_PROMISE_SECONDS`
//! makes it longer.

pub mod checker;
pub mod history;
mod mutations;
mod nemesis;
mod reads;
pub mod workload;
pub mod world;

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde_json::json;
use sqlx::PgConnection;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use self::{
    history::{Cursor, Final, Kept, Kind, Logged, Op, Outcome, Random, Send},
    nemesis::Plant,
    workload::{AGENTS, GATEWAYS, Page},
    world::World,
};
use crate::support::{Client, desk::ADMIN_TOKEN};

const REPLICAS: usize = 3;
/// Without more events than these a run means nothing.
const EVENTS_MIN: usize = 300;
/// How long readers may take to be given everything after the last fault.
pub const HEALING: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_promise_holds_whatever_happens() {
    let seed = setting("DESKFEED_PROMISE_SEED").unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
    let seconds = setting("DESKFEED_PROMISE_SECONDS").unwrap_or(18);
    println!("DESKFEED_PROMISE_SEED={seed}");
    let mut random = Random::new(seed);
    let mut plant = Plant::start(REPLICAS, ADMIN_TOKEN).await;
    let bases = plant.replicas.iter().map(|replica| replica.base.clone()).collect();
    let world = Arc::new(populate(bases, ADMIN_TOKEN).await);
    plant.world = Some(Arc::clone(&world));

    let (mut writers, mut readers) = (JoinSet::new(), JoinSet::new());
    let names = start_actors(&world, &mut random, &mut writers, &mut readers);
    let faults = nemesis::rage(&mut plant, random.split(), Duration::from_secs(seconds), EVENTS_MIN).await;

    // All is well again: what is begun now must succeed, and everybody must get everything.
    world.stop_writing();
    timeout(HEALING, writers.join_all()).await.expect("the writers end");
    write_healed(&world, &mut random).await;
    let mut sql = plant.sql().await;
    world.set_end(settled_head(&world, &mut random, &mut sql).await);
    let ended =
        async { while readers.join_next().await.is_some_and(|ended| ended.map(|()| true).expect("no panic")) {} };
    // Those who are left behind are named by the checker.
    drop(timeout(HEALING, ended).await);
    read_all(&world, &mut random, REPLICAS).await;

    let mut end = read_end(&mut sql, names).await;
    end.histories += usize::try_from(faults.get(nemesis::PROMOTION).copied().unwrap_or(0)).expect("fits");
    let ops = world.recorder.take();
    let reached = world.faults.lock().expect("no panic").clone();
    println!("{}", summary(&ops, &end, seed));
    println!("faults: {faults:?}");
    let violations = checker::check(&ops, &end);
    assert!(violations.is_empty(), "DESKFEED_PROMISE_SEED={seed}: {violations:#?}");
    assert!(reached.is_empty(), "DESKFEED_PROMISE_SEED={seed}: answered what nobody should be: {reached:#?}");
    assert!(end.log.len() > EVENTS_MIN, "too little happened for the run to mean anything: {}", end.log.len());
    drop(sql);
    plant.stop().await;
}

pub fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| text.parse().expect("a number"))
}

/// Agents, gateways and their tokens.
pub async fn populate(bases: Vec<String>, admin_token: &str) -> World {
    let admin = Client::new(&bases[0], admin_token);
    let mut tokens = HashMap::new();
    let agents = AGENTS.map(|id| ("agent", id));
    for (role, id) in agents.into_iter().chain(GATEWAYS.map(|id| ("gateway", id))) {
        admin.post(&format!("/admin/{role}"), json!({"Id": id, "Name": id.to_uppercase()})).await.ok();
        let made = admin.post("/admin/token", json!({"Role": role, "Subject": id})).await.ok();
        tokens.insert(id.to_owned(), made["Token"].as_str().expect("a token").to_owned());
    }
    let made = admin.post("/admin/token", json!({"Role": "admin"})).await.ok();
    tokens.insert(String::new(), made["Token"].as_str().expect("a token").to_owned());
    World::new(tokens, bases)
}

/// Gives the names of the readers that must be given everything.
pub fn start_actors(
    world: &Arc<World>,
    random: &mut Random,
    writers: &mut JoinSet<()>,
    readers: &mut JoinSet<()>,
) -> Vec<String> {
    let mut names = Vec::new();
    let mut name = |text: String| {
        names.push(text.clone());
        text
    };
    for gateway in GATEWAYS {
        for count in 0..3 {
            let process = format!("gateway {gateway} {count}");
            writers.spawn(workload::write(Arc::clone(world), process, gateway, random.split()));
        }
    }
    for agent in AGENTS {
        writers.spawn(workload::write(Arc::clone(world), format!("agent {agent}"), agent, random.split()));
        let (follows, filters) = (name(format!("console of {agent}")), name(format!("filter of {agent}")));
        readers.spawn(workload::follow(Arc::clone(world), follows, agent, vec![], random.split()));
        let types = if random.one_in(2) { vec!["AddSession", "DelSession"] } else { vec!["Message"] };
        readers.spawn(workload::follow(Arc::clone(world), filters, agent, types, random.split()));
    }
    for gateway in GATEWAYS {
        let process = name(format!("gateway reader of {gateway}"));
        readers.spawn(workload::follow(Arc::clone(world), process, gateway, vec![], random.split()));
    }
    for (device, feed) in ["ann", "ann", "bob", "web"].into_iter().enumerate() {
        let process = name(format!("device {device} of {feed}"));
        readers.spawn(workload::acknowledge(Arc::clone(world), process, feed, random.split()));
    }
    for count in 0..3 {
        writers.spawn(workload::act(Arc::clone(world), format!("actor {count}"), random.split()));
    }
    for count in 0..2 {
        writers.spawn(workload::walk(Arc::clone(world), format!("walker {count}"), random.split()));
    }
    names
}

/// One attempt each, which must succeed.
pub async fn write_healed(world: &World, random: &mut Random) {
    for agent in AGENTS {
        let online = world.ask(random, agent, "/agent/presence", Some(&json!({"Status": "online"}))).await;
        assert_eq!(online.outcome, Outcome::Ok, "all is well again");
    }
    for gateway in GATEWAYS {
        let Some(card) = world.some_session(random, |card| card.gateway == gateway) else { continue };
        for _ in 0..3 {
            let id = world.new_id(random);
            let (session, content) = (card.session.clone(), format!("{id} after all"));
            let message = Send { id, session, content, author: gateway.to_owned(), version: 0 };
            world.send_once("healed gateway", random, vec![message]).await;
        }
    }
}

/// The head, once nothing waits in the queue and no event has come for a while.
pub async fn settled_head(world: &World, random: &mut Random, sql: &mut PgConnection) -> i64 {
    let until = Instant::now() + HEALING;
    let (mut last, mut since) = (-1, Instant::now());
    while Instant::now() < until {
        let (head, queued): (i64, i64) = sqlx::query_as(
            "select coalesce(max(version), 0), (select count(*) from sessions where status = 0) from events",
        )
        .fetch_one(&mut *sql)
        .await
        .expect("PostgreSQL answers");
        if head != last {
            (last, since) = (head, Instant::now());
        }
        if queued == 0 && since.elapsed() > Duration::from_secs(1) {
            return head;
        }
        sleep(Duration::from_millis(100)).await;
    }
    // Unassigned though everybody is there: I11 by another name.
    let away = world.ask(random, "", "/admin/agent", None).await.json;
    panic!("sessions stay in the queue at head {last}: {away}");
}

/// Everything, several times, forwards and backwards.
pub async fn read_all(world: &World, random: &mut Random, times: usize) {
    for feed in AGENTS.into_iter().chain(GATEWAYS) {
        for time in 0..times {
            let name = format!("scanner {time} of {feed}");
            let mut after = 0;
            loop {
                let page = Page { limit: 700, ..Page::default() };
                let read = workload::query(world, random, &name, feed, Cursor::After(after), &page).await;
                let Some(read) = read else { panic!("{name} is not answered although all is well") };
                after = read.next;
                if !read.more {
                    break;
                }
            }
        }
        workload::walk_once(world, "healed walker", feed, random, 10_000).await;
    }
}

pub async fn read_end(sql: &mut PgConnection, readers: Vec<String>) -> Final {
    type LogRow = (i64, String, i16, String, i16, Option<String>);
    let log: Vec<LogRow> = sqlx::query_as(
        "select e.version, coalesce(f.feed_id, ''), e.type, s.session_id, e.reason, coalesce(m.id::text, m.id_text)
         from events e left join feeds f on f.feed_key = e.feed_key join sessions s on s.session_key = e.session_key
         left join messages m on m.session_key = e.session_key and m.seq = e.message_seq
         order by e.version",
    )
    .fetch_all(&mut *sql)
    .await
    .expect("the log can be read");
    type KeptRow = (String, String, String, String, i64, i32);
    let kept: Vec<KeptRow> = sqlx::query_as(
        "select coalesce(m.id::text, m.id_text), s.session_id, m.content, f.feed_id, m.version, m.seq
         from messages m join sessions s on s.session_key = m.session_key join feeds f on f.feed_key = m.author_key",
    )
    .fetch_all(&mut *sql)
    .await
    .expect("the messages can be read");
    let numbers: Vec<(String, i32)> = sqlx::query_as(
        "select s.session_id, e.message_seq from events e join sessions s on s.session_key = e.session_key
         where e.content is not null order by e.version",
    )
    .fetch_all(&mut *sql)
    .await
    .expect("the numbers can be read");
    let number = |number: i16| usize::try_from(number).expect("a known number");
    Final {
        log: log
            .into_iter()
            .map(|(version, feed, r#type, session, reason, message)| Logged {
                version,
                feed,
                r#type: ["AddSession", "Message", "DelSession"][number(r#type)],
                session,
                reason: ["", "closed", "transferred", "released"][number(reason)],
                message,
            })
            .collect(),
        kept: kept
            .into_iter()
            .map(|(id, session, content, author, version, seq)| Kept { id, session, content, author, version, seq })
            .collect(),
        numbers,
        histories: 1,
        gateways: GATEWAYS.map(str::to_owned).to_vec(),
        readers,
    }
}

pub fn summary(ops: &[Op], end: &Final, seed: u64) -> String {
    let count = |outcome: fn(&Outcome) -> bool, of: fn(&Kind) -> bool| {
        ops.iter().filter(|op| outcome(&op.outcome) && of(&op.kind)).count()
    };
    let of = |kind: fn(&Kind) -> bool| {
        let ok = count(|outcome| *outcome == Outcome::Ok, kind);
        let fail = count(|outcome| matches!(outcome, Outcome::Fail(_)), kind);
        format!("{ok} ok, {fail} refused, {} unknown", count(|outcome| *outcome == Outcome::Unknown, kind))
    };
    format!(
        "seed {seed}: {} events, {} messages; sends: {}; sessions: {}; reads: {}",
        end.log.len(),
        end.kept.len(),
        of(|kind| matches!(kind, Kind::Send(_))),
        of(|kind| matches!(kind, Kind::Session(_))),
        of(|kind| matches!(kind, Kind::Read(_))),
    )
}
