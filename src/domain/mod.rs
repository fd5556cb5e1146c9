//! Plain data and the desk's rules. No runtime, database, HTTP, environment or clock in here.

pub mod acks;
pub mod caller;
pub mod cursor;
pub mod event;
pub mod fault;
pub mod finding;
pub mod ids;
pub mod limits;
pub mod lineage;
pub mod message;
pub mod session;
