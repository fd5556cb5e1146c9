//! Sessions and agents as this process last saw them. A cache: the append checks what is decided on it, so a stale
//! entry costs a retry, and an empty cache costs only speed.
//!
//! **Message numbers.** An append needs the number of a session's newest message, and the version up to which that
//! number is valid. While only this process appends, each append begins where the previous one ended, so every known
//! number stays valid up to the head. `era` counts how often that was interrupted.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    desk::facts::Fact,
    domain::{ids::FeedKey, limits},
    store::sessions::Found,
};

/// Maximum number of cached sessions; then all are evicted.
const SESSIONS_MAX: usize = 50_000;
/// Maximum number of cached agents; then all are evicted.
const AGENTS_MAX: usize = 50_000;

/// The cached state that a process decides appends on.
#[derive(Debug, Default)]
pub struct AppendCache {
    /// The history that it belongs to.
    history: Uuid,
    /// The newest version known.
    head: i64,
    era: u64,
    /// When this process last noticed another process's append.
    contended_at: Option<Instant>,
    sessions: HashMap<String, Entry>,
    agents: HashMap<String, FeedKey>,
}

#[derive(Debug)]
struct Entry {
    found: Found,
    /// The head at which `found.seq` was valid, ..
    seq_version: i64,
    /// .. and it still is, if this is the present era.
    era: Option<u64>,
}

impl AppendCache {
    /// The newest known version. It exists.
    pub fn head(&self) -> i64 {
        self.head
    }

    /// Whether another process has appended lately.
    pub fn is_contended(&self) -> bool {
        self.contended_at.is_some_and(|at| at.elapsed() < Duration::from_millis(limits::APPEND_CONTENDED_MS))
    }

    /// Clears the cache if the history is another one.
    pub fn enter(&mut self, history: Uuid) {
        if self.history != history {
            *self = Self { history, era: self.era + 1, ..Self::default() };
        }
    }

    /// Clears the cache: its source may be lost although the history has the same name.
    pub fn clear(&mut self) {
        *self = Self { history: self.history, era: self.era + 1, ..Self::default() };
    }

    /// Returns the cached state of a session.
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

    /// Adds sessions from a snapshot whose newest version was `head`.
    pub fn add(&mut self, head: i64, found: impl IntoIterator<Item = Found>) {
        for found in found {
            self.put(found, head);
        }
    }

    fn put(&mut self, found: Found, seq_version: i64) {
        if self.sessions.len() > SESSIONS_MAX {
            self.sessions.clear();
        }
        // Valid at the head, so nothing was missed.
        let era = (seq_version == self.head).then_some(self.era);
        match self.sessions.get_mut(&found.session.session_id) {
            // The later of two appends may be recorded first.
            Some(entry) if entry.seq_version > seq_version => {}
            Some(entry) => *entry = Entry { found, seq_version, era },
            None => {
                self.sessions.insert(found.session.session_id.clone(), Entry { found, seq_version, era });
            }
        }
    }

    /// Evicts sessions that have changed.
    pub fn forget<'s>(&mut self, session_ids: impl IntoIterator<Item = &'s str>) {
        for session_id in session_ids {
            self.sessions.remove(session_id);
        }
    }

    /// Records an append of this process: `head` was the newest version before it, `last` after it, and `sessions`
    /// are as it left them.
    pub fn appended(&mut self, head: i64, last: i64, sessions: impl IntoIterator<Item = Found>) {
        if head != self.head {
            self.era += 1;
            // If it is lower, another lane's later append was recorded first.
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

        // Another process has appended 21..=25.
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
