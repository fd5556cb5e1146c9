//! Advances the tail and wakes those who have news. The only task that does.
//!
//! It learns of new events in three ways, and relies on none of them: the lane of this process publishes what it
//! committed (added as it is if it follows the tail's head without a gap, otherwise a reason to look); another
//! process notifies (a reason to look); a timer goes off (a reason to look). A look is one range scan of the table
//! from the tail's head on, whatever the number of feeds and readers. So whatever is lost costs at most one turn
//! of the timer. Looks take a part of the time only ([`limits::RELAY_REST`]), however often others notify.
//!
//! Each look also compares the store with what is cached of it, and ends what is not true any more:
//!
//! | found | meaning | done |
//! | --- | --- | --- |
//! | another epoch, or a head below the tail's | restored, or failed over | cards, tokens and pooled connections go; every poll is told |
//! | .. and the tail has versions that are not the new history's | they were lost | the tail goes, too |
//! | a new connection of the relay | perhaps failed over | a new generation of tokens |
//! | newer erasures | content was blanked | the erased sessions are read again, the tail is filled again |
//! | more revocations | tokens were revoked | they are removed; every poll is told |
//! | a newer oldest version | retention | the tail forgets what is below it |
//!
//! Only then does the look count as successful ([`Freshness`]), and only then are polls told.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use sqlx::PgConnection;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{Feed, hints::Hints, parked::Parked, publisher::Committed, tail::EncodedEvent};
use crate::{
    domain::{
        event::{self, Event, Shown},
        ids::FeedKey,
        limits,
    },
    live::auth::{freshness::Freshness, tokens::Tokens},
    store::{
        Error, Result, erasures,
        events::{self, StoreState},
        pool::{Db, Purpose, deadline, read_deadline},
    },
};

/// The relay of a process.
pub struct Relay {
    pub db: Db,
    pub feed: Arc<Feed>,
    pub freshness: Arc<Freshness>,
    pub tokens: Arc<Tokens>,
    pub parked: Arc<Parked>,
    pub hints: Arc<Hints>,
    pub committed: mpsc::Receiver<Committed>,
    /// Told when the first look has succeeded.
    pub first_look: Option<oneshot::Sender<()>>,
}

/// When the relay looks at the table.
struct Pace {
    /// A look was asked for. `None`: with the next turn of the timer.
    due: Option<Instant>,
    /// A look for what is between the tail and `ahead`.
    gap_due: Option<Instant>,
    /// Whether the next look is for everything that is cached, and not for new events alone.
    renews: bool,
    /// Not before: looks may take a part of the time only.
    not_before: Instant,
    /// Events of our own that are ahead of the tail, by the head before them.
    ahead: BTreeMap<i64, Committed>,
}

impl Pace {
    /// Looks soon.
    fn want(&mut self, at: Instant) {
        let at = at.max(self.not_before);
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Looks for what is missing unless it comes soon.
    fn want_gap(&mut self) {
        let at = (Instant::now() + Duration::from_millis(limits::RELAY_REORDER_MS)).max(self.not_before);
        self.gap_due.get_or_insert(at);
    }

    /// When the next look is due.
    fn next(&self) -> Option<Instant> {
        self.due.into_iter().chain(self.gap_due).min()
    }
}

impl Relay {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut connection: Option<PgConnection> = None;
        let mut sweep = interval(Duration::from_millis(limits::SWEEP_MS));
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pace =
            Pace { due: None, gap_due: None, renews: true, not_before: Instant::now(), ahead: BTreeMap::new() };
        let mut answers = false;
        loop {
            let due = pace.next();
            tokio::select! {
                // The timer first: appends may come without a pause.
                biased;
                () = stop.cancelled() => return,
                _ = sweep.tick() => pace.renews = true,
                Some(committed) = self.committed.recv() => {
                    self.take(committed, &mut pace);
                    continue;
                }
                () = self.hints.looked_for() => {
                    pace.renews = true;
                    pace.want(Instant::now());
                    continue;
                }
                () = self.hints.scan_wanted() => {
                    if self.is_unwatched() {
                        self.feed.is_behind.store(true, Ordering::Release);
                    } else {
                        pace.want(Instant::now());
                    }
                    continue;
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
            (pace.due, pace.gap_due) = (None, None);
            let began = Instant::now();
            let looked = self.look(&mut connection, std::mem::take(&mut pace.renews)).await;
            pace.not_before = Instant::now() + began.elapsed() * limits::RELAY_REST;
            match looked {
                Ok(()) => {
                    self.feed.is_behind.store(false, Ordering::Release);
                    self.take_ahead(&mut pace);
                    if let Some(first_look) = self.first_look.take() {
                        // A start that was given up does not wait for it.
                        let _ = first_look.send(());
                    }
                    if !std::mem::replace(&mut answers, true) {
                        tracing::info!("PostgreSQL answers");
                    }
                }
                Err(error) => {
                    connection = None;
                    pace.ahead.clear();
                    self.db.doubt();
                    if std::mem::replace(&mut answers, false) {
                        tracing::warn!(error = %error, "PostgreSQL does not answer; parked polls wait, other requests are answered 50300 until it does");
                    }
                    // Not at the pace of hints: each of them would start another attempt.
                    sleep(Duration::from_millis(limits::SWEEP_MS / 2)).await;
                }
            }
        }
    }

    /// Takes what this process has committed. What does not follow the tail waits for what is between: another
    /// append of ours, which comes at once, or another process's, for which it takes a look.
    fn take(&self, committed: Committed, pace: &mut Pace) {
        let tail_head = self.feed.tail.head();
        // Another history than the one that this process knows: to look is how it gets to know it.
        let is_current = committed.basis == self.feed.basis() && committed.epoch == self.feed.notices.epoch();
        if !is_current {
            pace.renews = true;
            pace.want(Instant::now());
        } else if committed.head > tail_head && self.is_unwatched() {
            // Nobody waits for it: the timer's look is soon enough.
            self.feed.is_behind.store(true, Ordering::Release);
        } else if committed.events.is_none() {
            // Readers wait for what this process has committed, and what follows it waits as well: no rest before it.
            pace.due = Some(Instant::now());
        } else if committed.head > tail_head {
            pace.want_gap();
            if pace.ahead.len() < limits::RELAY_AHEAD_MAX {
                pace.ahead.insert(committed.head, committed);
            }
        } else {
            if !self.add_committed(&committed, tail_head) {
                pace.want(Instant::now());
            }
            self.take_ahead(pace);
        }
    }

    /// Takes what follows the tail by now.
    fn take_ahead(&self, pace: &mut Pace) {
        while let Some(next) = pace.ahead.first_entry()
            && *next.key() <= self.feed.tail.head()
        {
            let committed = next.remove();
            if committed.basis != self.feed.basis() || !self.add_committed(&committed, self.feed.tail.head()) {
                pace.want(Instant::now());
            }
        }
        if pace.ahead.is_empty() {
            // What it was to look for has come. A look that others asked for stays due.
            pace.gap_due = None;
        }
    }

    /// Adds events of which some may be in the tail already. False when they do not follow it.
    fn add_committed(&self, committed: &Committed, tail_head: i64) -> bool {
        let Some(events) = &committed.events else { return false };
        let seen = events.partition_point(|event| event.version <= tail_head);
        let new = &events[seen..];
        if new.is_empty() {
            return true;
        }
        let encoded = self.encode(new.iter().map(Event::shown), new.iter().map(|event| event.feed));
        encoded.is_ok_and(|encoded| self.add(encoded))
    }

    fn encode<'a>(
        &self,
        events: impl Iterator<Item = Shown<'a>> + Clone,
        feeds: impl Iterator<Item = FeedKey>,
    ) -> std::result::Result<Vec<EncodedEvent>, serde_json::Error> {
        let json = event::encode(events.clone(), self.feed.zone)?;
        let encoded = events.zip(feeds).zip(json).map(|((event, feed), json)| EncodedEvent {
            version: event.version,
            feed,
            r#type: event.r#type,
            json,
        });
        Ok(encoded.collect())
    }

    fn add(&self, events: Vec<EncodedEvent>) -> bool {
        let feeds: HashSet<FeedKey> = events.iter().map(|event| event.feed).collect();
        if !self.feed.tail.push(events) {
            return false;
        }
        self.feed.hub.wake(feeds);
        true
    }

    /// Whether nobody waits for events at this process.
    fn is_unwatched(&self) -> bool {
        self.feed.hub.watched_feeds() == 0
    }

    async fn look(&self, connection: &mut Option<PgConnection>, renews: bool) -> Result<()> {
        let is_new = connection.is_none();
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(self.db.connect(Purpose::Reads).await?),
        };
        read_deadline(async {
            if !is_new && !renews && self.scan(connection).await? {
                return Ok(());
            }
            let state = self.renew(connection, is_new).await?;
            let tail = &self.feed.tail;
            if self.is_unwatched() && state.head - tail.head() > limits::RELAY_SCAN_EVENTS {
                // Whoever comes reads the table; the next events are told from memory again.
                tail.reset(state.head);
            }
            // Another history that has begun since is found with the next look.
            self.scan(connection).await?;
            Ok(())
        })
        .await
    }

    /// Makes everything cached true again, as the module documentation has it.
    async fn renew(&self, connection: &mut PgConnection, is_new_connection: bool) -> Result<StoreState> {
        let Feed { tail, cards, notices, .. } = &*self.feed;
        let began = Instant::now();
        // Taken before the query: whatever is in the tail now was committed before it, so a lower head in its
        // answer means that the database has lost something.
        let tail_head = tail.head();
        // So was what the table has told readers, which may be ahead of the tail.
        let told = self.feed.told.of(notices.histories()).max(self.feed.committed_head());
        let state = deadline(limits::RELAY_LOOK_MS, events::store_state(connection)).await?;
        let tail_start = (state.head - limits::TAIL_PRELOAD_EVENTS).max(state.oldest - 1);
        let is_other_history = *notices.epoch() != *state.epoch || state.head < tail_head.max(told);
        // A promoted standby continues a prefix of the history before; what both share stays true.
        let has_lost = state.head < tail_head || (is_other_history && state.begins_at <= tail_head);
        // After a failover a store may have revoked as many tokens as before, and others.
        let were_revoked = if is_new_connection || is_other_history {
            self.tokens.begin_generation(connection, state.revocations, || self.parked.token_ids()).await?
        } else {
            self.tokens.catch_up(connection, state.revocations).await?
        };
        if is_other_history {
            if tail_head > 0 {
                tracing::warn!(head = state.head, known = tail_head, begins_at = state.begins_at, epoch = %state.epoch, "the database holds another history than before; readers who are ahead of what was kept are told");
            }
            self.db.replace_connections();
            // An erasure between this look and the one before is no less one.
            let were_erased = state.erasures != cards.erasures();
            cards.clear(state.erasures);
            if has_lost || were_erased || tail_head == 0 {
                tail.reset(tail_start);
            }
        } else if state.erasures != cards.erasures() {
            let sessions = erasures::sessions_since(connection, cards.erasures()).await?;
            cards.take_erasures(connection, state.erasures, &sessions).await?;
            // What was erased is at or below the head, so nothing that is added later is.
            tail.reset(tail_start);
        }
        // The table tells those who read on from before it (41000).
        tail.forget_before(state.oldest);
        // Before the notices: a poll that is woken by one and finds this process out of touch asks the database,
        // and there may be thousands of them.
        self.freshness.note_look(began);
        if is_other_history {
            // After the reset: a reader of the new name must not find the old tail.
            notices.history_changed(&state.epoch);
        }
        if were_revoked {
            notices.revoked();
        }
        Ok(state)
    }

    /// Adds what is new in the table, or some of it. Returns false when the table holds another history than the tail.
    async fn scan(&self, connection: &mut PgConnection) -> Result<bool> {
        let tail = &self.feed.tail;
        let cards = self.feed.cards.cards();
        loop {
            let page = events::read_all(connection, &cards, tail.head(), limits::RELAY_SCAN_EVENTS).await?;
            if *self.feed.notices.epoch() != *page.epoch || page.head < tail.head() {
                return Ok(false);
            }
            let events = self
                .encode(page.events(), page.feeds())
                .map_err(|error| Error::inconsistent(format!("events cannot be written as JSON: {error}")))?;
            let count = events.len();
            if count > 0 && !self.add(events) || count == 0 && page.head > tail.head() {
                return Err(Error::inconsistent(format!(
                    "versions are not dense after {}; was the events table changed by hand?",
                    tail.head()
                )));
            }
            metrics::counter!("deskfeed_relay_scanned_events_total").increment(count as u64);
            if !page.more {
                return Ok(true);
            }
        }
    }
}
