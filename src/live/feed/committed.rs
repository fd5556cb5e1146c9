//! The newest version that this process's writer has committed: read-your-writes on this replica, although the
//! tail may be a moment behind.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A version, and the history it belongs to.
#[derive(Default)]
pub struct CommittedHead {
    head: Mutex<Head>,
}

#[derive(Clone, Copy, Default)]
struct Head {
    /// As the notices count histories.
    history: u64,
    version: i64,
}

impl CommittedHead {
    /// Notes what was committed in a history, before anybody is answered for it. An earlier history's is no news.
    pub fn note(&self, history: u64, version: i64) {
        let mut head = self.head();
        if history > head.history {
            *head = Head { history, version };
        } else if history == head.history {
            head.version = head.version.max(version);
        }
    }

    /// The newest version committed in a history; 0 when there is none.
    pub fn of(&self, history: u64) -> i64 {
        let head = *self.head();
        if head.history == history { head.version } else { 0 }
    }

    fn head(&self) -> MutexGuard<'_, Head> {
        // Nothing panics while holding it.
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_of_an_earlier_history_is_not_kept() {
        let committed = CommittedHead::default();
        committed.note(1, 7);
        committed.note(1, 5);
        assert_eq!((committed.of(1), committed.of(2)), (7, 0));
        committed.note(2, 4);
        // A commit of before whose writer comes late.
        committed.note(1, 9);
        assert_eq!((committed.of(1), committed.of(2)), (0, 4));
    }
}
