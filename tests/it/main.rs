//! The service, tested through its public interface on a real PostgreSQL. One binary; a module for
//! each heading of the wire contract.

#![expect(
    clippy::disallowed_methods,
    clippy::format_collect,
    clippy::struct_field_names,
    clippy::zombie_processes,
    reason = "tests run tasks and read settings of their own; what they start ends with them"
)]

mod acks;
mod around;
mod backfill;
mod cards;
mod compose;
mod deploy;
mod doctor;
mod erase;
mod errors;
mod export;
mod faults;
mod fuzz;
mod migrate;
mod observability;
mod openapi;
mod page_threads;
mod paging;
mod partitions;
mod plans;
mod presence;
mod process;
mod promise;
mod query;
mod restore;
mod retention;
mod revocation;
mod roles;
mod rubbish;
mod schema;
mod seed_flows;
mod send;
mod session;
mod sizes;
mod standby;
mod support;
mod tokens;
