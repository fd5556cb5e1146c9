//! How the lane of this process publishes what it commits, so that its readers need not wait for a look at the table.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Basis, Feed, hints::Hints};
use crate::{domain::event::Event, store::cards::Cards};

/// Batches that may wait for the relay; beyond that it looks at the table.
const QUEUE_BATCHES_MAX: usize = 64;

/// The lane's side.
pub struct Publisher {
    feed: Arc<Feed>,
    hints: Arc<Hints>,
    committed: mpsc::Sender<Committed>,
}

/// What this process has committed, for the relay.
pub struct Committed {
    /// Taken before anything of it was decided.
    pub basis: Basis,
    /// The name of the history that it was appended to.
    pub epoch: Arc<str>,
    /// The newest version before it.
    pub head: i64,
    /// The events as readers are shown them, if the lane knows.
    pub events: Option<Vec<Event>>,
}

impl Publisher {
    /// The lane's side and the relay's.
    pub fn new(feed: Arc<Feed>, hints: Arc<Hints>) -> (Self, mpsc::Receiver<Committed>) {
        let (committed, to_relay) = mpsc::channel(QUEUE_BATCHES_MAX);
        (Self { feed, hints, committed }, to_relay)
    }

    /// What cached state is true for; take it before anything of a batch is decided.
    pub fn basis(&self) -> Basis {
        self.feed.basis()
    }

    /// The cached sessions and profiles; take them before the connection that they are read over.
    pub fn cards(&self) -> Cards {
        self.feed.cards.cards()
    }

    /// The name of the history that this process follows.
    pub fn epoch(&self) -> Arc<str> {
        self.feed.notices.epoch()
    }

    /// Publishes a commit whose newest version is `last`. Call it before anybody is answered. If the relay is busy,
    /// it sees the commit for itself.
    pub fn publish(&self, committed: Committed, last: i64) {
        self.feed.committed.note(committed.basis.histories, last);
        if self.committed.try_send(committed).is_err() {
            self.hints.look();
        }
    }

    /// Asks the relay to look at the table: there is something new that was not published, or another history.
    pub fn hint(&self) {
        self.hints.look();
    }
}
