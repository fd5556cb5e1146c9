//! What a replica remembers of the store as its own last append left it. While nobody else appends
//! or changes a session, a batch of messages can be decided on it without asking, and is then
//! appended in one round trip. Whether it still holds is checked by the append itself, under the
//! append lock (`append_events`): a wrong memory costs a round trip, never more.

use std::collections::HashMap;

use super::batch::Decision;
use crate::store::sessions::{Found, Standing};

/// Sessions remembered at most; then it begins anew.
const SESSIONS_MAX: usize = 50_000;

/// The store after our last append.
#[derive(Debug)]
pub struct Known {
    /// The newest version.
    pub head: i64,
    /// The count of changes to sessions and agents.
    pub changes: i64,
    sessions: HashMap<String, Found>,
    /// Whether it held when we last looked. When others append all the time, it is not worth trying.
    pub is_trusted: bool,
}

impl Known {
    /// Takes all of these sessions out, or none if one is not remembered.
    pub fn take(&mut self, session_ids: &[&str]) -> Option<HashMap<String, Found>> {
        let mut taken = HashMap::with_capacity(session_ids.len());
        for id in session_ids {
            match self.sessions.remove_entry(*id) {
                Some((id, found)) => taken.insert(id, found),
                None => {
                    self.sessions.extend(taken);
                    return None;
                }
            };
        }
        Some(taken)
    }

    /// What is remembered after a committed batch that began with `standing`, or, without one, was
    /// decided on `before`. None when the batch changed more than can be told.
    pub fn after(before: Option<Self>, standing: Option<&Standing>, batch: &mut Decision<'_>) -> Option<Self> {
        let changes = batch.changes?;
        let held = match (&before, standing) {
            (Some(before), Some(standing)) => before.head == standing.head && before.changes == standing.changes,
            (before, None) => before.is_some(),
            (None, Some(_)) => true,
        };
        let mut sessions = before.filter(|_| held).map(|before| before.sessions).unwrap_or_default();
        if sessions.len() > SESSIONS_MAX {
            sessions.clear();
        }
        sessions.extend(std::mem::take(&mut batch.sessions));
        Some(Self { head: batch.ledger.head(), changes, sessions, is_trusted: held })
    }
}
