//! How many polls each token holds open, and whose they are.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use uuid::Uuid;

use crate::domain::fault::Fault;

/// The open polls of a process.
pub struct Parked {
    polls: Mutex<HashMap<Uuid, usize>>,
    per_token_max: usize,
}

impl Parked {
    pub fn new(per_token_max: usize) -> Self {
        Self { polls: Mutex::default(), per_token_max }
    }

    /// Counts one more poll of a token until the guard is dropped.
    ///
    /// # Errors
    /// 42900 if the token holds as many as it may.
    pub fn enter(self: &Arc<Self>, token_id: Uuid) -> Result<ParkedPoll, Fault> {
        let mut polls = self.polls();
        let count = polls.entry(token_id).or_default();
        if *count >= self.per_token_max {
            return Err(Fault::TooMany("this token holds as many polls open as it may; end some first"));
        }
        *count += 1;
        metrics::gauge!("deskfeed_poll_waiters").increment(1.0);
        Ok(ParkedPoll { parked: Arc::clone(self), token_id })
    }

    /// The tokens of all open polls, except the admin token of the configuration.
    pub fn token_ids(&self) -> HashSet<Uuid> {
        self.polls().keys().copied().filter(|token_id| !token_id.is_nil()).collect()
    }

    fn polls(&self) -> MutexGuard<'_, HashMap<Uuid, usize>> {
        // Nothing panics while holding it.
        self.polls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One open poll.
pub struct ParkedPoll {
    parked: Arc<Parked>,
    token_id: Uuid,
}

impl Drop for ParkedPoll {
    fn drop(&mut self) {
        metrics::gauge!("deskfeed_poll_waiters").decrement(1.0);
        let mut polls = self.parked.polls();
        if let Some(count) = polls.get_mut(&self.token_id) {
            *count -= 1;
            if *count == 0 {
                polls.remove(&self.token_id);
            }
        }
    }
}
