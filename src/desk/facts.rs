//! What is known of the store when a batch is decided, cached or read for it.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};

use crate::{
    domain::ids::{FeedKey, MessageId},
    store::{messages::Kept, sessions::Found},
};

/// A session as it is known.
#[derive(Debug, Clone)]
pub struct Fact {
    /// `None`: there is no such session.
    pub found: Option<Found>,
    /// The head at which the number of its newest message was known.
    pub seq_version: i64,
    /// Whether it was read after every request of the batch had arrived.
    pub is_fresh: bool,
}

/// Everything that is known about what a batch touches.
#[derive(Debug, Default)]
pub struct Facts {
    pub sessions: HashMap<String, Fact>,
    /// The agents that requests name; one that is missing here does not exist.
    pub agents: HashMap<String, FeedKey>,
    /// Existing messages, by the Ids that were looked up.
    pub kept: HashMap<MessageId, Kept>,
    /// Those of `kept` whose content was erased.
    pub erased: HashSet<MessageId>,
    /// Ids that were looked up.
    pub looked_for: HashSet<MessageId>,
    /// The newest known version; the look-up of Ids covers everything up to it.
    pub head: i64,
    pub now: DateTime<Utc>,
}
