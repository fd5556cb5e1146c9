//! How the writer of this process publishes what it commits, so that its readers need not wait for a look at the
//! table.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Basis, Feed, hints::Hints};
use crate::{domain::event::Event, store::cards::Cards};

/// Batches that may wait for the relay; beyond that it looks at the table.
const QUEUE_BATCHES_MAX: usize = 64;

/// The writer's side.
pub struct Publisher {
    feed: Arc<Feed>,
    hints: Arc<Hints>,
    committed: mpsc::Sender<Committed>,
}

/// What was committed, for the relay.
pub struct Committed {
    /// Taken before anything of it was decided.
    pub basis: Basis,
    /// The events as readers are shown them, if the writer knows.
    pub events: Option<Vec<Event>>,
}

impl Publisher {
    /// The writer's side and the relay's.
    pub fn new(feed: Arc<Feed>, hints: Arc<Hints>) -> (Self, mpsc::Receiver<Committed>) {
        let (committed, to_relay) = mpsc::channel(QUEUE_BATCHES_MAX);
        (Self { feed, hints, committed }, to_relay)
    }

    /// What cached state is true for; take it before anything of a batch is decided.
    pub fn basis(&self) -> Basis {
        self.feed.basis()
    }

    /// The cached sessions and profiles; take them before anything of a batch is read.
    pub fn cards(&self) -> Cards {
        self.feed.cards.cards()
    }

    /// The name of the history that this process follows.
    pub fn epoch(&self) -> Arc<str> {
        self.feed.notices.epoch()
    }

    /// Publishes a commit whose newest version is `head`. Call it before anybody is answered.
    pub fn publish(&self, basis: Basis, head: i64, events: Option<Vec<Event>>) {
        self.feed.committed.note(basis.histories, head);
        if self.committed.try_send(Committed { basis, events }).is_err() {
            self.hints.look();
        }
    }
}
