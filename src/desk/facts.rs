//! What is known of the store when a batch is decided.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};

use crate::{
    domain::ids::{FeedKey, MessageId},
    store::{messages::Kept, sessions::Found},
};

/// What is known of a session.
#[derive(Debug, Clone)]
pub struct Fact {
    /// `None`: there is no such session.
    pub found: Option<Found>,
    /// The newest version when the number of its newest message was known.
    pub seq_version: i64,
    /// Whether it was read after every request of the batch had come.
    pub is_fresh: bool,
}

/// What is known of everything that a batch is about.
#[derive(Debug, Default)]
pub struct Facts {
    pub sessions: HashMap<String, Fact>,
    /// The agents that requests name; those that are missing do not exist.
    pub agents: HashMap<String, FeedKey>,
    /// Messages that are there under Ids that were looked for.
    pub kept: HashMap<MessageId, Kept>,
    /// Those of them whose content was erased.
    pub erased: HashSet<MessageId>,
    /// Ids that were looked for.
    pub looked_for: HashSet<MessageId>,
    /// The newest version that is known; where Ids were looked for, not older than that.
    pub head: i64,
    pub now: DateTime<Utc>,
}
