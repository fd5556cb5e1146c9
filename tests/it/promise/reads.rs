//! The checker's part about readers.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use super::{
    checker::{Index, Verdict, reads_of},
    history::{Cursor, Final, Logged, Op, Outcome, Read},
};

/// Everything about what single answers hold.
pub fn check(ops: &[Op], end: &Final, index: &Index<'_>, verdict: &mut Verdict) {
    check_epochs(ops, end, verdict);
    let known = known_in_order(ops, index);
    for (op, read) in reads_of(ops) {
        check_refusal(op, read, index, verdict);
        if op.outcome != Outcome::Ok {
            continue;
        }
        if !read.events.windows(2).all(|pair| pair[0].version < pair[1].version) {
            verdict.add("I5", format!("{}: versions do not rise: {:?}", op.process, versions(read)));
        }
        let mut ghosts = false;
        for event in &read.events {
            match index.log.get(&event.version) {
                None => {
                    ghosts = true;
                    verdict.add("I4", format!("{} was given {}, which is not in the log", op.process, event.version));
                }
                Some(logged) if logged.feed != read.feed || !wants(read, logged) => {
                    ghosts = true;
                    verdict.add("I5", format!("{} was given {}, which is not its own", op.process, event.version));
                }
                Some(_) => {}
            }
        }
        if !ghosts {
            check_page(op, read, index, verdict);
        }
        check_freshness(op, read, index, &known, verdict);
    }
}

/// There are as many epochs as histories at most, and one when all is well again.
fn check_epochs(ops: &[Op], end: &Final, verdict: &mut Verdict) {
    let (mut all, mut last) = (BTreeSet::new(), BTreeSet::new());
    for (op, read) in reads_of(ops).filter(|(op, _)| op.outcome == Outcome::Ok) {
        if all.insert(&read.epoch) && all.len() > end.histories {
            verdict.add("I13", format!("{} was told another epoch, {}", op.process, read.epoch));
        }
        if op.process.starts_with("scanner") && last.insert(&read.epoch) && last.len() > 1 {
            verdict.add("I13", format!("{} was told another epoch, {}, after all", op.process, read.epoch));
        }
    }
}

fn versions(read: &Read) -> Vec<i64> {
    read.events.iter().map(|event| event.version).collect()
}

fn wants(read: &Read, logged: &Logged) -> bool {
    read.types.is_empty() || read.types.contains(&logged.r#type)
}

/// The log as this reader's feed and types show it.
fn wanted<'a>(read: &'a Read, index: &'a Index<'a>) -> impl DoubleEndedIterator<Item = &'a Logged> {
    let feed = index.feeds.get(read.feed.as_str()).map_or(&[][..], Vec::as_slice);
    feed.iter().copied().filter(|logged| wants(read, logged))
}

fn check_refusal(op: &Op, read: &Read, index: &Index<'_>, verdict: &mut Verdict) {
    let is_foreign = matches!(read.cursor, Cursor::After(after) if after > index.head);
    match op.outcome {
        Outcome::Ok if is_foreign => {
            verdict.add("I13", format!("{}: {:?} lies above the head, but was answered", op.process, read.cursor));
        }
        Outcome::Fail(code) if !(is_foreign && code == 41001) => {
            verdict.add("I13", format!("{}: {:?} was refused with {code}", op.process, read.cursor));
        }
        _ => {}
    }
}

fn check_page(op: &Op, read: &Read, index: &Index<'_>, verdict: &mut Verdict) {
    let given = versions(read);
    match read.cursor {
        Cursor::After(after) => {
            let expected: Vec<i64> =
                wanted(read, index).map(|logged| logged.version).filter(|v| *v > after && *v <= read.next).collect();
            if let Some(missing) = expected.iter().find(|version| !given.contains(version)) {
                verdict.add(
                    missing_name("I5", *missing, op, index),
                    format!("{} was led from {after} past {}, but not given {missing}", op.process, read.next),
                );
            } else if given.len() != expected.len() || read.next < after || given.len() > read.limit {
                verdict.add("I5", format!("{} was given {given:?} from {after} to {}", op.process, read.next));
            }
        }
        Cursor::Before(before) => {
            // The newest page ends where it ends; the rest follows from that.
            let end = before.unwrap_or_else(|| given.last().map_or(0, |last| last + 1));
            let mut expected: Vec<i64> =
                wanted(read, index).rev().map(|logged| logged.version).filter(|v| *v < end).take(read.limit).collect();
            expected.reverse();
            if given != expected {
                verdict.add("I8", format!("{}: the page before {end} is {given:?}, not {expected:?}", op.process));
            }
        }
        Cursor::Unacked => {}
    }
}

/// A missing event that nobody had been told of yet was not there: it came late.
fn missing_name(otherwise: &'static str, missing: i64, op: &Op, index: &Index<'_>) -> &'static str {
    if index.known.get(&missing).is_some_and(|first| *first <= op.returned) { otherwise } else { "I6" }
}

/// (when, greatest version known by then), rising in both.
fn known_in_order(ops: &[Op], index: &Index<'_>) -> Vec<(u64, i64)> {
    let mut known: Vec<(u64, i64)> = index.known.iter().map(|(version, first)| (*first, *version)).collect();
    known.extend(reads_of(ops).filter_map(|(op, read)| {
        let counts = op.outcome == Outcome::Ok && !matches!(read.cursor, Cursor::Before(_));
        counts.then_some((op.returned, read.next))
    }));
    known.sort_unstable();
    let mut greatest = 0;
    for (_, version) in &mut known {
        greatest = greatest.max(*version);
        *version = greatest;
    }
    known
}

fn check_freshness(op: &Op, read: &Read, index: &Index<'_>, known: &[(u64, i64)], verdict: &mut Verdict) {
    let earlier = known.partition_point(|(returned, _)| *returned < op.invoked);
    let greatest = earlier.checked_sub(1).map_or(0, |last| known[last].1);
    match read.cursor {
        // A read that waits, or that has something to tell, may look into a memory that is late.
        Cursor::After(_) if !read.waited && read.events.is_empty() && read.next < greatest => {
            verdict.add("I14", format!("{} was told {} is all, but {greatest} was known", op.process, read.next));
        }
        Cursor::Before(None) => {
            let last = read.events.last().map_or(0, |event| event.version);
            let newer = wanted(read, index).rev().map(|logged| logged.version).take_while(|version| *version > last);
            if let Some(missing) =
                newer.into_iter().find(|v| index.known.get(v).is_some_and(|first| *first < op.invoked))
            {
                verdict.add("I14", format!("{} was not given {missing} as the newest", op.process));
            }
        }
        _ => {}
    }
}

/// A version shows one content, and that is what the store holds.
pub fn check_contents(ops: &[Op], index: &Index<'_>, verdict: &mut Verdict) {
    let mut shown: HashMap<i64, &str> = HashMap::new();
    for (op, read) in reads_of(ops).filter(|(op, _)| op.outcome == Outcome::Ok) {
        for event in &read.events {
            let first = *shown.entry(event.version).or_insert(&event.text);
            if first != event.text {
                verdict.add("I3", format!("{} was shown {} where others were shown {first}", op.process, event.text));
            }
        }
    }
    for (version, text) in shown {
        let Some(logged) = index.log.get(&version) else { continue };
        let event: Value = serde_json::from_str(text).expect("an event was JSON when it was read");
        let messages = event["Data"]["Message"].as_array().map_or(&[][..], Vec::as_slice);
        let contents_differ = messages.iter().any(|message| {
            let kept = message["Id"].as_str().and_then(|id| index.kept.get(id));
            kept.is_none_or(|kept| message["Content"] != kept.content.as_str() || kept.session != logged.session)
        });
        let ids_differ =
            logged.message.as_deref() != messages.first().and_then(|m| m["Id"].as_str()) && logged.r#type == "Message";
        if event["e"] != logged.r#type
            || event["Data"]["SessionId"] != logged.session.as_str()
            || ids_differ
            || contents_differ
            || !brings_the_last(logged, messages, index)
        {
            verdict.add("I3", format!("{text} is not what the store holds, {logged:?}"));
        }
    }
}

/// An AddSession of an agent brings consecutive messages, at most 20.
fn brings_the_last(logged: &Logged, messages: &[Value], index: &Index<'_>) -> bool {
    let numbers: Vec<i32> =
        messages.iter().filter_map(|message| index.kept.get(message["Id"].as_str()?).map(|kept| kept.seq)).collect();
    logged.r#type != "AddSession"
        || numbers.windows(2).all(|pair| pair[0] + 1 == pair[1])
            && numbers.len() <= 20
            && (numbers.len() == 20 || numbers.first().is_none_or(|first| *first == 1))
}

/// When an event was acknowledged: first tried, and first answered.
struct Acked {
    tried: u64,
    done: Option<u64>,
}

/// What was acknowledged stays so, and only that.
pub fn check_acks(ops: &[Op], index: &Index<'_>, verdict: &mut Verdict) {
    let mut acked: HashMap<(&str, i64), Acked> = HashMap::new();
    let mut named: HashMap<(&str, &str), Vec<i64>> = HashMap::new();
    for logged in index.log.values() {
        if let Some(id) = &logged.message {
            named.entry((&logged.feed, id)).or_default().push(logged.version);
        }
    }
    for (op, read) in reads_of(ops) {
        // An Id also acknowledges an AddSession that brought its message last, if there was one by then.
        for version in read.ack_ids.iter().filter_map(|id| named.get(&(read.feed.as_str(), id.as_str()))).flatten() {
            let entry = acked.entry((&read.feed, *version)).or_insert(Acked { tried: op.invoked, done: None });
            entry.tried = entry.tried.min(op.invoked);
        }
        for version in &read.acks {
            let entry = acked.entry((&read.feed, *version)).or_insert(Acked { tried: op.invoked, done: None });
            entry.tried = entry.tried.min(op.invoked);
            if op.outcome == Outcome::Ok {
                entry.done = Some(entry.done.map_or(op.returned, |done| done.min(op.returned)));
            }
        }
    }
    for (op, read) in reads_of(ops) {
        if op.outcome != Outcome::Ok || read.cursor != Cursor::Unacked {
            continue;
        }
        let given = versions(read);
        for version in &given {
            let done = acked.get(&(&read.feed, *version)).and_then(|acked| acked.done);
            if read.acks.contains(version) || done.is_some_and(|done| done < op.invoked) {
                verdict.add("I10", format!("{version} came back to {} although acknowledged", op.process));
            }
        }
        let missing = wanted(read, index)
            .map(|logged| logged.version)
            .take_while(|version| *version <= read.next)
            .find(|version| {
                let maybe = acked.get(&(&read.feed, *version)).is_some_and(|acked| acked.tried <= op.returned);
                !maybe && given.binary_search(version).is_err()
            });
        if let Some(missing) = missing {
            let name = missing_name("I10", missing, op, index);
            verdict.add(name, format!("{missing} was kept from {} although not acknowledged", op.process));
        }
    }
}

/// After all faults are over.
pub fn check_end(ops: &[Op], end: &Final, index: &Index<'_>, verdict: &mut Verdict) {
    let mut last: BTreeMap<&str, (&Op, &Read)> = BTreeMap::new();
    for (op, read) in reads_of(ops).filter(|(op, _)| op.outcome == Outcome::Ok) {
        let newest = last.entry(&op.process).or_insert((op, read));
        if op.returned >= newest.0.returned {
            *newest = (op, read);
        }
    }
    for reader in &end.readers {
        let is_done = last.get(reader.as_str()).is_some_and(|(_, read)| {
            read.next >= index.head && (read.cursor != Cursor::Unacked || read.events.is_empty())
        });
        if !is_done {
            verdict.add("I11", format!("{reader} was not given everything"));
        }
    }
    for op in ops.iter().filter(|op| op.process.starts_with("healed") && op.outcome != Outcome::Ok) {
        verdict.add("I11", format!("{} ended {:?} although all was well again", op.process, op.outcome));
    }
}
