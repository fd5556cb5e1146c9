//! What readers of feeds must have been given, and whether they were.

use std::{collections::HashMap, net::SocketAddr};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use tokio::time::Instant;

use crate::{
    check::number_of,
    wire::{Wire, get},
};

/// What an event tells of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// AddSession
    Added,
    /// Message, with the number that it says.
    Message(u64),
    /// DelSession
    Removed,
}

/// An event that the service has promised to a feed.
#[derive(Debug)]
pub struct Promised {
    pub feed: usize,
    pub session: String,
    pub kind: Kind,
    /// Where the answer named it.
    pub version: Option<i64>,
}

/// An event that a reader was given.
#[derive(Debug)]
pub struct Read {
    pub session: String,
    pub kind: Kind,
    pub version: i64,
    /// When the last byte of its answer was there.
    pub at: Instant,
}

#[derive(Deserialize)]
struct Event<'a> {
    e: &'a str,
    #[serde(rename = "Version")]
    version: i64,
    #[serde(rename = "Data")]
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "SessionId")]
    session: String,
    #[serde(rename = "Message", default)]
    message: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "Content")]
    content: String,
}

/// The events of a page after version `after`.
///
/// # Errors
/// When versions do not ascend, or a message was changed.
pub fn events_of(page: &[u8], after: i64, at: Instant) -> anyhow::Result<Vec<Read>> {
    let events: Vec<Event<'_>> = serde_json::from_slice(page)?;
    let mut last = after;
    let mut read = Vec::with_capacity(events.len());
    for Event { e, version, data } in events {
        ensure!(version > last, "version {version} comes after {last}");
        last = version;
        let kind = match e {
            "AddSession" => Kind::Added,
            "DelSession" => Kind::Removed,
            "Message" => {
                let entries = data.message.unwrap_or_default();
                let [entry] = entries.as_slice() else { bail!("a Message with {} messages", entries.len()) };
                let number = number_of(&entry.content);
                Kind::Message(number.with_context(|| format!("the message of version {version} was changed"))?)
            }
            other => bail!("an event of type {other}"),
        };
        read.push(Read { session: data.session, kind, version, at });
    }
    Ok(read)
}

/// All events of a feed after a version, in pages of 1,000.
///
/// # Errors
/// As [`events_of`], or when the service refuses a page.
pub async fn read_all(server: SocketAddr, token: &str, after: i64) -> anyhow::Result<Vec<Read>> {
    let mut wire = Wire::connect(server).await?;
    let (mut all, mut next, mut more) = (Vec::new(), after, true);
    while more {
        let page = wire.exchange_ok(&get(&format!("/message/query?a={next}&wait=0&limit=1000"), token)).await?;
        all.extend(events_of(&page.body, next, Instant::now())?);
        (next, more) = (page.feed_next, page.feed_more);
    }
    Ok(all)
}

/// Whether each feed was given what was promised: of every session the same events in the same order, under the
/// versions that the answers named, and nothing else.
///
/// # Errors
/// With what is wrong.
pub fn compare(promised: &[Promised], feeds: &[Vec<Read>]) -> anyhow::Result<()> {
    let mut expected: HashMap<(usize, &str), Vec<&Promised>> = HashMap::new();
    for event in promised {
        expected.entry((event.feed, &event.session)).or_default().push(event);
    }
    let mut given: HashMap<(usize, &str), Vec<&Read>> = HashMap::new();
    for (feed, read) in feeds.iter().enumerate() {
        for event in read {
            given.entry((feed, &event.session)).or_default().push(event);
        }
    }
    for ((feed, session), expected) in &expected {
        let given = given.remove(&(*feed, *session)).unwrap_or_default();
        let is_same = |(expected, given): (&&Promised, &&Read)| {
            expected.kind == given.kind && expected.version.is_none_or(|version| version == given.version)
        };
        let same = expected.len() == given.len() && expected.iter().zip(&given).all(is_same);
        ensure!(same, "of session {session}, feed {feed} was promised {expected:?} and given {given:?}");
    }
    if let Some(((feed, session), given)) = given.into_iter().next() {
        bail!("of session {session}, feed {feed} was given {given:?}, which nobody was promised");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::content;

    fn promised(kind: Kind, version: Option<i64>) -> Promised {
        Promised { feed: 0, session: "s".to_owned(), kind, version }
    }

    fn read(kind: Kind, version: i64) -> Read {
        Read { session: "s".to_owned(), kind, version, at: Instant::now() }
    }

    #[test]
    fn each_difference_is_seen() {
        let told = [promised(Kind::Added, None), promised(Kind::Message(7), Some(5)), promised(Kind::Removed, None)];
        let good = || vec![read(Kind::Added, 4), read(Kind::Message(7), 5), read(Kind::Removed, 9)];
        compare(&told, &[good()]).unwrap();
        let mut lost = good();
        lost.remove(1);
        compare(&told, &[lost]).unwrap_err();
        let mut doubled = good();
        doubled.push(read(Kind::Removed, 10));
        compare(&told, &[doubled]).unwrap_err();
        let mut swapped = good();
        swapped.swap(0, 1);
        compare(&told, &[swapped]).unwrap_err();
        let mut elsewhere = good();
        elsewhere[1].version = 6;
        compare(&told, &[elsewhere]).unwrap_err();
        compare(&told, &[good(), vec![read(Kind::Added, 11)]]).unwrap_err();
        compare(&told, &[]).unwrap_err();
    }

    #[test]
    fn a_page_is_read() {
        let page = format!(
            r#"[{{"e":"AddSession","Version":3,"Data":{{"SessionId":"s","Message":[]}}}},
               {{"e":"Message","Version":5,"Data":{{"SessionId":"s","Message":[{{"Content":"{}"}}]}}}}]"#,
            content(7)
        );
        let events = events_of(page.as_bytes(), 2, Instant::now()).unwrap();
        let kinds: Vec<(Kind, i64)> = events.iter().map(|event| (event.kind, event.version)).collect();
        assert_eq!(kinds, [(Kind::Added, 3), (Kind::Message(7), 5)]);
        events_of(page.as_bytes(), 3, Instant::now()).unwrap_err();
    }
}
