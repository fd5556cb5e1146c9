//! Who asks, as far as this process knows: [`tokens`] caches who holds a token, [`freshness`] says how long that may
//! be believed, [`issue`] makes new tokens, [`activity`] counts who was there lately.

pub mod activity;
pub mod freshness;
pub mod issue;
pub mod tokens;
