//! Appending: requests that change something leave their work here and are answered after its commit.
//!
//! A [`Writer`] is the handle, with a queue behind it. [`Lane`]s take from the queue: each has a
//! connection and one append under way. While the server commits one lane's append, another lane gathers what
//! has come meanwhile, decides it ([`crate::desk`]) and sends it; the append lock puts them in order. There is no
//! timer: batches grow with the load, and a lone request waits for nobody.
//!
//! | state of a request | how it gets there | how it leaves |
//! | --- | --- | --- |
//! | waiting | submitted; or put off, because it must not be in the same append as another | a lane takes it, with everything else that waits, up to a limit of cost |
//! | decided | on cached facts; on facts read now, if a decision on cached ones was refused by the append, or would refuse the request | appended; or answered, if it writes nothing |
//! | appended | the server has answered: committed, and replicated as far as its settings ask for | answered; or waiting again, if its session had changed |
//! | refused | the server has refused the whole batch, and nothing was written | the batch is halved, until the request that spoils it is alone and is answered 50000 |
//! | unknown | the append was not answered in time, or its connection broke | settled: it is found by its evidence and answered, or will never happen and waits again |
//! | overdue | [`APPEND_WAIT_MS`](crate::domain::limits::APPEND_WAIT_MS) after it was submitted | answered 50300; if it was unknown, its lane settles it before its next append all the same |
//!
//! **An unknown outcome** is decided by nothing but the random number that the append's first event carries
//! (`settle_append()`). No server process is ever ended: one that waits for a standby holds the append lock, which is
//! what keeps everybody from acknowledging what could be lost. Looking for the append waits for that lock, too.
//!
//! **What an answer promises** is durable, and replicated as far as the server's settings ask for: the answer to an
//! append because it comes after its commit, any other (to a repetition) because of a [`barrier`] or a later
//! commit of the same connection.
//!
//! A lane owns its append: a client that goes away changes nothing.
//!
//! [`barrier`]: crate::store::barrier

mod cache;
mod notifier;
mod writer;

use std::sync::Arc;

use tokio::sync::watch;

use self::notifier::Notifier;
pub use self::writer::{Lane, Writer};
use super::feed::{hints::Hints, publisher::Publisher};
use crate::store::pool::Db;

/// The handle, and what must be run for it: the lanes, and the notifier of what they commit, which `sender` marks.
pub fn start(db: Db, publisher: Publisher, hints: Arc<Hints>, sender: u64) -> (Writer, Vec<Lane>, Notifier) {
    let (heads, committed) = watch::channel(0);
    let notifier = Notifier { db: db.clone(), heads: committed, hints, sender };
    let (writer, lanes) = writer::lanes(db, publisher, heads);
    (writer, lanes, notifier)
}
