//! What tests share.

pub mod client;
pub mod cluster;
pub mod db_proxy;
pub mod desk;
pub mod pg_frames;
pub mod postgres;
pub mod process;
pub mod random;
pub mod steps;

pub use client::Client;
pub use desk::TestDesk;
