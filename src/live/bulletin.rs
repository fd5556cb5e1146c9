//! What every parked poll must hear, whatever its feed: the process stops, a token was revoked, the
//! history is another one.

use std::sync::Arc;

use tokio::sync::watch;

/// The present notice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notice {
    /// The service is stopping: answer with what there is.
    pub draining: bool,
    /// Counts revocations that this process knows of.
    pub revocations: u64,
    /// The store's history, as this process knows it (`Feed-Epoch`).
    pub epoch: Arc<str>,
    /// Counts how often the store was found to hold another history, whether or not its name changed.
    pub histories: u64,
}

/// The board on which it hangs.
#[derive(Debug)]
pub struct Bulletin {
    board: watch::Sender<Notice>,
}

impl Default for Bulletin {
    fn default() -> Self {
        Self { board: watch::Sender::new(Notice::default()) }
    }
}

impl Bulletin {
    /// To be woken when the notice changes.
    pub fn subscribe(&self) -> watch::Receiver<Notice> {
        self.board.subscribe()
    }

    pub fn read(&self) -> Notice {
        self.board.borrow().clone()
    }

    pub fn epoch(&self) -> Arc<str> {
        Arc::clone(&self.board.borrow().epoch)
    }

    pub fn is_draining(&self) -> bool {
        self.board.borrow().draining
    }

    pub fn drain(&self) {
        self.board.send_modify(|notice| notice.draining = true);
    }

    pub fn count_revocation(&self) {
        self.board.send_modify(|notice| notice.revocations += 1);
    }

    pub fn histories(&self) -> u64 {
        self.board.borrow().histories
    }

    /// The store holds another history now.
    pub fn change_history(&self, epoch: &str) {
        self.board.send_modify(|notice| {
            notice.histories += 1;
            notice.epoch = Arc::from(epoch);
        });
    }
}
