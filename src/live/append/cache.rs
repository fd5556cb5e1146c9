//! Sessions and agents as this process last saw them. A cache: what is decided on it is checked by the
//! append, so a stale entry costs one more look, and an empty cache nothing but speed.
//!
//! **Numbers of messages.** An append needs to know the number of a session's newest message, and up to which
//! version that is so. While nobody but this process appends, each append begins where the one before ended,
//! and every number that was known stays known: `era` counts how often that was not so.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    desk::facts::Fact,
    domain::{ids::FeedKey, limits},
    store::sessions::Found,
};

/// Sessions in the cache at most; then it starts again.
const SESSIONS_MAX: usize = 50_000;
/// Agents whose keys are in the cache at most.
const AGENTS_MAX: usize = 50_000;

/// What a process knows for its appends.
#[derive(Debug, Default)]
pub struct AppendCache {
    /// The history that all of it belongs to.
    history: Uuid,
    /// The newest version known.
    head: i64,
    era: u64,
    /// When another process's append was last met.
    contended_at: Option<Instant>,
    sessions: HashMap<String, Entry>,
    agents: HashMap<String, FeedKey>,
}

#[derive(Debug)]
struct Entry {
    found: Found,
    /// The number of its newest message was known when this was the newest version, ..
    seq_version: i64,
    /// .. and is known since, if this is the present era.
    era: Option<u64>,
}

impl AppendCache {
    /// The newest version known; it is there.
    pub fn head(&self) -> i64 {
        self.head
    }

    /// Whether another process has appended lately.
    pub fn is_contended(&self) -> bool {
        self.contended_at.is_some_and(|at| at.elapsed() < Duration::from_millis(limits::APPEND_CONTENDED_MS))
    }

    /// Forgets everything if the history is another one.
    pub fn enter(&mut self, history: Uuid) {
        if self.history != history {
            *self = Self { history, era: self.era + 1, ..Self::default() };
        }
    }

    /// Forgets everything: what it was read of may be lost although the history has the same name.
    pub fn clear(&mut self) {
        *self = Self { history: self.history, era: self.era + 1, ..Self::default() };
    }

    /// What is known of a session.
    pub fn session(&self, session_id: &str) -> Option<Fact> {
        let entry = self.sessions.get(session_id)?;
        let seq_version = if entry.era == Some(self.era) { self.head } else { entry.seq_version };
        Some(Fact { found: Some(entry.found.clone()), seq_version, is_fresh: false })
    }

    pub fn agent(&self, id: &str) -> Option<FeedKey> {
        self.agents.get(id).copied()
    }

    pub fn add_agents(&mut self, agents: impl IntoIterator<Item = (String, FeedKey)>) {
        if self.agents.len() > AGENTS_MAX {
            self.agents.clear();
        }
        self.agents.extend(agents);
    }

    /// Adds sessions as a snapshot showed them whose newest version was `head`.
    pub fn add(&mut self, head: i64, found: impl IntoIterator<Item = Found>) {
        for found in found {
            self.put(found, head);
        }
    }

    fn put(&mut self, found: Found, seq_version: i64) {
        if self.sessions.len() > SESSIONS_MAX {
            self.sessions.clear();
        }
        // At the head nothing can have been missed.
        let era = (seq_version == self.head).then_some(self.era);
        match self.sessions.get_mut(&found.session.session_id) {
            // Of two appends, the later one may be noted first.
            Some(entry) if entry.seq_version > seq_version => {}
            Some(entry) => *entry = Entry { found, seq_version, era },
            None => {
                self.sessions.insert(found.session.session_id.clone(), Entry { found, seq_version, era });
            }
        }
    }

    /// Forgets sessions: somebody has changed them.
    pub fn forget<'s>(&mut self, session_ids: impl IntoIterator<Item = &'s str>) {
        for session_id in session_ids {
            self.sessions.remove(session_id);
        }
    }

    /// Notes an append of this process: `head` was the newest version before it, `last` is after it, and
    /// `sessions` are as it left them.
    pub fn appended(&mut self, head: i64, last: i64, sessions: impl IntoIterator<Item = Found>) {
        if head != self.head {
            self.era += 1;
            // Below: another lane's append, noted before this one.
            if head > self.head {
                self.contended_at = Some(Instant::now());
            }
        }
        self.head = self.head.max(last);
        for found in sessions {
            self.put(found, last);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::{
        event::SessionCard,
        ids::SessionKey,
        session::{LastOp, Session, Status},
    };

    fn found(id: &str, seq: i32) -> Found {
        Found {
            session: Arc::new(Session {
                key: SessionKey(1),
                session_id: id.to_owned(),
                revision: 1,
                status: Status::Queued,
                owner: None,
                gateway: None,
                assigned_version: 0,
                last_op: LastOp::None,
                last_op_by: None,
                last_op_to: None,
                last_op_version: 0,
            }),
            card: Arc::new(SessionCard {
                session_id: id.to_owned(),
                session_type: 0,
                from_id: "c".to_owned(),
                from_name: None,
                from_image: None,
            }),
            seq,
        }
    }

    #[test]
    fn a_number_is_known_up_to_where_nobody_else_can_have_added_one() {
        let mut cache = AppendCache::default();
        cache.appended(0, 10, [found("s1", 3)]);
        cache.appended(10, 20, [found("s2", 1)]);
        assert_eq!(cache.session("s1").unwrap().seq_version, 20, "all since were our own");

        // Somebody else has appended 21..=25.
        cache.appended(25, 30, [found("s2", 2)]);
        assert_eq!(cache.session("s1").unwrap().seq_version, 10);
        assert_eq!(cache.session("s2").unwrap().seq_version, 30);

        // A snapshot from before the newest append.
        cache.add(28, [found("s3", 0)]);
        cache.appended(30, 40, []);
        assert_eq!(cache.session("s3").unwrap().seq_version, 28);
        assert_eq!(cache.session("s2").unwrap().seq_version, 40);
    }

    #[test]
    fn two_appends_that_are_noted_out_of_order_leave_no_number_that_is_too_new() {
        let mut cache = AppendCache::default();
        cache.appended(0, 10, [found("s1", 1)]);
        cache.appended(20, 30, [found("s1", 3)]);
        cache.appended(10, 20, [found("s2", 1)]);
        assert_eq!(cache.head(), 30);
        assert!(cache.session("s2").unwrap().seq_version <= 20);
        assert_eq!(cache.session("s1").unwrap().seq_version, 30);
    }

    #[test]
    fn another_history_empties_it() {
        let mut cache = AppendCache::default();
        cache.appended(0, 10, [found("s1", 1)]);
        cache.enter(Uuid::from_u128(7));
        assert!(cache.session("s1").is_none());
        assert_eq!(cache.head(), 0);
    }
}
