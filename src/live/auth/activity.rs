//! Which agents polled and which tokens were used lately, until it is recorded in the database
//! ([`upkeep::activity`](crate::live::upkeep::activity)). An agent whose poll is parked counts as polling.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use moka::sync::Cache;
use tokio::{sync::Notify, time::Instant};
use uuid::Uuid;

use crate::domain::{caller::Caller, ids::FeedKey, limits};

/// What is to be recorded.
pub struct Activity {
    noted: Mutex<Noted>,
    /// Tokens whose use was recorded lately.
    tokens_flushed: Cache<Uuid, ()>,
    /// An agent that may have counted as silent is polling: do not wait for the timer.
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
    /// When this was last recorded.
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

    /// Completes when an agent that may have counted as silent polls.
    pub async fn urgent(&self) {
        self.urgent.notified().await;
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        // Nothing panics while holding it.
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// (feed, seconds since its last poll) of the agents that are due.
    pub fn take_polls(&self) -> Vec<(FeedKey, f64)> {
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

    /// Puts back what was taken and could not be recorded.
    pub fn put_back(&self, polls: &[(FeedKey, f64)], token_ids: Vec<Uuid>) {
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

    /// The tokens that were used and are due.
    pub fn take_tokens(&self) -> Vec<Uuid> {
        let ids: Vec<Uuid> = self.noted().tokens.drain().collect();
        for id in &ids {
            self.tokens_flushed.insert(*id, ());
        }
        ids
    }
}

impl Polls {
    /// Whether it is to be recorded: there is something new, and it was not recorded lately.
    fn is_due(&self) -> bool {
        let renew = Duration::from_secs(limits::ACTIVITY_RENEW_S);
        self.flushed.is_none_or(|flushed| flushed.elapsed() >= renew && (self.parked > 0 || self.last > flushed))
    }
}

/// An agent's poll in progress.
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
