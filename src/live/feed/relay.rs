//! Advances the tail and wakes those who have news. The only task that does.
//!
//! It learns of new events in three ways, and relies on none of them: the writer of this process publishes what it
//! committed (added as it is if it follows the tail's head without a gap, otherwise a reason to look); another
//! process notifies (a reason to look); a timer goes off (a reason to look). A look is one range scan of the table
//! from the tail's head on, whatever the number of feeds and readers. So whatever is lost costs at most one turn
//! of the timer.
//!
//! Each look also compares the store with what is cached of it, and ends what is not true any more:
//!
//! | found | meaning | done |
//! | --- | --- | --- |
//! | another epoch, or a head below the tail's | restored, or failed over | cards, tail, tokens and pooled connections go; every poll is told |
//! | a new connection of the relay | perhaps failed over | a new generation of tokens |
//! | newer erasures | content was blanked | the erased sessions are read again, the tail is filled again |
//! | more revocations | tokens were revoked | they are removed; every poll is told |
//! | a newer oldest version | retention | the tail forgets what is below it |
//!
//! Only then does the look count as successful ([`Freshness`]), and only then are polls told.

use std::{collections::HashSet, sync::Arc, time::Duration};

use sqlx::PgConnection;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{Feed, hints::Hints, parked::Parked, publisher::Committed, tail::EncodedEvent};
use crate::{
    domain::{
        event::{self, Event, Shown},
        ids::FeedKey,
        limits,
    },
    live::{
        auth::{freshness::Freshness, tokens::Tokens},
        peers::Peers,
    },
    store::{
        Error, Result, appends, erasures,
        events::{self, StoreState},
        listener,
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
    pub peers: Arc<Peers>,
    pub hints: Arc<Hints>,
    pub committed: mpsc::Receiver<Committed>,
    /// Told when the first look has succeeded.
    pub first_look: Option<oneshot::Sender<()>>,
}

impl Relay {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut connection: Option<PgConnection> = None;
        let mut sweep = interval(Duration::from_millis(limits::SWEEP_MS));
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pinged = Instant::now();
        let mut answers = false;
        loop {
            let is_added = tokio::select! {
                () = stop.cancelled() => return,
                Some(committed) = self.committed.recv() => self.add_committed(&committed),
                () = self.hints.looked_for() => false,
                _ = sweep.tick() => false,
            };
            if is_added {
                continue;
            }
            match self.look(&mut connection, &mut pinged).await {
                Ok(()) => {
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

    /// Adds events that our own writer committed. Returns false if a look at the table is needed.
    fn add_committed(&self, committed: &Committed) -> bool {
        let Some(events) = &committed.events else { return false };
        if committed.basis != self.feed.basis() {
            return false;
        }
        let is_seen = events.last().is_some_and(|event| event.version <= self.feed.tail.head());
        let encode = || self.encode(events.iter().map(Event::shown), events.iter().map(|event| event.feed));
        is_seen || encode().is_ok_and(|encoded| self.add(encoded))
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

    async fn look(&self, connection: &mut Option<PgConnection>, pinged: &mut Instant) -> Result<()> {
        let is_new = connection.is_none();
        let connection = match connection {
            Some(connection) => connection,
            None => {
                let mut made = self.db.connect(Purpose::Reads).await?;
                self.peers.set_relay(read_deadline(appends::backend(&mut made)).await?.pid);
                connection.insert(made)
            }
        };
        read_deadline(async {
            let state = self.renew(connection, is_new).await?;
            self.scan(connection, state.head).await
        })
        .await?;
        let is_due = pinged.elapsed() >= Duration::from_millis(limits::LISTENER_PING_MS);
        if self.hints.take_ping() || is_due {
            *pinged = Instant::now();
            read_deadline(listener::ping(connection)).await?;
        }
        Ok(())
    }

    /// Makes everything cached true again, as the module documentation has it.
    async fn renew(&self, connection: &mut PgConnection, is_new_connection: bool) -> Result<StoreState> {
        let Feed { tail, cards, notices, .. } = &*self.feed;
        let began = Instant::now();
        // Taken before the query: whatever is in the tail now was committed before it, so a lower head in its
        // answer means that the database has lost something.
        let tail_head = tail.head();
        let state = deadline(limits::RELAY_LOOK_MS, events::store_state(connection)).await?;
        let tail_start = (state.head - limits::TAIL_PRELOAD_EVENTS).max(state.oldest - 1);
        let is_other_history = *notices.epoch() != *state.epoch || state.head < tail_head;
        // After a failover a store may have revoked as many tokens as before, and others.
        let were_revoked = if is_new_connection || is_other_history {
            self.tokens.begin_generation(connection, state.revocations, || self.parked.token_ids()).await?
        } else {
            self.tokens.catch_up(connection, state.revocations).await?
        };
        if is_other_history {
            if tail_head > 0 {
                tracing::warn!(head = state.head, known = tail_head, epoch = %state.epoch, "the database holds another history than before; readers are told");
            }
            self.db.replace_connections();
            cards.clear(state.erasures);
            tail.reset(tail_start);
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

    /// Adds what is new in the table, up to `head`.
    async fn scan(&self, connection: &mut PgConnection, head: i64) -> Result<()> {
        let tail = &self.feed.tail;
        let cards = self.feed.cards.cards();
        while tail.head() < head {
            let page = events::read_all(connection, &cards, tail.head(), limits::RELAY_SCAN_EVENTS).await?;
            let events = self
                .encode(page.events(), page.feeds())
                .map_err(|error| Error::inconsistent(format!("events cannot be written as JSON: {error}")))?;
            let count = events.len();
            if count == 0 || !self.add(events) {
                return Err(Error::inconsistent(format!(
                    "versions are not dense after {}; was the events table changed by hand?",
                    tail.head()
                )));
            }
            metrics::counter!("deskfeed_relay_scanned_events_total").increment(count as u64);
        }
        Ok(())
    }
}
