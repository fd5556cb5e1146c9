//! The long poll. Registers, looks, waits, in this order, so that no wake-up is lost.
//!
//! A parked poll holds no database connection. An `a` reader whose version the tail covers is answered from memory,
//! as long as memory may be told; any other first look goes to the table, which also decides whether the reader's
//! version belongs to this history. Looks at the table are boxed: a poll is parked long after them, and their
//! futures would be parked with it.

pub mod answer;
mod table;
mod wait;

use std::{pin::pin, sync::Arc, time::Duration};

use chrono::{DateTime, SecondsFormat, Utc};
use moka::sync::Cache;
use uuid::Uuid;

use self::{
    answer::{Answer, Followed, Found},
    table::Table,
    wait::{Wait, Waited},
};
use super::{Feed, parked::Parked, tail::Look};
use crate::{
    clock::Clock,
    domain::{
        caller::Caller,
        cursor::{Cursor, From, Query},
        fault::Fault,
        ids::{FeedId, FeedKey},
        limits,
    },
    live::{
        ack_writer::AckWriter,
        auth::{
            activity::Activity,
            tokens::{Grant, Tokens},
        },
    },
    store::{events::Wanted, pool::Db},
};

/// Answers queries.
pub struct Polls {
    table: Table,
    feed: Arc<Feed>,
    tokens: Arc<Tokens>,
    parked: Arc<Parked>,
    acks: AckWriter,
    activity: Arc<Activity>,
    clock: Clock,
    /// The versions that each token was last given in instant mode.
    given: Cache<Uuid, Arc<[i64]>>,
}

impl Polls {
    pub fn new(
        db: Db,
        feed: Arc<Feed>,
        tokens: Arc<Tokens>,
        parked: Arc<Parked>,
        acks: AckWriter,
        activity: Arc<Activity>,
        clock: Clock,
    ) -> Self {
        let given = Cache::builder().max_capacity(100_000).time_to_live(Duration::from_secs(60)).build();
        Self { table: Table::new(db, Arc::clone(&feed)), feed, tokens, parked, acks, activity, clock, given }
    }

    /// Answers a query, at once or when there is something to tell.
    ///
    /// # Errors
    /// What the wire contract says of `/message/query`.
    pub async fn query(&self, grant: &Grant, mut query: Query) -> Result<Answer, Fault> {
        let feed = match own_feed(&grant.caller, query.feed.as_ref())? {
            Some(feed) => feed,
            None => Box::pin(self.named_feed(query.feed.as_ref())).await?,
        };
        // The database decides whether this history has what the reader was given in that one.
        let mut followed = match query.epoch.as_deref() {
            Some(epoch) => Followed { epoch: Arc::from(epoch), is_named: true },
            None => Followed { epoch: self.feed.notices.epoch(), is_named: false },
        };
        if followed.is_named {
            followed.epoch = Box::pin(self.table.check_epoch(&followed, given_up_to(query.cursor))).await?;
        }
        // An admin has no feed, so an admin acknowledges nothing.
        if let Some(subject) = grant.caller.subject().filter(|_| !query.acks.is_empty()) {
            Box::pin(self.acks.record(subject.key, std::mem::take(&mut query.acks))).await?;
        }
        let wanted = Wanted { feed, types: query.types, limit: query.limit };
        if let Cursor::Before(before) = query.cursor {
            self.tokens.check(grant).await?;
            return Box::pin(self.table.before(wanted, before)).await;
        }
        // Guards that count the poll for as long as it goes on.
        let _parked = self.parked.enter(grant.token_id)?;
        let _active = self.activity.poll(&grant.caller);
        let mut wait = Wait::new(&self.tokens, &self.feed.notices, grant, &query);
        // From here on the relay knows of this poll and the poll hears of revocations. Was there one before?
        self.tokens.check(grant).await?;
        match query.cursor {
            Cursor::After(from) => self.after(wanted, from, followed, &mut wait).await,
            _ => self.unacked(wanted, followed, &mut wait).await,
        }
    }

    /// Whether a query is likely to be held, as far as memory can tell. Only its cost depends on it.
    pub fn will_park(&self, grant: &Grant, query: &Query) -> bool {
        if query.wait_s == 0 || self.feed.notices.is_draining() {
            return false;
        }
        match (query.cursor, own_feed(&grant.caller, query.feed.as_ref())) {
            (Cursor::After(From::Version(after)), Ok(Some(feed))) => {
                match self.feed.look(feed, after, query.types, 1) {
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
        let named = named.ok_or_else(|| Fault::malformed("an admin must say whose feed: `feed=<id>`"))?;
        self.table.feed_of(named).await
    }

    /// Events after a version, for a reader who may go on in the history that it follows.
    async fn after(
        &self,
        wanted: Wanted,
        from: From,
        mut followed: Followed,
        wait: &mut Wait<'_>,
    ) -> Result<Answer, Fault> {
        let from = checked_begin(from, self.clock.now())?;
        let after = match from {
            From::Version(version) => version,
            _ => Box::pin(self.table.begin_of(from)).await?,
        };
        // Everything up to here that the reader wants has been given.
        let mut seen = after;
        // Whether the table has confirmed `seen`; a tail that is behind it is then only late.
        let mut is_confirmed = !matches!(from, From::Version(_));
        // Read-your-writes on this replica, although the tail may be a moment behind.
        let owed = self.feed.committed_head();
        if is_confirmed {
            self.feed.told.note(wait.histories(), seen);
        }
        loop {
            let watch = self.feed.hub.watch(wanted.feed);
            let mut woken = pin!(watch.woken());
            woken.as_mut().enable();
            let histories = wait.histories();
            if wait.epoch() != followed.epoch {
                match Box::pin(self.table.check_epoch(&followed, seen)).await {
                    Ok(epoch) => followed.epoch = epoch,
                    Err(fault) => {
                        Box::pin(wait.ride_out(fault, woken)).await?;
                        continue;
                    }
                }
                is_confirmed = false;
            }
            let answer = match self.feed.look(wanted.feed, seen, wanted.types, wanted.limit) {
                // The tail may be of another history than a moment ago.
                _ if wait.histories() != histories => continue,
                Look::Found(slice) if slice.more || slice.head >= owed && !wait.is_over() => {
                    Some(Answer { found: Found::from(slice), epoch: Arc::clone(&followed.epoch) })
                }
                Look::TooNew if is_confirmed && !wait.is_over() => None,
                // The table has the last word on what is there now, and on what the tail does not cover.
                _ => match Box::pin(self.table.after(wanted, seen, after)).await {
                    Ok(answer) => Some(answer),
                    Err(fault) => {
                        Box::pin(wait.ride_out(fault, woken)).await?;
                        continue;
                    }
                },
            };
            if let Some(Answer { found, epoch: read }) = answer {
                if read != followed.epoch {
                    Box::pin(self.table.check_epoch(&followed, seen)).await?;
                    followed.epoch = read;
                }
                is_confirmed = true;
                seen = seen.max(found.next);
                self.feed.told.note(histories, seen);
                if !found.events.is_empty() || wait.is_over() {
                    return Ok(Answer { found: Found { next: seen, ..found }, epoch: followed.epoch });
                }
            }
            if let Waited::Over = wait.until_woken(woken).await? {
                return Ok(Answer { found: Found::nothing(seen), epoch: followed.epoch });
            }
            if wait.histories() != histories {
                is_confirmed = false;
            }
        }
    }

    /// Events that are not acknowledged, for a reader who may go on in the history that it follows.
    async fn unacked(&self, wanted: Wanted, mut followed: Followed, wait: &mut Wait<'_>) -> Result<Answer, Fault> {
        let token_id = wait.grant.token_id;
        let mut was_held = false;
        // Up to here everything is acknowledged, as far as the table has told.
        let mut seen: Option<i64> = None;
        loop {
            let watch = self.feed.hub.watch(wanted.feed);
            let mut woken = pin!(watch.woken());
            woken.as_mut().enable();
            let histories = wait.histories();
            if wait.epoch() != followed.epoch {
                match Box::pin(self.table.check_epoch(&followed, seen.unwrap_or(0))).await {
                    Ok(epoch) => followed.epoch = epoch,
                    Err(fault) => {
                        Box::pin(wait.ride_out(fault, woken)).await?;
                        continue;
                    }
                }
                seen = None;
            }
            // Everything before `seen` was acknowledged when we looked, so what is not lies after it.
            let look = seen.map(|seen| self.feed.look(wanted.feed, seen, wanted.types, wanted.limit));
            let (found, versions) = match look {
                // The tail may be of another history than a moment ago.
                Some(_) if wait.histories() != histories => continue,
                Some(Look::Found(slice)) if !slice.events.is_empty() || !wait.is_over() => {
                    let versions: Arc<[i64]> = slice.events.iter().map(|event| event.version).collect();
                    (Found::from(slice), versions)
                }
                Some(Look::TooNew) if !wait.is_over() => (Found::nothing(seen.unwrap_or(0)), Arc::from([])),
                _ => {
                    let (Answer { found, epoch: read }, versions) = match Box::pin(self.table.unacked(wanted)).await {
                        Ok(read) => read,
                        Err(fault) => {
                            Box::pin(wait.ride_out(fault, woken)).await?;
                            continue;
                        }
                    };
                    if read != followed.epoch {
                        Box::pin(self.table.check_epoch(&followed, seen.unwrap_or(0))).await?;
                        followed.epoch = read;
                    }
                    (found, versions)
                }
            };
            if found.events.is_empty() {
                if wait.is_over() {
                    return Ok(Answer { found, epoch: followed.epoch });
                }
                let next = seen.unwrap_or(0).max(found.next);
                self.feed.told.note(histories, next);
                seen = Some(next);
                if let Waited::Over = wait.until_woken(woken).await? {
                    return Ok(Answer { found: Found::nothing(seen.unwrap_or(0)), epoch: followed.epoch });
                }
            } else if !was_held && !wait.is_over() && self.was_just_given(token_id, &versions) {
                was_held = true;
                wait.until_woken_or(woken, Duration::from_millis(limits::REPEATED_PAGE_HOLD_MS)).await?;
                seen = None;
            } else {
                self.given.insert(token_id, versions);
                return Ok(Answer { found, epoch: followed.epoch });
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

/// The caller's own feed; `None` for an admin, who must name one.
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

/// A time to come means now, if the difference of two clocks explains it.
///
/// # Errors
/// 40000 for a time that is further ahead.
fn checked_begin(from: From, now: DateTime<Utc>) -> Result<From, Fault> {
    match from {
        From::Time(time) if time > now + limits::CLOCKS_APART => Err(Fault::malformed(format!(
            "`a=@...` is ahead of the server's clock, which shows {}",
            now.to_rfc3339_opts(SecondsFormat::Millis, true)
        ))),
        From::Time(time) if time > now => Ok(From::Now),
        from => Ok(from),
    }
}
