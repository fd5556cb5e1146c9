//! What the readers of this process share.
//!
//! | part | what it holds | who changes it |
//! | --- | --- | --- |
//! | [`tail`] | the newest events, encoded | the relay |
//! | [`hub`] | who waits for which feed | polls register, the relay wakes |
//! | [`notices`] | what every poll must hear: a stop, a revocation, another history | the relay, and the stop |
//! | [`parked`] | how many polls each token holds open | polls |
//! | [`committed`] | the newest version that this process committed | the lane, through its [`publisher`] |
//!
//! All of it is a cache: dropping any of it changes nothing but speed. Nothing of it is told while this process is
//! out of touch with the database (`Feed::look`, `Feed::cards`).

pub mod committed;
pub mod hints;
pub mod hub;
pub mod listen;
pub mod notices;
pub mod parked;
pub mod poll;
pub mod publisher;
pub mod relay;
pub mod tail;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use chrono_tz::Tz;

use self::{
    committed::CommittedHead,
    hub::Hub,
    notices::Notices,
    tail::{Look, Tail},
};
use super::auth::freshness::Freshness;
use crate::{
    domain::{event::TypeSet, ids::FeedKey},
    store::cards::{CardCache, Cards},
};

/// The events of the store, as the readers of this process are shown them.
pub struct Feed {
    tail: Tail,
    hub: Arc<Hub>,
    pub notices: Notices,
    cards: Arc<CardCache>,
    committed: CommittedHead,
    /// The newest version up to which the table has told readers; the tail may be behind it.
    told: CommittedHead,
    /// Whether the relay knows of events that it has not read, because nobody waited for any.
    is_behind: AtomicBool,
    freshness: Arc<Freshness>,
    /// Of `CreateTime`.
    pub zone: Tz,
}

/// Which state of the store cached state is true for. What was made on one basis must not be told on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Basis {
    /// As the notices count histories: what was committed in an earlier one may be no part of the present one.
    histories: u64,
    /// The newest erasure: what was cached before it may be what it erased.
    erasures: i64,
}

impl Basis {
    /// Whether both are of the same history.
    pub fn is_same_history(self, other: Self) -> bool {
        self.histories == other.histories
    }
}

impl Feed {
    pub fn new(freshness: Arc<Freshness>, zone: Tz) -> Self {
        Self {
            tail: Tail::new(),
            hub: Arc::default(),
            notices: Notices::default(),
            cards: Arc::default(),
            committed: CommittedHead::default(),
            told: CommittedHead::default(),
            is_behind: AtomicBool::new(false),
            freshness,
            zone,
        }
    }

    /// What cached state is true for now.
    fn basis(&self) -> Basis {
        Basis { histories: self.notices.histories(), erasures: self.cards.erasures() }
    }

    /// The newest version that this process has committed in the present history.
    fn committed_head(&self) -> i64 {
        self.committed.of(self.notices.histories())
    }

    /// Looks into the tail. Events that may have been erased meanwhile are not told.
    fn look(&self, feed: FeedKey, after: i64, types: TypeSet, limit: i64) -> Look {
        // First: what the tail holds is true for as long as this is.
        let is_in_touch = self.freshness.is_in_touch();
        match self.tail.look(feed, after, types, limit) {
            _ if self.is_behind.load(Ordering::Acquire) => Look::TooOld,
            Look::Found(slice) if !slice.events.is_empty() && !is_in_touch => Look::TooOld,
            look => look,
        }
    }

    /// Sessions and profiles for a read of the table; take them before its connection. Nothing cached if that may
    /// have been erased meanwhile.
    fn cards(&self) -> Cards {
        if self.freshness.is_in_touch() { self.cards.cards() } else { Cards::default() }
    }
}
