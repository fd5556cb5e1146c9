//! When agents polled and tokens were used, noted in the database every few seconds, those of all
//! requests together. An agent whose poll is parked counts as polling.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use moka::sync::Cache;
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{append::Writer, freshness::Freshness};
use crate::{
    desk::command::Command,
    domain::{caller::Caller, ids::FeedKey, limits},
    store::{self, agents, pool::Db, sessions, tokens},
};

/// What is to be noted.
pub struct Activity {
    noted: Mutex<Noted>,
    /// Tokens whose use the database has heard of lately.
    tokens_flushed: Cache<Uuid, ()>,
    /// An agent that may have been silent is here: do not wait for the timer.
    urgent: Notify,
}

#[derive(Default)]
struct Noted {
    agents: HashMap<FeedKey, Polls>,
    tokens: HashSet<Uuid>,
}

struct Polls {
    parked: usize,
    last: Instant,
    /// When the database last heard of it.
    flushed: Option<Instant>,
}

impl Default for Activity {
    fn default() -> Self {
        let renew = Duration::from_secs(limits::ACTIVITY_RENEW_S);
        Self {
            noted: Mutex::default(),
            tokens_flushed: Cache::builder().time_to_live(renew).build(),
            urgent: Notify::new(),
        }
    }
}

impl Activity {
    /// Counts a poll by the holder of a token, until the guard is dropped.
    pub fn poll(self: &Arc<Self>, caller: &Caller) -> Option<ActivePoll> {
        let Caller::Agent(agent) = caller else { return None };
        let mut noted = self.noted();
        let polls =
            noted.agents.entry(agent.key).or_insert_with(|| Polls { parked: 0, last: Instant::now(), flushed: None });
        polls.parked += 1;
        polls.last = Instant::now();
        let stale = Duration::from_secs(limits::AGENT_SILENT_S.unsigned_abs() / 2);
        if polls.flushed.is_none_or(|flushed| flushed.elapsed() > stale) {
            self.urgent.notify_one();
        }
        Some(ActivePoll { activity: Arc::clone(self), agent: agent.key })
    }

    /// Counts the use of a token.
    pub fn token_used(&self, token_id: Uuid) {
        if !token_id.is_nil() && !self.tokens_flushed.contains_key(&token_id) {
            self.noted().tokens.insert(token_id);
        }
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        // Nothing panics while holding it.
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// (feed, seconds since its last poll) of those that polled since they were last taken.
    fn take_polls(&self) -> Vec<(FeedKey, f64)> {
        let mut noted = self.noted();
        let now = Instant::now();
        let mut polls: Vec<(FeedKey, f64)> = noted
            .agents
            .iter_mut()
            .filter(|(_, polls)| polls.is_due())
            .map(|(key, polls)| {
                let ago = if polls.parked > 0 { 0.0 } else { polls.last.elapsed().as_secs_f64() };
                polls.flushed = Some(now);
                (*key, ago)
            })
            .collect();
        noted.agents.retain(|_, polls| polls.parked > 0 || polls.last.elapsed() < Duration::from_secs(600));
        polls.sort_by_key(|(key, _)| *key);
        polls
    }

    fn put_back(&self, polls: &[(FeedKey, f64)], token_ids: Vec<Uuid>) {
        let mut noted = self.noted();
        for (key, _) in polls {
            if let Some(polls) = noted.agents.get_mut(key) {
                polls.flushed = None;
            }
        }
        for id in &token_ids {
            self.tokens_flushed.invalidate(id);
        }
        noted.tokens.extend(token_ids);
    }

    fn take_tokens(&self) -> Vec<Uuid> {
        let ids: Vec<Uuid> = self.noted().tokens.drain().collect();
        for id in &ids {
            self.tokens_flushed.insert(*id, ());
        }
        ids
    }
}

impl Polls {
    /// Whether the database is to hear of it: there is something to tell, and it has not been told lately.
    fn is_due(&self) -> bool {
        let renew = Duration::from_secs(limits::ACTIVITY_RENEW_S);
        self.flushed.is_none_or(|flushed| flushed.elapsed() >= renew && (self.parked > 0 || self.last > flushed))
    }
}

/// A poll of an agent that is going on.
pub struct ActivePoll {
    activity: Arc<Activity>,
    agent: FeedKey,
}

impl Drop for ActivePoll {
    fn drop(&mut self) {
        if let Some(polls) = self.activity.noted().agents.get_mut(&self.agent) {
            polls.parked = polls.parked.saturating_sub(1);
            polls.last = Instant::now();
        }
    }
}

/// Notes activity until `stop`, and has queued sessions assigned when an agent may have become available.
pub async fn run(activity: Arc<Activity>, db: Db, freshness: Arc<Freshness>, writer: Writer, stop: CancellationToken) {
    let mut flush = interval(Duration::from_millis(limits::ACTIVITY_FLUSH_MS));
    let mut assign = interval(Duration::from_millis(limits::ASSIGN_SWEEP_MS));
    flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
    assign.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (is_noting, is_stopping) = tokio::select! {
            () = stop.cancelled() => (true, true),
            () = activity.urgent.notified() => (true, false),
            _ = flush.tick() => (true, false),
            _ = assign.tick() => (false, false),
        };
        if is_noting && let Err(error) = note(&activity, &db).await {
            tracing::debug!(error = %error, "polls and token uses were not noted; the next round will try again");
        }
        if is_stopping {
            return;
        }
        if !freshness.is_in_touch() {
            continue;
        }
        match db.read(sessions::any_queued).await {
            // The writer logs its own failures; the next round tries again.
            Ok(true) => drop(writer.submit(Command::AssignQueued).await),
            Ok(false) => {}
            Err(error) => tracing::debug!(error = %error, "the queue was not looked at; the next round will try again"),
        }
    }
}

async fn note(activity: &Activity, db: &Db) -> store::Result<()> {
    let polls = activity.take_polls();
    let token_ids = activity.take_tokens();
    if polls.is_empty() && token_ids.is_empty() {
        return Ok(());
    }
    let noted = db.change(async |connection| {
        if !polls.is_empty() {
            agents::note_polls(connection, &polls).await?;
        }
        if !token_ids.is_empty() {
            tokens::note_uses(connection, &token_ids).await?;
        }
        Ok(())
    });
    let noted = noted.await;
    if noted.is_err() {
        activity.put_back(&polls, token_ids);
    }
    noted
}
