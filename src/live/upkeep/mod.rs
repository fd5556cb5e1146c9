//! What must be done every few seconds: [`activity`] records who was there and has queued sessions assigned,
//! [`partitions`] keeps room ahead of the newest event.

pub mod activity;
pub mod partitions;
