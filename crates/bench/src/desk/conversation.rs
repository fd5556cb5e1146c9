//! One client's conversations, one after the other: opened without `ToId`, three messages from each side in turn,
//! one in ten transferred, one in twenty released, closed. Each operation begins when the one before is answered.

use std::{net::SocketAddr, sync::Arc, sync::atomic::Ordering, time::Duration};

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{
    Desk,
    ledger::{Kind, Promised},
};
use crate::{
    check::message,
    stats::Latencies,
    wire::{Wire, post},
};

const MESSAGES: u64 = 6;
/// After which message a conversation is transferred or released.
const TRANSFERRED_AFTER: u64 = 2;
const RELEASED_AFTER: u64 = 3;
/// How long a released session may take to reach an agent.
const ASSIGNED_MAX: Duration = Duration::from_secs(30);

/// What one client has to report.
pub struct Told {
    pub promised: Vec<Promised>,
    /// Of every operation.
    pub latencies: Latencies,
    /// Operations answered within the measured time.
    pub operations: u64,
    /// When each message was sent, and the feed of its recipient.
    pub sent: Vec<(u64, Instant, usize)>,
}

impl Told {
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { promised: Vec::new(), latencies: Latencies::new()?, operations: 0, sent: Vec::new() })
    }
}

/// What every operation answers with, as far as it has it.
#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Status", default)]
    status: String,
    #[serde(rename = "ToId", default)]
    to: Option<String>,
    #[serde(rename = "Version", default)]
    version: i64,
}

/// A client that has conversations.
pub struct Client {
    desk: Arc<Desk>,
    wire: Wire,
    from: Instant,
    until: Instant,
    told: Told,
}

impl Client {
    /// Operations are counted between `from` and `until`.
    ///
    /// # Errors
    /// When the service cannot be reached.
    pub async fn new(desk: Arc<Desk>, to: SocketAddr, from: Instant, until: Instant) -> anyhow::Result<Self> {
        Ok(Self { desk, wire: Wire::connect(to).await?, from, until, told: Told::new()? })
    }

    /// Has conversations until the time is over, and ends the last one.
    ///
    /// # Errors
    /// When the service refuses something.
    pub async fn run(mut self) -> anyhow::Result<Told> {
        while Instant::now() < self.until {
            let turn = self.desk.conversations.fetch_add(1, Ordering::Relaxed);
            self.converse(turn).await?;
        }
        Ok(self.told)
    }

    async fn converse(&mut self, turn: u64) -> anyhow::Result<()> {
        let desk = Arc::clone(&self.desk);
        let session = format!("{}-{turn}", desk.tag);
        let (customer, staff) = (desk.gateway.token.as_str(), |agent: usize| desk.agents[agent].token.as_str());
        let mut assignments = desk.assigned.watch(&session);
        let open = json!({"SessionId": session, "FromId": "customer", "FromName": "Customer"});
        let answer = self.operation("/session/open", customer, open.to_string().as_bytes()).await?;
        let mut owner = match answer.to.as_deref().filter(|to| !to.is_empty()) {
            Some(to) => desk.agent(to)?,
            None => assigned(&mut assignments, 0).await?,
        };
        self.added(&session, owner);
        for message_number in 0..MESSAGES {
            let is_customers = message_number % 2 == 0;
            let token = if is_customers { customer } else { staff(owner) };
            let version = self.message(&session, token, owner, is_customers).await?;
            if message_number == TRANSFERRED_AFTER && turn % 10 == 3 {
                let target = (owner + 1) % desk.agents.len();
                let transfer = json!({"SessionId": session, "ToNewId": desk.agents[target].id});
                self.operation("/session/transfer", staff(owner), transfer.to_string().as_bytes()).await?;
                self.promise(owner, &session, Kind::Removed, None);
                self.added(&session, target);
                owner = target;
            }
            if message_number == RELEASED_AFTER && turn % 20 == 7 {
                let release = json!({"SessionId": session});
                let answer = self.operation("/session/release", staff(owner), release.to_string().as_bytes()).await?;
                ensure!(answer.status == "queued", "a released session is {}", answer.status);
                self.promise(owner, &session, Kind::Removed, None);
                owner = assigned(&mut assignments, version).await?;
                self.added(&session, owner);
            }
        }
        let close = json!({"SessionId": session});
        self.operation("/session/close", staff(owner), close.to_string().as_bytes()).await?;
        self.promise(owner, &session, Kind::Removed, None);
        self.promise(desk.gateway_feed(), &session, Kind::Removed, None);
        desk.assigned.forget(&session);
        Ok(())
    }

    /// Returns the message's version.
    async fn message(&mut self, session: &str, token: &str, owner: usize, is_customers: bool) -> anyhow::Result<i64> {
        let number = self.desk.numbers.fetch_add(1, Ordering::Relaxed);
        let gateway = self.desk.gateway_feed();
        let recipient = if is_customers { owner } else { gateway };
        self.told.sent.push((number, Instant::now(), recipient));
        let version = self.operation("/message/send", token, &message(session, number, None)).await?.version;
        ensure!(version > 0, "a message of an open session has no version");
        self.promise(owner, session, Kind::Message(number), Some(version));
        if !is_customers {
            self.promise(gateway, session, Kind::Message(number), None);
        }
        Ok(version)
    }

    async fn operation(&mut self, path: &str, token: &str, body: &[u8]) -> anyhow::Result<Answer> {
        let started = Instant::now();
        let answered = self.wire.exchange_ok(&post(path, token, body)).await.with_context(|| path.to_owned())?;
        let ended = Instant::now();
        if started >= self.from && started <= self.until {
            self.told.latencies.record(ended - started);
        }
        if ended >= self.from && ended <= self.until {
            self.told.operations += 1;
        }
        Ok(serde_json::from_slice(&answered.body)?)
    }

    /// An agent has a session now, and the gateway is told.
    fn added(&mut self, session: &str, owner: usize) {
        self.promise(owner, session, Kind::Added, None);
        self.promise(self.desk.gateway_feed(), session, Kind::Added, None);
    }

    fn promise(&mut self, feed: usize, session: &str, kind: Kind, version: Option<i64>) {
        self.told.promised.push(Promised { feed, session: session.to_owned(), kind, version });
    }
}

/// The agent who was given a session after version `after`.
async fn assigned(assignments: &mut mpsc::Receiver<(usize, i64)>, after: i64) -> anyhow::Result<usize> {
    loop {
        let told = timeout(ASSIGNED_MAX, assignments.recv()).await.context("a queued session reaches no agent")?;
        let (agent, version) = told.context("nobody follows")?;
        if version > after {
            return Ok(agent);
        }
    }
}
