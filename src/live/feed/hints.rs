//! What tasks ask of each other between their regular turns. A lost request costs one turn of a timer.

use tokio::sync::Notify;

/// The doorbells of the relay and of whoever notifies other processes.
#[derive(Default)]
pub struct Hints {
    look: Notify,
    notify: Notify,
}

impl Hints {
    /// Asks the relay to look at the table soon.
    pub fn look(&self) {
        self.look.notify_one();
    }

    /// Completes when a look is asked for.
    pub async fn looked_for(&self) {
        self.look.notified().await;
    }

    /// Asks for a notification although nothing is new: a new LISTEN connection proves itself by hearing one.
    pub fn notify(&self) {
        self.notify.notify_one();
    }

    /// Completes when a notification is asked for.
    pub async fn must_notify(&self) {
        self.notify.notified().await;
    }
}
