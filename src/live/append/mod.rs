//! Appending: requests that change something are queued here and answered after their commit.
//!
//! A [`Writer`] is the handle, with a queue behind it. The [`Lane`] takes what is queued, decides it
//! ([`crate::desk`]) and sends it; it has a connection and at most one append in flight, during which the next batch
//! gathers. There is no timer: batches grow with the load, and a lone request does not wait for others. (Only while
//! other processes append does a batch wait a millisecond for more: its append would wait for theirs.)
//!
//! | state of a request | how it gets there | how it leaves |
//! | --- | --- | --- |
//! | waiting | submitted; or deferred, because it must not share an append with another request | the lane takes it with everything else that waits, up to a limit on cost |
//! | decided | on cached facts; on fresh ones if the append rejected the cached ones, or if they led to a refusal | appended; or answered, if it writes nothing |
//! | appended | the server has answered: committed, and replicated as far as its settings ask for | answered; or waiting again, if its session had changed |
//! | refused | the server refused the whole batch; nothing was written | the batch is halved until the offending request is alone and gets 50000 |
//! | unknown | the append timed out, or its connection broke | settled: found by its evidence and answered; or certain never to happen, and waiting again |
//! | overdue | [`APPEND_WAIT_MS`](crate::domain::limits::APPEND_WAIT_MS) after it was submitted | answered 50300; if it was unknown, the lane settles it before the next append |
//!
//! **An unknown outcome** is decided only by the random number in the append's first event (`settle_append()`). No
//! backend is ever terminated: one that waits for a standby holds the append lock, and so keeps everybody from
//! acknowledging what could be lost. Settling waits for that lock too.
//!
//! **An answer** is durable, and replicated as far as the server's settings ask for. The answer to an append follows
//! its commit; any other (to a repetition) follows a [`barrier`] or a later commit on the same connection.
//!
//! The lane owns its append: a client that disconnects changes nothing.
//!
//! [`barrier`]: crate::store::barrier

mod cache;
mod lane;
mod lookup;
mod notifier;
mod writer;

use std::sync::Arc;

use tokio::sync::watch;

use self::notifier::Notifier;
pub use self::{lane::Lane, writer::Writer};
use super::feed::{hints::Hints, publisher::Publisher};
use crate::store::pool::Db;

/// Returns the handle, and the tasks to run for it: the lane, and the notifier of its commits. `sender` marks the
/// notifications of this process.
pub fn start(db: Db, publisher: Publisher, hints: Arc<Hints>, sender: u64) -> (Writer, Lane, Notifier) {
    let (heads, committed) = watch::channel(0);
    let notifier = Notifier { db: db.clone(), heads: committed, hints, sender };
    let (writer, lane) = lane::lane(db, publisher, heads);
    (writer, lane, notifier)
}
