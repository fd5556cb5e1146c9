//! The play: customers write through the gateway, agents poll, answer, hand on, close.
//!
//! Each agent has two devices: one works in instant mode and acknowledges what it was given; the
//! other only follows with `a`. The gateway follows with `a` and acknowledges too. What the readers
//! were given is kept, for the check.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, future::try_join_all, stream};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};

use super::{
    cast::{Cast, Member, SESSION_PREFIX},
    client::{Answer, Client},
    dialogues::Dialogue,
};

/// One conversation in so many is handed to another agent on the way.
const TRANSFER_EVERY: usize = 10;
/// Answers that a customer may have heard and not looked at: more than any dialogue has.
const TURNS_HEARD_MAX: usize = 4096;
/// How long a customer waits for an answer before the play is given up.
const CUSTOMER_PATIENCE: Duration = Duration::from_secs(120);

/// What everybody knows.
pub struct Stage {
    pub cast: Cast,
    pub dialogues: Vec<Dialogue>,
    run: String,
    state: Mutex<State>,
    over: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Messages on their way or kept, by Id.
    sent: HashMap<String, Sent>,
    /// Customers who wait for the next turn, by session.
    customers: HashMap<String, mpsc::Sender<usize>>,
}

/// A message that somebody sent.
#[derive(Debug, Clone)]
pub struct Sent {
    pub dialogue: usize,
    pub turn: usize,
    pub started: Instant,
    /// From the answer; 0 while the session was queued.
    pub version: Option<i64>,
}

/// An event as a reader was given it.
#[derive(Debug, Clone)]
pub struct Given {
    pub version: i64,
    pub event: Value,
}

/// What came of it.
pub struct Performance {
    /// What each agent's `a` device was given, then the gateway's; in the order of the cast.
    pub followed: Vec<Vec<Given>>,
    /// The versions that each agent's instant device was given.
    pub instant: Vec<Vec<i64>>,
    /// Where the `a` readers began.
    pub start: i64,
    /// From the start of a POST to its event at a poll, in microseconds.
    pub wake_us: Histogram<u64>,
    pub took: Duration,
}

impl Stage {
    pub fn new(cast: Cast, dialogues: Vec<Dialogue>, run: String) -> Self {
        Self { cast, dialogues, run, state: Mutex::default(), over: AtomicBool::new(false) }
    }

    pub fn session_id(&self, dialogue: usize) -> String {
        format!("{SESSION_PREFIX}{}-{dialogue}", self.run)
    }

    /// The Id of a turn: the same whenever it is sent again.
    fn message_id(&self, dialogue: usize, turn: usize) -> String {
        format!("{}-{dialogue}-{turn}", self.run)
    }

    pub fn sent(&self) -> HashMap<String, Sent> {
        self.state().sent.clone()
    }

    /// Which dialogue a session of this run plays.
    pub fn dialogue_of(&self, session_id: &str) -> Option<usize> {
        session_id.strip_prefix(SESSION_PREFIX)?.strip_prefix(&self.run)?.strip_prefix('-')?.parse().ok()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Sends one turn and notes it.
    async fn speak(&self, client: &Client, dialogue: usize, turn: usize) -> anyhow::Result<bool> {
        let id = self.message_id(dialogue, turn);
        let body =
            json!({"SessionId": self.session_id(dialogue), "Id": id, "Content": self.dialogues[dialogue].turns[turn]});
        let note = Sent { dialogue, turn, started: Instant::now(), version: None };
        self.state().sent.entry(id.clone()).or_insert(note);
        match client.try_post("/message/send", &body).await? {
            Answer::Done(answer) => {
                if let Some(sent) = self.state().sent.get_mut(&id) {
                    sent.version = answer["Version"].as_i64();
                }
                Ok(true)
            }
            // Handed on by another device, or closed: whoever has it now goes on.
            Answer::Refused(40301 | 40900) => Ok(false),
            Answer::Refused(code) => anyhow::bail!("a message was refused: {code}"),
        }
    }
}

/// Plays everything.
pub async fn perform(stage: &Arc<Stage>, concurrency: u32) -> anyhow::Result<Performance> {
    let status = stage.cast.admin.get(&format!("/feed/status?feed={}", stage.cast.gateway.id)).await?;
    let start = status["Head"].as_i64().context("/feed/status gave no Head")?;
    let turns: usize = stage.dialogues.iter().map(|dialogue| dialogue.turns.len()).sum();
    let bar = ProgressBar::new(turns as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} messages, {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    let started = Instant::now();
    let followers = try_join_all(
        stage.cast.agents.iter().chain([&stage.cast.gateway]).map(|member| follow(stage, member, start, &bar)),
    );
    let workers = try_join_all(stage.cast.agents.iter().map(|agent| work(stage, agent)));
    let customers = async {
        stream::iter(0..stage.dialogues.len())
            .map(|dialogue| converse(stage, dialogue))
            .buffer_unordered(concurrency as usize)
            .try_collect::<Vec<()>>()
            .await?;
        let took = started.elapsed();
        settle(stage).await?;
        stage.over.store(true, Ordering::Release);
        Ok::<Duration, anyhow::Error>(took)
    };
    let (took, followed, instant) = tokio::try_join!(customers, followers, workers)?;
    bar.finish_and_clear();
    let mut wake_us = Histogram::new(3)?;
    let mut streams = Vec::new();
    for (stream, latencies) in followed {
        streams.push(stream);
        for latency in latencies {
            wake_us.record(latency)?;
        }
    }
    Ok(Performance { followed: streams, instant, start, wake_us, took })
}

/// One customer: opens a session, writes, waits for each answer.
async fn converse(stage: &Stage, dialogue: usize) -> anyhow::Result<()> {
    let (answers, mut answered) = mpsc::channel(TURNS_HEARD_MAX);
    let session_id = stage.session_id(dialogue);
    stage.state().customers.insert(session_id.clone(), answers);
    let gateway = &stage.cast.gateway.client;
    let Dialogue { language, topic, turns } = &stage.dialogues[dialogue];
    let body = json!({"SessionId": session_id, "FromId": format!("customer-{dialogue}"), "FromName": format!("{language}: {topic}")});
    gateway.post("/session/open", &body).await?;
    for turn in (0..turns.len()).filter(|turn| Dialogue::is_customers(*turn)) {
        stage.speak(gateway, dialogue, turn).await?;
        // The answer; after the last turn, the end of the session.
        let expected = (turn + 1).min(turns.len());
        loop {
            let heard = tokio::time::timeout(CUSTOMER_PATIENCE, answered.recv()).await;
            let heard = heard.with_context(|| format!("nobody answered turn {turn} of session {session_id}"))?;
            if heard.context("the play was broken off")? >= expected {
                break;
            }
        }
    }
    Ok(())
}

/// Waits until every reader has acknowledged everything.
async fn settle(stage: &Stage) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let mut unacked = 0;
        for member in stage.cast.agents.iter().chain([&stage.cast.gateway]) {
            unacked += member.client.get("/feed/status").await?["Unacked"].as_i64().unwrap_or(0);
        }
        // Sessions of an even number of turns are closed after the customer's last answer.
        let open = stage.cast.gateway.client.get("/session/list?status=open&limit=1").await?;
        if unacked == 0 && open.as_array().is_some_and(Vec::is_empty) {
            return Ok(());
        }
        // What is left is the check's to tell.
        if Instant::now() >= until {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A device that follows with `a`. Gives what it was given, and how long each message took to get here.
async fn follow(
    stage: &Stage,
    member: &Member,
    start: i64,
    bar: &ProgressBar,
) -> anyhow::Result<(Vec<Given>, Vec<u64>)> {
    let is_gateway = member.id == stage.cast.gateway.id;
    let (mut given, mut latencies) = (Vec::new(), Vec::new());
    let (mut after, mut acks) = (start, String::new());
    loop {
        let over = stage.is_over();
        let page = member.client.query(&format!("a={after}&limit=1000&wait=2&c={acks}")).await?;
        let now = Instant::now();
        acks.clear();
        for event in page.events {
            let version = event["Version"].as_i64().context("an event without a version")?;
            if is_gateway {
                acks = format!("{}-{version}", start + 1);
            }
            let message = &event["Data"]["Message"][0];
            // An agent's message comes to two feeds; it counts at the gateway, where it was meant to go.
            if event["e"] == "Message" && (message["Type"] == 0 || is_gateway) {
                bar.inc(1);
                let sent = message["Id"].as_str().and_then(|id| stage.state().sent.get(id).map(|sent| sent.started));
                latencies.extend(sent.and_then(|started| u64::try_from((now - started).as_micros()).ok()));
            }
            if is_gateway {
                tell_customer(stage, &event);
            }
            given.push(Given { version, event });
        }
        after = page.next;
        if over && !page.more && acks.is_empty() {
            return Ok((given, latencies));
        }
    }
}

/// Hands what the gateway received to the customer it is for.
fn tell_customer(stage: &Stage, event: &Value) {
    let data = &event["Data"];
    let Some(session_id) = data["SessionId"].as_str() else { return };
    let state = stage.state();
    let Some(customer) = state.customers.get(session_id) else { return };
    let turn = match event["e"].as_str() {
        Some("Message") => data["Message"][0]["Id"].as_str().and_then(|id| state.sent.get(id)).map(|sent| sent.turn),
        Some("DelSession") => Some(usize::MAX),
        _ => None,
    };
    if let Some(turn) = turn {
        // A customer who has heard enough is gone.
        let _ = customer.try_send(turn);
    }
}

/// A device that works in instant mode: takes what is not acknowledged, does what is to be done,
/// acknowledges it with the next request.
async fn work(stage: &Stage, agent: &Member) -> anyhow::Result<Vec<i64>> {
    let mut given = Vec::new();
    let mut acks: Vec<String> = Vec::new();
    loop {
        let over = stage.is_over();
        let page = agent.client.query(&format!("limit=200&wait=2&c={}", acks.join(","))).await?;
        acks.clear();
        for event in &page.events {
            let version = event["Version"].as_i64().context("an event without a version")?;
            given.push(version);
            acks.push(acknowledgement(event, version));
        }
        // All at once, as people at one desk do who have several windows open.
        try_join_all(page.events.iter().map(|event| act(stage, agent, event))).await?;
        if over && page.events.is_empty() {
            return Ok(given);
        }
    }
}

/// Messages are acknowledged by Id, everything else by version.
fn acknowledgement(event: &Value, version: i64) -> String {
    match event["Data"]["Message"][0]["Id"].as_str() {
        Some(id) if event["e"] == "Message" => id.to_owned(),
        _ => version.to_string(),
    }
}

/// Answers what an event asks for, if anything.
async fn act(stage: &Stage, agent: &Member, event: &Value) -> anyhow::Result<()> {
    let data = &event["Data"];
    let last = data["Message"].as_array().and_then(|messages| messages.last());
    let is_asked = event["e"] != "DelSession" && last.is_some_and(|message| message["Type"] == 0);
    let Some(last) = last.filter(|_| is_asked) else { return Ok(()) };
    let Some(heard) = last["Id"].as_str().and_then(|id| stage.state().sent.get(id).cloned()) else { return Ok(()) };
    let came_by_transfer = event["e"] == "AddSession";
    let session_id = stage.session_id(heard.dialogue);
    if heard.turn == 0 && heard.dialogue.is_multiple_of(TRANSFER_EVERY) && !came_by_transfer {
        let colleague = &stage.cast.agents[(heard.dialogue / TRANSFER_EVERY) % stage.cast.agents.len()];
        if colleague.id != agent.id {
            let body = json!({"SessionId": session_id, "ToNewId": colleague.id});
            // Refused when the colleague is full or it is ours no more: then go on as if nothing was.
            if let Answer::Done(_) = agent.client.try_post("/session/transfer", &body).await? {
                return Ok(());
            }
        }
    }
    let turns = stage.dialogues[heard.dialogue].turns.len();
    let answer = heard.turn + 1;
    if answer < turns && !stage.speak(&agent.client, heard.dialogue, answer).await? {
        return Ok(());
    }
    if answer + 1 >= turns {
        match agent.client.try_post("/session/close", &json!({"SessionId": session_id})).await? {
            Answer::Done(_) | Answer::Refused(40301 | 40900) => {}
            Answer::Refused(code) => anyhow::bail!("a close was refused: {code}"),
        }
    }
    Ok(())
}
