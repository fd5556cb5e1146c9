//! Warnings of the server. PostgreSQL says by a warning, and in no other way, that a commit did not wait for its
//! standby because somebody cancelled the wait: the statement succeeds all the same. The driver makes such
//! notices log events, so a layer of the log counts them.

use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{Event, Subscriber};
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets},
    layer::Context,
    registry::LookupSpan,
};

/// Warnings that any server has sent to this process.
static WARNINGS: AtomicU64 = AtomicU64::new(0);

/// Counts warnings of servers.
struct Counter;

impl<S: Subscriber> Layer<S> for Counter {
    fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
        WARNINGS.fetch_add(1, Ordering::AcqRel);
    }
}

/// The layer that a process's log must have.
pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    Counter.with_filter(Targets::new().with_target("sqlx::postgres::notice", LevelFilter::WARN))
}

/// How many warnings servers have sent to this process. If it has risen while something was committed, the commit may
/// not have been replicated. (It may have been another connection's warning; then a barrier too many is waited for.)
pub fn warnings() -> u64 {
    WARNINGS.load(Ordering::Acquire)
}
