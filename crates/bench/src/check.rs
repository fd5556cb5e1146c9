//! The content of the run's messages, and the check that readers received it: once, unchanged, in order, and under
//! the version that the sender was answered with. A job in which the check fails has no figures.

use std::{borrow::Cow, collections::HashSet, net::SocketAddr};

use anyhow::{Context, bail, ensure};
use memchr::memmem;
use serde::Deserialize;
use tokio::task::JoinSet;

use crate::{
    wire::{Wire, get},
    world::Feed,
};

/// Bytes of every message.
pub const CONTENT_BYTES: usize = 300;
/// Missing messages that an error names.
const MISSING_SHOWN: usize = 5;
/// Digits of the number that begins every message.
const NUMBER_DIGITS: usize = 20;
const PADDING: &str = " Where is my parcel? It was promised for today. ";
/// Connections that read everything back after a cell.
const READERS: usize = 4;

/// The content of message `number`, different for every number.
pub fn content(number: u64) -> String {
    let mut text = format!("{number:0NUMBER_DIGITS$}");
    text.reserve(CONTENT_BYTES);
    while text.len() < CONTENT_BYTES {
        text.push_str(PADDING);
    }
    text.truncate(CONTENT_BYTES);
    text
}

/// The number of a message, if it is one of ours and unchanged.
pub fn number_of(text: &str) -> Option<u64> {
    let number = text.get(..NUMBER_DIGITS)?.parse().ok()?;
    (text == content(number)).then_some(number)
}

/// The body of a POST of one message.
pub fn message(session: &str, number: u64, id: Option<&str>) -> Vec<u8> {
    let id = id.map(|id| format!("\"Id\":\"{id}\",")).unwrap_or_default();
    format!("{{{id}\"SessionId\":\"{session}\",\"Content\":\"{}\"}}", content(number)).into_bytes()
}

/// The body of a POST of `count` messages, the first of which has the number `first`.
pub fn batch(sessions: &[String], first: u64, count: u64) -> Vec<u8> {
    let mut body = Vec::with_capacity(usize::try_from(count).unwrap_or(0) * (CONTENT_BYTES + 100));
    body.push(b'[');
    for number in first..first + count {
        if number > first {
            body.push(b',');
        }
        body.extend(message(&sessions[turn(number, sessions.len())], number, None));
    }
    body.push(b']');
    body
}

/// The session, of `among`, that message `number` goes to.
pub fn turn(number: u64, among: usize) -> usize {
    usize::try_from(number % among.max(1) as u64).unwrap_or(0)
}

/// Returns the versions in an answer to `/message/send`, in order.
///
/// # Errors
/// When a message was refused, or stored for a queued session, where it has no version yet.
pub fn versions_of(body: &[u8]) -> anyhow::Result<Vec<i64>> {
    let versions: Vec<i64> = versions_in(body).collect::<anyhow::Result<_>>()?;
    let refused = versions.is_empty() || body.windows(7).any(|window| window == b"\"code\":");
    ensure!(!refused && !versions.contains(&0), "not kept: {}", String::from_utf8_lossy(body));
    Ok(versions)
}

/// Returns all versions in an answer, in order. No content of ours contains the pattern.
pub fn versions_in(body: &[u8]) -> impl Iterator<Item = anyhow::Result<i64>> {
    const NAME: &[u8] = b"\"Version\":";
    memmem::find_iter(body, NAME).map(|at| {
        let rest = &body[at + NAME.len()..];
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        Ok(std::str::from_utf8(&rest[..digits])?.parse()?)
    })
}

#[derive(Deserialize)]
struct Event<'a> {
    e: &'a str,
    #[serde(rename = "Version")]
    version: i64,
    #[serde(rename = "Data", borrow)]
    data: Data<'a>,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(rename = "Message", borrow, default)]
    message: Vec<Entry<'a>>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(rename = "Content", borrow)]
    content: Cow<'a, str>,
}

/// The messages of an answer of `/message/query` as (version, number).
///
/// # Errors
/// When one was changed, or the versions do not ascend.
pub fn messages_of(body: &[u8]) -> anyhow::Result<Vec<(i64, u64)>> {
    let events: Vec<Event<'_>> = serde_json::from_slice(body)?;
    let mut messages = Vec::with_capacity(events.len());
    let mut last = 0;
    for event in events {
        ensure!(event.version > last, "version {} comes after {last}", event.version);
        last = event.version;
        if event.e != "Message" {
            continue;
        }
        let [entry] = event.data.message.as_slice() else {
            bail!("the Message event {} has {} messages", event.version, event.data.message.len());
        };
        let number = number_of(&entry.content).with_context(|| format!("version {} was changed", event.version))?;
        messages.push((event.version, number));
    }
    Ok(messages)
}

/// Messages that were acknowledged to senders.
#[derive(Debug, Default)]
pub struct Acknowledged {
    /// (version, number)
    told: Vec<(i64, u64)>,
}

impl Acknowledged {
    /// Records that message `number` was acknowledged as `version`.
    pub fn note(&mut self, number: u64, version: i64) {
        self.told.push((version, number));
    }

    pub fn extend(&mut self, other: Self) {
        self.told.extend(other.told);
    }

    pub fn count(&self) -> usize {
        self.told.len()
    }

    /// Ascending.
    pub fn versions(&self) -> Vec<i64> {
        let mut versions: Vec<i64> = self.told.iter().map(|(version, _)| *version).collect();
        versions.sort_unstable();
        versions
    }

    /// Reads everything in the feeds after version `after`. It must be exactly what was acknowledged, each message in
    /// the feed that its number determines ([`turn`]).
    ///
    /// # Errors
    /// Describes the first difference.
    pub async fn check(self, address: SocketAddr, feeds: &[Feed], after: i64) -> anyhow::Result<()> {
        let mut tasks = JoinSet::new();
        for reader in 0..READERS {
            let own: Vec<(usize, Feed)> = feeds.iter().cloned().enumerate().skip(reader).step_by(READERS).collect();
            tasks.spawn(async move {
                let mut wire = Wire::connect(address).await?;
                let mut read = Vec::with_capacity(own.len());
                for (position, feed) in own {
                    read.push((position, read_after(&mut wire, &feed, after).await?));
                }
                anyhow::Ok(read)
            });
        }
        let mut read = vec![Vec::new(); feeds.len()];
        while let Some(ended) = tasks.join_next().await {
            for (position, messages) in ended?? {
                read[position] = messages;
            }
        }
        self.compare(&read)
    }

    /// Checks that the feeds, as (version, number) each, hold what was acknowledged.
    ///
    /// # Errors
    /// Describes the first difference.
    pub fn compare(mut self, feeds: &[Vec<(i64, u64)>]) -> anyhow::Result<()> {
        self.told.sort_unstable();
        let distinct = self.told.windows(2).all(|pair| pair[0].0 < pair[1].0);
        ensure!(distinct, "two messages were acknowledged as the same version");
        for (position, messages) in feeds.iter().enumerate() {
            let ascending = messages.windows(2).all(|pair| pair[0].0 < pair[1].0);
            ensure!(ascending, "the messages of a feed are not in the order of their versions");
            for (version, number) in messages {
                let told = self.told.binary_search(&(*version, *number)).is_ok();
                ensure!(told, "message {number} is read as {version}, which nobody was told");
                ensure!(turn(*number, feeds.len()) == position, "message {number} is in another feed than its own");
            }
        }
        // Every message read was acknowledged, and none was read twice: equal counts mean equal sets.
        let found: usize = feeds.iter().map(Vec::len).sum();
        if found != self.told.len() {
            let read: HashSet<i64> = feeds.iter().flatten().map(|(version, _)| *version).collect();
            let missing = self.told.iter().filter(|(version, _)| !read.contains(version)).take(MISSING_SHOWN);
            bail!(
                "{} messages were acknowledged, {found} can be read; missing (version, number): {:?}",
                self.told.len(),
                missing.collect::<Vec<_>>()
            );
        }
        Ok(())
    }
}

/// Reads the messages of a feed after a version, in pages of 1,000.
///
/// # Errors
/// When the order or the content of a message is wrong.
pub async fn read_after(wire: &mut Wire, feed: &Feed, after: i64) -> anyhow::Result<Vec<(i64, u64)>> {
    let mut all = Vec::new();
    let (mut next, mut more) = (after, true);
    while more {
        let path = format!("/message/query?a={next}&wait=0&limit=1000");
        let page = wire.exchange_ok(&get(&path, &feed.token)).await?;
        let messages = messages_of(&page.body)?;
        if let Some((version, _)) = messages.first() {
            ensure!(*version > next, "version {version} appears behind {next}");
        }
        all.extend(messages);
        ensure!(!page.feed_more || page.feed_next > next, "Feed-Next stays at {next}");
        (next, more) = (page.feed_next, page.feed_more);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(version: i64, text: &str) -> String {
        format!(r#"{{"e":"Message","Version":{version},"Data":{{"Type":0,"Message":[{{"Content":"{text}"}}]}}}}"#)
    }

    #[test]
    fn messages_have_their_size_and_differ() {
        assert_eq!(content(7).len(), CONTENT_BYTES);
        assert_ne!(content(7), content(8));
    }

    #[test]
    fn what_is_changed_or_out_of_order_is_seen() {
        let (first, second) = (event(5, &content(1)), event(6, &content(2)));
        assert_eq!(messages_of(format!("[{first},{second}]").as_bytes()).unwrap(), [(5, 1), (6, 2)]);
        assert!(messages_of(format!("[{second},{first}]").as_bytes()).is_err());
        assert!(messages_of(format!("[{first},{first}]").as_bytes()).is_err());
        let changed = first.replace("parcel", "letter");
        assert!(messages_of(format!("[{changed}]").as_bytes()).is_err());
    }

    #[test]
    fn a_refusal_is_no_acknowledgement() {
        assert_eq!(versions_of(br#"[{"Version":7},{"Version":8}]"#).unwrap(), [7, 8]);
        assert!(versions_of(br#"[{"Version":7},{"code":40900}]"#).is_err());
        assert!(versions_of(br#"{"Version":0}"#).is_err());
    }

    #[test]
    fn each_way_of_breaking_the_promise_is_seen() {
        // Two feeds; message n goes to feed n % 2.
        let told = || Acknowledged { told: vec![(13, 3), (10, 0), (12, 2), (11, 1)] };
        let good = [vec![(10, 0), (12, 2)], vec![(11, 1), (13, 3)]];
        told().compare(&good).unwrap();
        let wrong = |feeds: [Vec<(i64, u64)>; 2]| told().compare(&feeds).unwrap_err().to_string();
        assert!(wrong([vec![(10, 0)], good[1].clone()]).contains("3 can be read"), "lost");
        assert!(wrong([vec![(10, 0), (12, 2), (14, 2)], good[1].clone()]).contains("nobody was told"), "doubled");
        assert!(wrong([vec![(10, 0), (15, 2)], good[1].clone()]).contains("nobody was told"), "another version");
        assert!(wrong([vec![(12, 2), (10, 0)], good[1].clone()]).contains("order"), "out of order");
        assert!(wrong([vec![(10, 0), (10, 0)], good[1].clone()]).contains("order"), "given twice");
        assert!(wrong([vec![(10, 0), (11, 1)], vec![(12, 2), (13, 3)]]).contains("another feed"), "gone astray");
        let twice = Acknowledged { told: vec![(10, 0), (10, 1)] };
        assert!(twice.compare(&[vec![], vec![]]).is_err(), "one version twice");
    }
}
