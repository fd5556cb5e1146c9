//! Everything that runs or waits, in rooms:
//!
//! - [`auth`]: who asks, and how recent this process's knowledge of the database is
//! - [`feed`]: the newest events in memory, the relay that keeps them true, the polls that read them
//! - [`append`]: requests that change something, many of them in one append
//! - [`ack_writer`]: group commit of acknowledgements
//! - [`upkeep`]: what must be done every few seconds
//!
//! Each task is handed what it uses, and nothing else.
//!
//! Life of an append: a request submits to an [`append::Writer`], whose lane commits many requests in one
//! transaction and answers each after the commit. The lane publishes the new events to the [relay](feed::relay), the
//! only task that advances the [tail](feed::tail); the relay wakes the feeds that have news through the
//! [hub](feed::hub). Other processes hear a NOTIFY and scan the table for what is new, once per process.
//!
//! Life of a poll: a [poll](feed::poll) registers with the hub, looks (into the tail, or into the table if the tail
//! does not reach back far enough), and then waits. A wake-up that comes too early, twice or not at all costs one
//! look and nothing else; the relay looks at the table every
//! [`limits::SWEEP_MS`](crate::domain::limits::SWEEP_MS) whether or not it was notified.

pub mod ack_writer;
pub mod append;
pub mod auth;
pub mod feed;
pub mod upkeep;
