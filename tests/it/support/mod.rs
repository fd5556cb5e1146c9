//! What tests share.

pub mod client;
pub mod desk;
pub mod postgres;
pub mod random;

pub use client::Client;
pub use desk::TestDesk;
