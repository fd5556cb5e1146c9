//! What every parked poll must hear, whatever its feed: the process stops, a token was revoked, the history is
//! another one.

use std::sync::Arc;

use tokio::sync::watch;

/// The present state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notice {
    /// The service is stopping: answer with what there is.
    draining: bool,
    /// Counts the times that tokens were found revoked.
    revocations: u64,
    /// The name of the store's history (`Feed-Epoch`).
    epoch: Arc<str>,
    /// Counts changes of history; a restore may leave the name as it was.
    histories: u64,
}

/// Tells all subscribers when something of it changes.
#[derive(Debug)]
pub struct Notices {
    present: watch::Sender<Notice>,
}

impl Default for Notices {
    fn default() -> Self {
        Self { present: watch::Sender::new(Notice::default()) }
    }
}

impl Notices {
    /// A receiver that sees changes from now on.
    pub fn subscribe(&self) -> watch::Receiver<Notice> {
        self.present.subscribe()
    }

    pub fn epoch(&self) -> Arc<str> {
        Arc::clone(&self.present.borrow().epoch)
    }

    pub fn histories(&self) -> u64 {
        self.present.borrow().histories
    }

    pub fn is_draining(&self) -> bool {
        self.present.borrow().draining
    }

    pub fn drain(&self) {
        self.present.send_modify(|notice| notice.draining = true);
    }

    pub fn revoked(&self) {
        self.present.send_modify(|notice| notice.revocations += 1);
    }

    pub fn history_changed(&self, epoch: &str) {
        self.present.send_modify(|notice| {
            notice.histories += 1;
            notice.epoch = Arc::from(epoch);
        });
    }
}
