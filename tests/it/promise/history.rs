//! What was done to the service and what it answered, in a form that the checker can judge.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    /// Refused for good, with this number.
    Fail(u64),
    /// No answer, or one that says that nobody knows (5xx).
    Unknown,
}

/// One operation of one process. Times are microseconds of one monotonic clock.
#[derive(Debug, Clone)]
pub struct Op {
    pub process: String,
    pub invoked: u64,
    pub returned: u64,
    pub outcome: Outcome,
    pub kind: Kind,
}

#[derive(Debug, Clone)]
pub enum Kind {
    Send(Send),
    Session(Session),
    Read(Read),
}

/// One message; those of a batch are one of these each.
#[derive(Debug, Clone)]
pub struct Send {
    pub id: String,
    pub session: String,
    pub content: String,
    /// Whose token.
    pub author: String,
    /// What the answer named; 0 while the session is queued.
    pub version: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Open,
    Transfer,
    Release,
    Close,
}

#[derive(Debug, Clone)]
pub struct Session {
    pub change: Change,
    pub session: String,
    /// Whose token; an admin's is empty.
    pub caller: String,
    pub version: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cursor {
    After(i64),
    /// None: the newest page.
    Before(Option<i64>),
    Unacked,
}

#[derive(Debug, Clone)]
pub struct Read {
    pub feed: String,
    pub cursor: Cursor,
    /// Names of the types asked for; empty: all.
    pub types: Vec<&'static str>,
    pub limit: usize,
    /// Whether it was to wait for news.
    pub waited: bool,
    /// Versions that it acknowledged, by their number or by a message's Id.
    pub acks: Vec<i64>,
    /// Ids among them. An Id may acknowledge more than the event that the reader meant.
    pub ack_ids: Vec<String>,
    pub events: Vec<Seen>,
    pub next: i64,
    pub more: bool,
    pub epoch: String,
}

/// An event as a reader was shown it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub version: i64,
    /// All of its JSON.
    pub text: String,
}

/// What the store holds in the end, read without the service.
#[derive(Debug, Clone, Default)]
pub struct Final {
    /// By version.
    pub log: Vec<Logged>,
    pub kept: Vec<Kept>,
    /// Session and number of each message, in the order of their versions.
    pub numbers: Vec<(String, i32)>,
    /// How many histories there may have been: one, and one for each promotion of a standby.
    pub histories: usize,
    /// Feeds of gateways; all others are agents'.
    pub gateways: Vec<String>,
    /// Readers that must have been given everything.
    pub readers: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    pub version: i64,
    pub feed: String,
    pub r#type: &'static str,
    pub session: String,
    /// Of a DelSession.
    pub reason: &'static str,
    /// Id of the message that a Message tells of, or of the last one that an AddSession brought.
    pub message: Option<String>,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub id: String,
    pub session: String,
    pub content: String,
    pub author: String,
    pub version: i64,
    /// Number within its session.
    pub seq: i32,
}

/// Where processes write down what they did.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    ops: Mutex<Vec<Op>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { began: Instant::now(), ops: Mutex::default() }
    }
}

impl Recorder {
    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).expect("a short run")
    }

    /// Notes an operation that returns now.
    pub fn note(&self, process: &str, invoked: u64, outcome: Outcome, kind: Kind) {
        let op = Op { process: process.to_owned(), invoked, returned: self.now(), outcome, kind };
        self.ops.lock().unwrap_or_else(PoisonError::into_inner).push(op);
    }

    pub fn take(&self) -> Vec<Op> {
        std::mem::take(&mut self.ops.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A small generator of random numbers (SplitMix64): the same seed, the same run of choices.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Another generator, for a process of its own.
    pub fn split(&mut self) -> Self {
        Self(self.next())
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0..`end`
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).expect("fits")).expect("fits")
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}
