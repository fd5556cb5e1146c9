//! Judges a history. Pure: whatever ran, the same history gets the same judgement.
//!
//! | name | what holds |
//! | --- | --- |
//! | I1 | a send that was answered is there: its version, session and content |
//! | I2 | an Id is kept once, and all who sent it are answered the same version |
//! | I3 | a version shows one content, to everybody and for ever |
//! | I4 | nothing can be read that was refused, that nobody sent, or that is not in the final log |
//! | I5 | a reader is given the log's events of its feed and types: none skipped, none twice, in order |
//! | I6 | nothing at or below a version that a reader was given appears later |
//! | I7 | what began after something was known to be there has the greater version |
//! | I8 | pages backwards are what pages forwards are |
//! | I9 | a session has one owner, one end, and nothing after it |
//! | I10 | what was acknowledged does not come back; what was not, does |
//! | I11 | when all is well again, everybody gets everything |
//! | I13 | a foreign cursor is refused, a good one never, and a failover alone gives another epoch |
//! | I14 | a read that begins after an answer sees what was answered |
//! | I15 | versions are 1, 2, 3 and so on |
//! | I16 | a session's messages are numbered 1, 2, 3 and so on, in the order of their versions |

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    history::{Change, Final, Kept, Kind, Logged, Op, Outcome, Read, Send, Session},
    reads,
};

/// What was broken and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub invariant: &'static str,
    pub text: String,
}

/// The history, arranged for looking things up.
pub struct Index<'a> {
    pub log: BTreeMap<i64, &'a Logged>,
    pub feeds: HashMap<&'a str, Vec<&'a Logged>>,
    pub kept: HashMap<&'a str, &'a Kept>,
    pub head: i64,
    /// When a version was first known to be there: somebody was answered it.
    pub known: HashMap<i64, u64>,
}

impl<'a> Index<'a> {
    fn new(ops: &'a [Op], end: &'a Final) -> Self {
        let mut feeds: HashMap<&str, Vec<&Logged>> = HashMap::new();
        for logged in &end.log {
            feeds.entry(&logged.feed).or_default().push(logged);
        }
        let mut known: HashMap<i64, u64> = HashMap::new();
        for op in ops.iter().filter(|op| op.outcome == Outcome::Ok) {
            let mut know = |version: i64| {
                let first = known.entry(version).or_insert(op.returned);
                *first = op.returned.min(*first);
            };
            match &op.kind {
                Kind::Send(send) => know(send.version),
                Kind::Session(session) => know(session.version),
                Kind::Read(read) => read.events.iter().for_each(|event| know(event.version)),
            }
        }
        known.remove(&0);
        Self {
            log: end.log.iter().map(|logged| (logged.version, logged)).collect(),
            feeds,
            kept: end.kept.iter().map(|kept| (kept.id.as_str(), kept)).collect(),
            head: end.log.iter().map(|logged| logged.version).max().unwrap_or(0),
            known,
        }
    }
}

/// Collects violations, a few of each kind.
#[derive(Default)]
pub struct Verdict {
    found: Vec<Violation>,
    counts: HashMap<&'static str, usize>,
}

impl Verdict {
    pub fn add(&mut self, invariant: &'static str, text: String) {
        let count = self.counts.entry(invariant).or_default();
        *count += 1;
        if *count <= 5 {
            self.found.push(Violation { invariant, text });
        }
    }
}

/// All that is wrong with a history.
pub fn check(ops: &[Op], end: &Final) -> Vec<Violation> {
    let index = Index::new(ops, end);
    let mut verdict = Verdict::default();
    check_density(end, &mut verdict);
    check_numbers(end, &mut verdict);
    check_sends(ops, end, &index, &mut verdict);
    check_real_time(ops, &mut verdict);
    check_sessions_of_log(end, &mut verdict);
    check_session_operations(ops, &index, &mut verdict);
    reads::check(ops, end, &index, &mut verdict);
    reads::check_contents(ops, &index, &mut verdict);
    reads::check_acks(ops, &index, &mut verdict);
    reads::check_end(ops, end, &index, &mut verdict);
    verdict.found
}

pub fn reads_of(ops: &[Op]) -> impl Iterator<Item = (&Op, &Read)> {
    ops.iter().filter_map(|op| if let Kind::Read(read) = &op.kind { Some((op, read)) } else { None })
}

fn sends_of(ops: &[Op]) -> impl Iterator<Item = (&Op, &Send)> {
    ops.iter().filter_map(|op| if let Kind::Send(send) = &op.kind { Some((op, send)) } else { None })
}

fn changes_of(ops: &[Op]) -> impl Iterator<Item = (&Op, &Session)> {
    ops.iter().filter_map(|op| if let Kind::Session(session) = &op.kind { Some((op, session)) } else { None })
}

fn check_density(end: &Final, verdict: &mut Verdict) {
    for (logged, expected) in end.log.iter().zip(1..) {
        if logged.version != expected {
            verdict.add("I15", format!("version {} stands where {expected} should", logged.version));
            return;
        }
    }
}

fn check_numbers(end: &Final, verdict: &mut Verdict) {
    let mut last: HashMap<&str, i32> = HashMap::new();
    for (session, number) in &end.numbers {
        let before = last.insert(session, *number).unwrap_or(0);
        if *number != before + 1 {
            verdict.add("I16", format!("in session {session} message {number} comes after message {before}"));
        }
    }
}

fn check_sends(ops: &[Op], end: &Final, index: &Index<'_>, verdict: &mut Verdict) {
    let mut answered: HashMap<&str, i64> = HashMap::new();
    // What was sent under an Id: true once an attempt may have succeeded.
    let mut attempts: HashMap<(&str, &str, &str), bool> = HashMap::new();
    for (op, send) in sends_of(ops) {
        let attempt = attempts.entry((&send.id, &send.session, &send.content)).or_default();
        *attempt |= !matches!(op.outcome, Outcome::Fail(_));
        if op.outcome != Outcome::Ok {
            continue;
        }
        let first = *answered.entry(&send.id).or_insert(send.version);
        if first != send.version {
            verdict.add("I2", format!("{} was answered version {first} and version {}", send.id, send.version));
        }
        let is_kept = index.kept.get(send.id.as_str()).is_some_and(|kept| {
            (&kept.session, &kept.content, &kept.author, kept.version)
                == (&send.session, &send.content, &send.author, send.version)
        });
        let is_told = send.version == 0
            || index
                .log
                .get(&send.version)
                .is_some_and(|logged| logged.r#type == "Message" && logged.message.as_ref() == Some(&send.id));
        if !is_kept || !is_told {
            verdict.add("I1", format!("{} was answered version {}, but is lost or changed", send.id, send.version));
        }
    }
    let mut ids = HashSet::new();
    for kept in &end.kept {
        if !ids.insert(&kept.id) {
            verdict.add("I2", format!("{} is kept twice", kept.id));
        }
        match attempts.get(&(kept.id.as_str(), kept.session.as_str(), kept.content.as_str())) {
            Some(true) => {}
            Some(false) => verdict.add("I4", format!("{} was refused, but is kept", kept.id)),
            None => verdict.add("I4", format!("{} is kept, but nobody sent it", kept.id)),
        }
    }
    let mut told = HashSet::new();
    for logged in &end.log {
        if let Some(id) = &logged.message
            && logged.r#type == "Message"
            && !told.insert((&logged.feed, id))
        {
            verdict.add("I2", format!("{id} is told twice in the feed of {}", logged.feed));
        }
    }
}

fn check_real_time(ops: &[Op], verdict: &mut Verdict) {
    // What was known when: versions answered, and versions that readers were answered past.
    let mut known: Vec<(u64, i64)> = Vec::new();
    // Things that got a version: the first attempt's beginning, and the version.
    let mut given: HashMap<(&str, &str), (u64, i64)> = HashMap::new();
    for op in ops {
        let (name, version) = match &op.kind {
            Kind::Send(send) => (Some(("send", send.id.as_str())), send.version),
            Kind::Session(session) if session.change == Change::Close => {
                (Some(("close", session.session.as_str())), session.version)
            }
            Kind::Session(session) => (None, session.version),
            Kind::Read(read) => {
                (None, if matches!(read.cursor, super::history::Cursor::Before(_)) { 0 } else { read.next })
            }
        };
        if op.outcome == Outcome::Ok {
            known.push((op.returned, version));
        }
        if let Some(name) = name {
            let entry = given.entry(name).or_insert((op.invoked, 0));
            entry.0 = entry.0.min(op.invoked);
            if op.outcome == Outcome::Ok {
                entry.1 = version;
            }
        }
    }
    known.sort_unstable();
    let mut given: Vec<_> = given.into_iter().filter(|(_, (_, version))| *version > 0).collect();
    given.sort_unstable_by_key(|(_, (invoked, _))| *invoked);
    let (mut known, mut greatest) = (known.into_iter().peekable(), 0);
    for ((what, name), (invoked, version)) in given {
        while let Some((_, earlier)) = known.next_if(|(returned, _)| *returned < invoked) {
            greatest = greatest.max(earlier);
        }
        if version <= greatest {
            verdict.add("I7", format!("{what} {name} has version {version}, but began when {greatest} was known"));
        }
    }
}

/// Who has a session, as the log tells it.
#[derive(Default)]
struct Holder<'a> {
    owner: Option<&'a str>,
    closed: bool,
    gateway_told: bool,
}

fn check_sessions_of_log(end: &Final, verdict: &mut Verdict) {
    let mut sessions: HashMap<&str, Holder<'_>> = HashMap::new();
    for logged in &end.log {
        let Logged { version, feed, r#type, session, reason, .. } = logged;
        let holder = sessions.entry(session).or_default();
        let is_end = *r#type == "DelSession" && *reason == "closed";
        let is_gateways = end.gateways.contains(feed);
        let wrong = match *r#type {
            // The owner is told first, so the gateway's own last event comes after the end.
            _ if is_gateways => {
                let late = holder.closed && (!is_end || holder.gateway_told);
                holder.closed |= is_end;
                holder.gateway_told |= is_end;
                late
            }
            _ if holder.closed => true,
            // Nobody is told of a message while its session is queued.
            "Message" if feed.is_empty() => holder.owner.is_some(),
            "AddSession" => holder.owner.replace(feed).is_some(),
            "DelSession" => {
                holder.closed = is_end;
                holder.owner.take() != Some(feed)
            }
            _ => holder.owner != Some(feed),
        };
        if wrong {
            verdict.add("I9", format!("{type} {version} of session {session} in the feed of {feed} comes out of turn"));
        }
    }
}

fn check_session_operations(ops: &[Op], index: &Index<'_>, verdict: &mut Verdict) {
    // Of each session that was closed: when that was first answered, and with which version.
    let mut closed: HashMap<&str, (u64, i64)> = HashMap::new();
    for (op, change) in changes_of(ops).filter(|(op, _)| op.outcome == Outcome::Ok) {
        if change.change == Change::Close {
            let first = closed.entry(&change.session).or_insert((op.returned, change.version));
            first.0 = first.0.min(op.returned);
            if first.1 != change.version {
                let text =
                    format!("session {} was closed by version {} and by {}", change.session, first.1, change.version);
                verdict.add("I9", text);
            }
        }
        let is_owners = index.log.get(&change.version).is_none_or(|logged| logged.feed == change.caller);
        if change.change != Change::Open && !change.caller.is_empty() && change.version > 0 && !is_owners {
            verdict.add("I9", format!("{} did {change:?} without owning the session", change.caller));
        }
    }
    let mut first_invoked: HashMap<&str, u64> = HashMap::new();
    for (op, send) in sends_of(ops) {
        let first = first_invoked.entry(&send.id).or_insert(op.invoked);
        *first = op.invoked.min(*first);
    }
    for (op, send) in sends_of(ops).filter(|(op, _)| op.outcome == Outcome::Ok) {
        if closed.get(send.session.as_str()).is_some_and(|(returned, _)| *returned < first_invoked[send.id.as_str()]) {
            verdict.add("I9", format!("{} was accepted after the end of session {}", send.id, send.session));
        }
        let is_agents = op.process.starts_with("agent");
        let is_owners = index.log.get(&send.version).is_none_or(|logged| logged.feed == send.author);
        if is_agents && send.version > 0 && !is_owners {
            verdict.add("I9", format!("{} sent {} without owning the session", send.author, send.id));
        }
    }
}
