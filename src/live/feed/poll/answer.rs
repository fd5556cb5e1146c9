//! What a reader is answered.

use std::sync::Arc;

use bytes::Bytes;

use crate::{domain::event::List, live::feed::tail::Slice};

/// The answer to a query.
#[derive(Debug)]
pub struct Answer {
    pub found: Found,
    /// The history that it was read of.
    pub epoch: Arc<str>,
}

/// The result of one look.
#[derive(Debug)]
pub struct Found {
    pub events: Events,
    /// What to pass next: as `a`, or as `b` after a `b` answer.
    pub next: i64,
    pub more: bool,
}

/// Encoded events, ascending.
#[derive(Debug)]
pub enum Events {
    /// One by one, shared with others who read them.
    Each(Vec<Bytes>),
    /// All of them as a JSON array.
    List(List),
}

impl Events {
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Each(events) => events.is_empty(),
            Self::List(list) => list.count == 0,
        }
    }
}

impl Found {
    pub fn nothing(next: i64) -> Self {
        Self { events: Events::Each(Vec::new()), next, more: false }
    }
}

impl From<Slice> for Found {
    fn from(slice: Slice) -> Self {
        let next = match slice.events.last() {
            Some(last) if slice.more => last.version,
            _ => slice.head,
        };
        let events = Events::Each(slice.events.into_iter().map(|event| event.json).collect());
        Self { events, next, more: slice.more }
    }
}
