//! The newest events of the whole store, encoded, in memory. A cache: dropping it at any moment
//! changes nothing but speed. It covers the versions `low < v <= head` without a gap.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use crate::domain::{
    event::{EventType, TypeSet},
    ids::FeedKey,
    limits,
};

/// An event in the tail.
#[derive(Debug, Clone)]
pub struct EncodedEvent {
    pub version: i64,
    pub feed: FeedKey,
    pub r#type: EventType,
    pub json: Bytes,
}

/// The result of a look into the tail.
#[derive(Debug)]
pub enum Look {
    /// Everything that a reader of `after` is owed up to `head`, or as much as fits.
    Found(Slice),
    /// The reader's version is older than the tail reaches: read the table.
    TooOld,
    /// The reader's version is newer than anything here: only the table can tell whether it exists.
    TooNew,
}

/// Events of one feed.
#[derive(Debug, Default)]
pub struct Slice {
    pub events: Vec<EncodedEvent>,
    pub more: bool,
    pub head: i64,
}

/// The tail of a process.
#[derive(Default)]
pub struct Tail {
    inner: Mutex<Inner>,
    bytes_max: usize,
}

#[derive(Default)]
struct Inner {
    low: i64,
    head: i64,
    bytes: usize,
    /// Feed and size of every event, oldest first.
    order: VecDeque<(FeedKey, usize)>,
    feeds: HashMap<FeedKey, VecDeque<EncodedEvent>>,
}

/// Memory that an event takes besides its JSON.
const ENTRY_BYTES: usize = 96;

impl Tail {
    pub fn new() -> Self {
        Self::with_bytes(limits::TAIL_BYTES_MAX)
    }

    /// A tail that keeps at most `bytes_max`.
    pub fn with_bytes(bytes_max: usize) -> Self {
        Self { inner: Mutex::default(), bytes_max }
    }

    /// Forgets everything; the next event expected is `head + 1`.
    pub fn reset(&self, head: i64) {
        *self.inner() = Inner { low: head, head, ..Inner::default() };
    }

    /// The newest version in it.
    pub fn head(&self) -> i64 {
        self.inner().head
    }

    /// Adds the events that follow its head. Returns false, and adds nothing, if they do not follow it.
    pub fn push(&self, events: Vec<EncodedEvent>) -> bool {
        let mut inner = self.inner();
        let expected = inner.head + 1..;
        if !events.iter().map(|event| event.version).eq(expected.take(events.len())) {
            return false;
        }
        for event in events {
            let bytes = event.json.len() + ENTRY_BYTES;
            inner.head = event.version;
            inner.bytes += bytes;
            inner.order.push_back((event.feed, bytes));
            inner.feeds.entry(event.feed).or_default().push_back(event);
        }
        while inner.bytes > self.bytes_max {
            inner.evict_oldest();
        }
        true
    }

    /// Forgets the events before a version, which are not kept any more.
    pub fn forget_before(&self, oldest: i64) {
        let mut inner = self.inner();
        while inner.low < oldest - 1 && inner.low < inner.head {
            inner.evict_oldest();
        }
    }

    /// The events of a feed after a version.
    pub fn look(&self, feed: FeedKey, after: i64, types: TypeSet, limit: i64) -> Look {
        let inner = self.inner();
        if after < inner.low {
            return Look::TooOld;
        }
        if after > inner.head {
            return Look::TooNew;
        }
        let mut slice = Slice { head: inner.head, ..Slice::default() };
        let Some(events) = inner.feeds.get(&feed) else { return Look::Found(slice) };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let start = events.partition_point(|event| event.version <= after);
        let mut bytes = 0;
        for event in events.range(start..).filter(|event| types.has(event.r#type)) {
            bytes += event.json.len() + 1;
            if slice.events.len() == limit || (bytes > limits::ANSWER_BYTES_MAX && !slice.events.is_empty()) {
                slice.more = true;
                break;
            }
            slice.events.push(event.clone());
        }
        Look::Found(slice)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while holding it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn evict_oldest(&mut self) {
        let Some((feed, bytes)) = self.order.pop_front() else { return };
        self.low += 1;
        self.bytes -= bytes;
        if let Some(events) = self.feeds.get_mut(&feed) {
            events.pop_front();
            if events.is_empty() {
                self.feeds.remove(&feed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(versions: std::ops::RangeInclusive<i64>) -> Vec<EncodedEvent> {
        versions
            .map(|version| EncodedEvent {
                version,
                feed: FeedKey(i32::try_from(version % 3).unwrap()),
                r#type: if version % 2 == 0 { EventType::Message } else { EventType::AddSession },
                json: Bytes::from(vec![b'x'; 100]),
            })
            .collect()
    }

    fn versions(look: Look) -> Vec<i64> {
        match look {
            Look::Found(slice) => slice.events.iter().map(|event| event.version).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_takes_only_what_follows() {
        let tail = Tail::with_bytes(1 << 20);
        tail.reset(10);
        assert!(!tail.push(events(12..=13)));
        assert!(tail.push(events(11..=13)));
        assert!(!tail.push(events(13..=14)), "an event twice");
        assert_eq!(tail.head(), 13);
    }

    #[test]
    fn it_answers_for_what_it_covers() {
        let tail = Tail::with_bytes(1 << 20);
        tail.reset(10);
        tail.push(events(11..=30));
        assert_eq!(versions(tail.look(FeedKey(0), 10, TypeSet::ALL, 100)), [12, 15, 18, 21, 24, 27, 30]);
        assert_eq!(versions(tail.look(FeedKey(0), 15, TypeSet::NONE.with(EventType::Message), 2)), [18, 24]);
        assert!(matches!(tail.look(FeedKey(0), 9, TypeSet::ALL, 100), Look::TooOld));
        assert!(matches!(tail.look(FeedKey(0), 31, TypeSet::ALL, 100), Look::TooNew));
    }

    #[test]
    fn it_forgets_what_is_not_kept() {
        let tail = Tail::with_bytes(1 << 20);
        tail.reset(0);
        tail.push(events(1..=25));
        tail.forget_before(11);
        tail.forget_before(1);
        assert!(matches!(tail.look(FeedKey(0), 9, TypeSet::ALL, 100), Look::TooOld));
        assert_eq!(versions(tail.look(FeedKey(0), 10, TypeSet::ALL, 100)), [12, 15, 18, 21, 24]);
        tail.forget_before(99);
        assert_eq!(tail.head(), 25);
        assert!(tail.push(events(26..=27)));
    }

    #[test]
    fn it_forgets_the_oldest_first_and_says_so() {
        let tail = Tail::with_bytes(10 * (100 + ENTRY_BYTES));
        tail.reset(0);
        tail.push(events(1..=25));
        assert!(matches!(tail.look(FeedKey(0), 14, TypeSet::ALL, 100), Look::TooOld));
        assert_eq!(versions(tail.look(FeedKey(0), 15, TypeSet::ALL, 100)), [18, 21, 24]);
    }
}
