//! Everything that runs or waits: the writers, the relay, the parked polls.
//!
//! Life of an append: a request submits to [`append`], which commits many requests in one
//! transaction and answers each after the commit. It hands the new events to the [`relay`], the
//! only task that moves the [`tail`] on; the relay wakes the feeds that have news through the
//! [`hub`]. Other processes hear a NOTIFY and scan the table for what is new, once per process.
//!
//! Life of a poll: [`poll`] registers with the hub, then looks (into the tail, or the table when the
//! tail does not reach back far enough), then waits. A wake-up that comes too early, twice or not at
//! all costs a look and nothing else; the relay looks at the table every
//! [`limits::SWEEP_MS`](crate::domain::limits::SWEEP_MS) whether or not it was told to.

pub mod ack_writer;
pub mod activity;
pub mod append;
pub mod bulletin;
pub mod committed;
pub mod freshness;
pub mod hub;
pub mod parked;
pub mod partitions;
pub mod poll;
pub mod relay;
pub mod tail;
pub mod tokens;
