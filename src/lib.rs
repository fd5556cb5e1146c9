//! deskfeed: a persistent event store for customer-service desks.
//!
//! In reading order, lowest first; a module uses only modules above it in this list:
//!
//! - [`domain`]: plain data and the desk's rules
//! - [`clock`], [`lifecycle`], [`config`], [`notices`], [`telemetry`], [`private_pg`]: small machinery that knows nothing of desks
//! - [`store`]: the only place with SQL
//! - [`desk`]: one file per operation that changes something
//! - [`live`]: everything that runs or waits: writers, relay, parked polls
//! - [`http`]: routes and handlers
//! - [`cli`]: the commands; builds the whole program

pub mod domain;

pub mod clock;
pub mod config;
pub mod lifecycle;
pub mod notices;
pub mod private_pg;
pub mod telemetry;

pub mod store;

pub mod desk;

pub mod live;

pub mod http;

pub mod cli;
