//! The only place with SQL. Functions take a connection and return domain types, or an [`Error`] that says whether
//! the same request may succeed later.
//!
//! **Order.** `append()` ([`appends`]) takes EXCLUSIVE on the empty table `append_lock` before it looks at anything,
//! and holds it until its commit; so does everybody else who changes a session or an agent. Versions are
//! `max(version) + 1` and so on, so they are dense and become visible in order: any snapshot that shows version v
//! shows all below v. That is what makes a scan `version > a` complete.
//!
//! **Isolation** is READ COMMITTED everywhere. **Lock order:** `append_lock`, then rows; the
//! recording of acknowledgements takes rows of `feeds` in the order of their keys and nothing
//! else, and never waits for an append.
//!
//! **Connections.** [`pool::Db::read`] runs work on a pooled connection and keeps its deadline; writers, the relay
//! and the listener have connections of their own.
//!
//! **Plans.** Every connection sets `plan_cache_mode = force_generic_plan` and turns off the kinds of plan that
//! the service never wants ([`pool`]), so that new statistics cannot turn a range scan into something else.

pub mod acks;
pub mod agents;
pub mod appends;
pub mod archive;
pub mod barrier;
pub mod cards;
pub mod catalog;
pub mod doctor;
pub mod erasures;
pub mod error;
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

pub use error::{Error, Result};
