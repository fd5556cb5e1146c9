//! The long poll. Registers, looks, waits, in this order, so that no wake-up is lost.
//!
//! A parked poll holds no database connection. An `a` reader whose version the tail covers is
//! answered from memory, while that may be told from; any other first look goes to the table, which also decides whether the
//! reader's version belongs to this history. Looks at the table are boxed: a poll is parked for
//! long after them, and their room would be parked with it.

mod table;
mod wait;

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::SecondsFormat;
use moka::sync::Cache;
use uuid::Uuid;

use self::wait::{Wait, Waited};
use super::{
    ack_writer::AckWriter,
    activity::Activity,
    relay::Live,
    tail::{Look, Slice},
    tokens::Grant,
};
use crate::{
    clock::Clock,
    domain::{
        caller::Caller,
        cursor::{Cursor, From, Query},
        event::List,
        fault::Fault,
        ids::{FeedId, FeedKey},
        limits,
    },
    store::{
        agents,
        events::{self, Wanted},
        history,
    },
};

/// What a reader is answered, and of which history it is.
#[derive(Debug)]
pub struct Reply {
    pub answer: Answer,
    pub epoch: Arc<str>,
}

/// One look's result.
#[derive(Debug)]
pub struct Answer {
    pub events: Encoded,
    /// What to pass next: as `a`, or as `b` after a `b` answer.
    pub next: i64,
    pub more: bool,
    /// The history that the table said it is of; `None` for the tail's, which is this process's.
    pub epoch: Option<Arc<str>>,
}

/// The events of an answer, ascending.
#[derive(Debug)]
pub enum Encoded {
    /// Each by itself, shared with others who read them.
    Each(Vec<Bytes>),
    /// All of them as a JSON array.
    List(List),
}

impl Encoded {
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Each(events) => events.is_empty(),
            Self::List(list) => list.count == 0,
        }
    }
}

/// Serves polls.
pub struct Polls {
    live: Arc<Live>,
    acks: AckWriter,
    activity: Arc<Activity>,
    clock: Clock,
    /// The versions that each token was last given in instant mode.
    given: Cache<Uuid, Arc<[i64]>>,
}

impl Polls {
    pub fn new(live: Arc<Live>, acks: AckWriter, activity: Arc<Activity>, clock: Clock) -> Self {
        let given = Cache::builder().max_capacity(100_000).time_to_live(Duration::from_secs(60)).build();
        Self { live, acks, activity, clock, given }
    }

    /// Answers a query, at once or when there is something to tell.
    ///
    /// # Errors
    /// What the wire contract says of `/message/query`.
    pub async fn query(&self, grant: &Arc<Grant>, mut query: Query) -> Result<Reply, Fault> {
        let feed = match own_feed(&grant.caller, query.feed.as_ref())? {
            Some(feed) => feed,
            None => Box::pin(self.named_feed(query.feed.as_ref())).await?,
        };
        // What the reader has been given; the database decides whether this history has it, too.
        let epoch = match query.epoch.as_deref() {
            Some(epoch) => Box::pin(self.check_epoch(epoch, given_up_to(query.cursor))).await?,
            None => self.live.bulletin.epoch(),
        };
        // An admin has no feed, so nothing of an admin's can be acknowledged.
        if let Some(subject) = grant.caller.subject().filter(|_| !query.acks.is_empty()) {
            Box::pin(self.acks.record(subject.key, std::mem::take(&mut query.acks))).await?;
        }
        let wanted = Wanted { feed, types: query.types, limit: query.limit };
        if let Cursor::Before(before) = query.cursor {
            self.live.tokens.check(grant).await?;
            return Box::pin(self.before(wanted, before)).await;
        }
        // Guards that count the poll for as long as it goes on.
        let _parked = self.live.parked.enter(grant.token_id)?;
        let _active = self.activity.poll(&grant.caller);
        let mut wait = Wait::new(&self.live, grant, &query);
        // Now the relay knows of this poll, and the poll hears of revocations: it may have been revoked before.
        self.live.tokens.check(grant).await?;
        match query.cursor {
            Cursor::After(from) => self.after(wanted, from, epoch, &mut wait).await,
            _ => self.unacked(wanted, epoch, &mut wait).await,
        }
    }

    /// Whether a query is likely to be held, as far as memory can tell. Nothing depends on it but
    /// what the query costs.
    pub fn will_park(&self, grant: &Grant, query: &Query) -> bool {
        if query.wait_s == 0 || self.live.bulletin.is_draining() {
            return false;
        }
        match (query.cursor, own_feed(&grant.caller, query.feed.as_ref())) {
            (Cursor::After(From::Version(after)), Ok(Some(feed))) => {
                match self.live.tail.look(feed, after, query.types, 1) {
                    Look::Found(slice) => slice.events.is_empty(),
                    Look::TooNew => true,
                    Look::TooOld => false,
                }
            }
            (Cursor::After(From::Now) | Cursor::Unacked, _) => true,
            _ => false,
        }
    }

    /// The feed that a caller reads; only an admin may name one.
    ///
    /// # Errors
    /// 40000, 40300, 40402.
    pub async fn feed(&self, caller: &Caller, named: Option<&FeedId>) -> Result<FeedKey, Fault> {
        match own_feed(caller, named)? {
            Some(feed) => Ok(feed),
            None => self.named_feed(named).await,
        }
    }

    async fn named_feed(&self, named: Option<&FeedId>) -> Result<FeedKey, Fault> {
        let Some(feed) = named else { return Err(Fault::malformed("an admin must say whose feed: `feed=<id>`")) };
        let found = self.live.db.read(async |connection| agents::find_feed(connection, feed.as_str()).await).await?;
        found.map(|(key, _)| key).ok_or_else(|| Fault::NoSuchAgent(feed.to_string()))
    }

    /// Whether a reader who was given everything up to `version` in the history `epoch` can go on. Returns the
    /// present history. Asks the database: what this replica knows may be out of date.
    async fn check_epoch(&self, epoch: &str, version: i64) -> Result<Arc<str>, Fault> {
        let (lineage, head) = self.live.db.read(history::lineage).await?;
        if lineage.continues(epoch, version) {
            Ok(Arc::from(lineage.epoch()))
        } else {
            Err(Fault::HistoryUnknown { head, epoch: lineage.epoch().to_owned() })
        }
    }

    /// History: never waits.
    async fn before(&self, wanted: Wanted, before: Option<i64>) -> Result<Reply, Fault> {
        let answer = table::before(&self.live, wanted, before).await?;
        Ok(reply(answer, &self.live.bulletin.epoch()))
    }

    /// Events after a version.
    async fn after(
        &self,
        wanted: Wanted,
        from: From,
        mut epoch: Arc<str>,
        wait: &mut Wait<'_>,
    ) -> Result<Reply, Fault> {
        let after = match from {
            From::Version(version) => version,
            _ => Box::pin(self.resolve(from)).await?,
        };
        // Everything up to here that the reader wants has been given.
        let mut seen = after;
        // Whether the table has confirmed `seen`; then a tail that is behind it is only late.
        let mut confirmed = !matches!(from, From::Version(_));
        // What this process has answered a sender for is not missing from an answer that is asked
        // for later, though the tail may be a moment behind.
        let owed = self.live.committed_head();
        loop {
            let watch = self.live.hub.watch(wanted.feed);
            let mut woken = pin!(watch.woken());
            woken.as_mut().enable();
            let histories = wait.histories();
            if wait.epoch() != epoch {
                epoch = Box::pin(self.check_epoch(&epoch, seen)).await?;
                confirmed = false;
            }
            let found = match self.look(wanted, seen) {
                // The tail holds this process's history: what it is now may be another than a moment ago.
                _ if wait.histories() != histories => continue,
                Look::Found(slice) if slice.more || slice.head >= owed && !wait.is_over() => Some(from_slice(slice)),
                Look::TooNew if confirmed && !wait.is_over() => None,
                // The table has the last word on what is there now, and on what the tail does not cover.
                _ => Some(Box::pin(table::after(&self.live, wanted, seen, after)).await?),
            };
            if let Some(found) = found {
                if let Some(read) = found.epoch.as_ref().filter(|read| **read != epoch) {
                    Box::pin(self.check_epoch(&epoch, seen)).await?;
                    epoch = Arc::clone(read);
                }
                confirmed = true;
                seen = seen.max(found.next);
                if !found.events.is_empty() || wait.is_over() {
                    return Ok(reply(Answer { next: seen, ..found }, &epoch));
                }
            }
            if let Waited::Over = wait.until_woken(woken).await? {
                return Ok(reply(nothing(seen), &epoch));
            }
            if wait.histories() != histories {
                confirmed = false;
            }
        }
    }

    /// A look into the tail.
    fn look(&self, wanted: Wanted, seen: i64) -> Look {
        // First: what the tail holds is true for as long as this is.
        let is_in_touch = self.live.freshness.is_in_touch();
        match self.live.tail.look(wanted.feed, seen, wanted.types, wanted.limit) {
            Look::Found(slice) if !slice.events.is_empty() && !is_in_touch => Look::TooOld,
            look => look,
        }
    }

    async fn resolve(&self, from: From) -> Result<i64, Fault> {
        let db = &self.live.db;
        let now = self.clock.now();
        Ok(match from {
            From::Version(version) => version,
            From::Time(time) if time > now + limits::CLOCKS_APART => {
                return Err(Fault::malformed(format!(
                    "`a=@...` is ahead of the server's clock, which shows {}",
                    now.to_rfc3339_opts(SecondsFormat::Millis, true)
                )));
            }
            From::Time(time) if time <= now => {
                db.read(async |connection| events::version_before(connection, time).await).await?
            }
            From::Now | From::Time(_) => db.read(events::store_state).await?.head,
        })
    }

    /// What was not acknowledged.
    async fn unacked(&self, wanted: Wanted, mut epoch: Arc<str>, wait: &mut Wait<'_>) -> Result<Reply, Fault> {
        let token_id = wait.grant.token_id;
        let mut held = false;
        // Up to here everything is acknowledged, as far as the table has told.
        let mut seen: Option<i64> = None;
        loop {
            let watch = self.live.hub.watch(wanted.feed);
            let mut woken = pin!(watch.woken());
            woken.as_mut().enable();
            let histories = wait.histories();
            if wait.epoch() != epoch {
                epoch = Box::pin(self.check_epoch(&epoch, seen.unwrap_or(0))).await?;
                seen = None;
            }
            // All before `seen` was acknowledged when we looked, so what is not lies after it.
            let look = seen.map(|seen| self.look(wanted, seen));
            let (found, versions) = match look {
                Some(_) if wait.histories() != histories => continue,
                Some(Look::Found(slice)) if !slice.events.is_empty() || !wait.is_over() => {
                    let versions: Arc<[i64]> = slice.events.iter().map(|event| event.version).collect();
                    (from_slice(slice), versions)
                }
                Some(Look::TooNew) if !wait.is_over() => (nothing(seen.unwrap_or(0)), Arc::from([])),
                _ => Box::pin(table::unacked(&self.live, wanted)).await?,
            };
            if found.events.is_empty() {
                if wait.is_over() {
                    return Ok(reply(found, &epoch));
                }
                seen = Some(seen.unwrap_or(0).max(found.next));
                if let Waited::Over = wait.until_woken(woken).await? {
                    return Ok(reply(nothing(seen.unwrap_or(0)), &epoch));
                }
            } else if !held && !wait.is_over() && self.was_just_given(token_id, &versions) {
                held = true;
                wait.until_woken_or(woken, Duration::from_millis(limits::REPEATED_PAGE_HOLD_MS)).await?;
                seen = None;
            } else {
                self.given.insert(token_id, versions);
                return Ok(reply(found, &epoch));
            }
            if wait.histories() != histories {
                seen = None;
            }
        }
    }

    fn was_just_given(&self, token_id: Uuid, versions: &[i64]) -> bool {
        self.given
            .get(&token_id)
            .is_some_and(|given| versions.iter().all(|version| given.binary_search(version).is_ok()))
    }
}

/// The caller's own feed; None for an admin, who must name one.
fn own_feed(caller: &Caller, named: Option<&FeedId>) -> Result<Option<FeedKey>, Fault> {
    match (caller.subject(), named) {
        (Some(subject), Some(feed)) if subject.id != *feed => {
            Err(Fault::role_may_not("only an admin may read another feed"))
        }
        (Some(subject), _) => Ok(Some(subject.key)),
        (None, _) => Ok(None),
    }
}

/// Up to which version a reader with this cursor was given everything, as far as it says.
fn given_up_to(cursor: Cursor) -> i64 {
    match cursor {
        Cursor::After(From::Version(version)) => version,
        Cursor::Before(Some(version)) => version - 1,
        Cursor::After(From::Now | From::Time(_)) | Cursor::Before(None) | Cursor::Unacked => 0,
    }
}

fn reply(answer: Answer, epoch: &Arc<str>) -> Reply {
    let epoch = Arc::clone(answer.epoch.as_ref().unwrap_or(epoch));
    Reply { answer, epoch }
}

fn nothing(next: i64) -> Answer {
    Answer { events: Encoded::Each(Vec::new()), next, more: false, epoch: None }
}

fn from_slice(slice: Slice) -> Answer {
    let next = match slice.events.last() {
        Some(last) if slice.more => last.version,
        _ => slice.head,
    };
    let events = Encoded::Each(slice.events.into_iter().map(|event| event.json).collect());
    Answer { events, next, more: slice.more, epoch: None }
}
