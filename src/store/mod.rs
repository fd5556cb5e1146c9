//! The only place with SQL. Functions take a connection and give domain types.
//!
//! **Order.** Whoever appends events or changes a session or an agent first takes EXCLUSIVE on the
//! empty table `append_lock` ([`appends::begin`]), in a statement of its own so that the next
//! statement's snapshot is newer, and holds it until its commit. Versions are `max(version) + 1`
//! and so on, so they are dense and become visible in order: any snapshot that shows version v
//! shows all below v. That is what makes a scan `version > a` complete.
//!
//! **Isolation** is READ COMMITTED everywhere. **Lock order:** `append_lock`, then rows; the
//! recording of acknowledgements takes rows of `feeds` in the order of their keys and nothing
//! else, and never waits for an append.
//!
//! **Plans.** Every connection sets `plan_cache_mode = force_generic_plan` and turns off the kinds
//! of plan that the service never wants ([`pool`]), so that a table's statistics cannot turn a
//! range scan into something else at night.

pub mod acks;
pub mod agents;
pub mod appends;
pub mod archive;
pub mod cards;
pub mod catalog;
pub mod doctor;
pub mod erasures;
pub mod events;
pub mod history;
pub mod listener;
pub mod messages;
pub mod partitions;
pub mod pool;
pub mod retention;
pub mod rights;
pub mod schema;
pub mod sessions;
pub mod tokens;

use crate::domain::fault::Fault;

/// What the database said, before it becomes a [`Fault`].
pub type Result<T> = std::result::Result<T, sqlx::Error>;

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        if is_outage(&error) {
            Self::Unavailable {
                reason: "PostgreSQL cannot be reached or is too busy; try again",
                source: Some(error.into()),
            }
        } else {
            Self::internal(error)
        }
    }
}

/// Whether `error` says that the database is away or overloaded, and nothing about the request.
pub fn is_outage(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            // 08 connection, 53 resources, 57 operator intervention (and time-outs), 58 system;
            // 25006 a standby, 25P03 idle in transaction, 40 rollback, 55P03 lock not available.
            ["08", "53", "57", "58", "40"].iter().any(|class| code.starts_with(class))
                || ["25006", "25P03", "55P03"].contains(&code.as_ref())
        }),
        _ => false,
    }
}
