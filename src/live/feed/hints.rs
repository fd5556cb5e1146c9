//! What the relay is asked for between its regular looks. A lost hint costs one turn of its timer.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// The relay's doorbell.
#[derive(Default)]
pub struct Hints {
    look: Notify,
    must_ping: AtomicBool,
}

impl Hints {
    /// Asks the relay to look at the table soon.
    pub fn look(&self) {
        self.look.notify_one();
    }

    /// Asks it to notify all processes, this one too, with its next look, and to look soon.
    pub fn ping(&self) {
        self.must_ping.store(true, Ordering::Release);
        self.look();
    }

    /// Completes when a look is asked for.
    pub async fn looked_for(&self) {
        self.look.notified().await;
    }

    /// Whether a ping was asked for since this was last called.
    pub fn take_ping(&self) -> bool {
        self.must_ping.swap(false, Ordering::AcqRel)
    }
}
