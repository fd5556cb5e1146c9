//! The job `rare`: opens, transfers and closes alone, from clients that each send again when they are answered.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};

use super::desk::pure_senders;
use crate::{
    desk::{
        Desk,
        ledger::{Kind, Promised, compare, read_all},
    },
    generator::generate,
    plan::Plan,
    stats::{Latencies, Results, of_clients},
    targets::PURE_SENDERS,
    wire::{Wire, post},
    world::World,
};

const JOB: &str = "rare";

/// What is measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    /// The service picks the agent.
    Open,
    /// With `ToId`.
    OpenTo,
    /// Each client hands a session of its own on to the next agent.
    Transfer,
    /// Of the sessions that the others have opened.
    Close,
}

const OPERATIONS: [(Operation, &str); 4] = [
    (Operation::Open, "opens"),
    (Operation::OpenTo, "opens with ToId"),
    (Operation::Transfer, "transfers"),
    (Operation::Close, "closes"),
];

pub async fn run(world: &mut World, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    if world.database_url().is_none() {
        results.leave_out("rare: it leaves sessions behind, which a service of --url would keep");
        return Ok(());
    }
    world.renew().await?;
    let feeds = world.feeds(plan.sizes.feeds, JOB).await?;
    for round in 1..=plan.rounds {
        for &clients in plan.sizes.rare_clients {
            let tag = format!("{JOB}-{round}-{clients}");
            let rare = Arc::new(Rare {
                desk: Desk::create(world, clients, &tag).await?,
                tag,
                opened: AtomicUsize::new(0),
                open: Mutex::default(),
            });
            for (operation, name) in OPERATIONS {
                let what = format!("{name}, {}", of_clients(clients));
                plan.says(&format!("{JOB}, round {round}: {what}"));
                let before = pure_senders(world, plan, &feeds, clients).await?;
                let done = cell(world, &rare, operation, clients, plan.time).await?;
                let after = pure_senders(world, plan, &feeds, clients).await?;
                let beside = (PURE_SENDERS, f64::midpoint(before, after));
                results.push(JOB, &what, "throughput", "operations/s", done.per_second, &[beside]);
                results.push_latencies(JOB, &what, &done.latencies);
            }
            rare.desk.close(world).await?;
        }
    }
    Ok(())
}

/// A desk and its open sessions.
struct Rare {
    desk: Desk,
    tag: String,
    opened: AtomicUsize,
    /// Session and agent.
    open: Mutex<Vec<(String, usize)>>,
}

struct Done {
    per_second: f64,
    latencies: Latencies,
}

/// One cell, after which all feeds are read.
async fn cell(
    world: &World,
    rare: &Arc<Rare>,
    operation: Operation,
    clients: usize,
    time: Duration,
) -> anyhow::Result<Done> {
    let (head, to) = (world.head().await?, world.address);
    let shared = Arc::clone(rare);
    let told = generate(async move {
        let mut tasks = JoinSet::new();
        let started = Instant::now();
        for _ in 0..clients {
            let client = Client {
                rare: Arc::clone(&shared),
                promised: Vec::new(),
                latencies: Latencies::new()?,
                until: started + time,
            };
            tasks.spawn(client.run(to, operation));
        }
        let (mut promised, mut latencies) = (Vec::new(), Latencies::new()?);
        while let Some(ended) = tasks.join_next().await {
            let client = ended??;
            promised.extend(client.promised);
            latencies.add(&client.latencies)?;
        }
        // Closes may be over before the time is.
        Ok((promised, latencies, started.elapsed()))
    });
    let (promised, latencies, took) = told.await?;
    let mut feeds = Vec::new();
    for account in rare.desk.agents.iter().chain([&rare.desk.gateway]) {
        feeds.push(read_all(to, &account.token, head).await?);
    }
    compare(&promised, &feeds)?;
    Ok(Done { per_second: latencies.count() as f64 / took.as_secs_f64(), latencies })
}

struct Client {
    rare: Arc<Rare>,
    promised: Vec<Promised>,
    latencies: Latencies,
    until: Instant,
}

impl Client {
    async fn run(mut self, to: SocketAddr, operation: Operation) -> anyhow::Result<Self> {
        let mut wire = Wire::connect(to).await?;
        while Instant::now() < self.until {
            let is_done = match operation {
                Operation::Open => self.open(&mut wire, false).await?,
                Operation::OpenTo => self.open(&mut wire, true).await?,
                Operation::Transfer => self.transfer(&mut wire).await?,
                Operation::Close => self.close(&mut wire).await?,
            };
            if !is_done {
                break;
            }
        }
        Ok(self)
    }

    async fn open(&mut self, wire: &mut Wire, is_directed: bool) -> anyhow::Result<bool> {
        let rare = Arc::clone(&self.rare);
        let number = rare.opened.fetch_add(1, Ordering::Relaxed);
        let session = format!("{}-session-{number}", rare.tag);
        let mut open = json!({"SessionId": session, "FromId": "customer", "FromName": "Customer"});
        if is_directed {
            open["ToId"] = json!(rare.desk.agents[number % rare.desk.agents.len()].id);
        }
        let answer = self.ask(wire, "/session/open", &rare.desk.gateway.token, &open).await?;
        ensure!(answer["Status"] == "open", "a session was opened as {answer}");
        let owner = rare.desk.agent(answer["ToId"].as_str().context("an open session without agent")?)?;
        let version = answer["Version"].as_i64();
        self.promise(owner, &session, Kind::Added, version);
        self.promise(rare.desk.agents.len(), &session, Kind::Added, None);
        rare.put(session, owner);
        Ok(true)
    }

    async fn transfer(&mut self, wire: &mut Wire) -> anyhow::Result<bool> {
        let rare = Arc::clone(&self.rare);
        let Some((session, mut owner)) = rare.take() else { return Ok(false) };
        while Instant::now() < self.until {
            let target = (owner + 1) % rare.desk.agents.len();
            let transfer = json!({"SessionId": session, "ToNewId": rare.desk.agents[target].id});
            self.ask(wire, "/session/transfer", &rare.desk.agents[owner].token, &transfer).await?;
            self.promise(owner, &session, Kind::Removed, None);
            self.promise(target, &session, Kind::Added, None);
            self.promise(rare.desk.agents.len(), &session, Kind::Added, None);
            owner = target;
        }
        rare.put(session, owner);
        Ok(true)
    }

    async fn close(&mut self, wire: &mut Wire) -> anyhow::Result<bool> {
        let rare = Arc::clone(&self.rare);
        let Some((session, owner)) = rare.take() else { return Ok(false) };
        let close = json!({"SessionId": session});
        let answer = self.ask(wire, "/session/close", &rare.desk.agents[owner].token, &close).await?;
        self.promise(owner, &session, Kind::Removed, answer["Version"].as_i64());
        self.promise(rare.desk.agents.len(), &session, Kind::Removed, None);
        Ok(true)
    }

    async fn ask(&mut self, wire: &mut Wire, path: &str, token: &str, body: &Value) -> anyhow::Result<Value> {
        let request = post(path, token, body.to_string().as_bytes());
        let begun = Instant::now();
        let answered = wire.exchange_ok(&request).await.with_context(|| path.to_owned())?;
        self.latencies.record(begun.elapsed());
        Ok(serde_json::from_slice(&answered.body)?)
    }

    fn promise(&mut self, feed: usize, session: &str, kind: Kind, version: Option<i64>) {
        self.promised.push(Promised { feed, session: session.to_owned(), kind, version });
    }
}

impl Rare {
    fn put(&self, session: String, owner: usize) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).push((session, owner));
    }

    fn take(&self) -> Option<(String, usize)> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}
