//! Moves the tail on and wakes those who have news. The only task that does.
//!
//! It learns of new events in three ways, none of which is trusted: the writer of this process
//! hands over what it committed (taken as it is when it follows the tail's head without a hole,
//! else a cause to look); another process notifies (a cause to look); and a timer goes off (a cause
//! to look). To look is one range scan of the table from the tail's head on, whatever the number of
//! feeds and readers. So whatever is lost costs at most one turn of the timer.
//!
//! It also watches over the history: a head below the tail's, or another epoch, means that the
//! database was restored or failed over. The tail is then thrown away and every parked poll told.
//! And over erasures: when there are new ones, the tail is filled anew, without what they erased.
//! Nothing is told from memory when the last look is long ago ([`Freshness::is_in_touch`]).

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono_tz::Tz;
use sqlx::PgConnection;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    bulletin::Bulletin,
    committed::CommittedHead,
    freshness::Freshness,
    hub::Hub,
    parked::Parked,
    peers::{Heard, Peers},
    tail::{Encoded, Tail},
    tokens::Tokens,
};
use crate::{
    domain::{
        event::{self, Event, Shown},
        ids::FeedKey,
        limits,
    },
    store::{
        Error, Result, appends,
        cards::{CardCache, Cards},
        erasures, events,
        listener::{self, Listener},
        pool::{Db, Purpose, deadline, read_deadline},
    },
};

/// What the relay and its clients share.
pub struct Live {
    pub db: Db,
    pub cards: Arc<CardCache>,
    pub tail: Tail,
    pub hub: Arc<Hub>,
    pub bulletin: Arc<Bulletin>,
    pub tokens: Tokens,
    pub parked: Arc<Parked>,
    pub zone: Tz,
    pub freshness: Arc<Freshness>,
    committed: CommittedHead,
    listener_generation: AtomicU64,
    pub peers: Peers,
    /// Whether the relay is to notify this process, and all others, with its next look.
    must_ping: AtomicBool,
    look: Notify,
}

impl Live {
    pub fn new(db: Db, tokens: Tokens, freshness: Arc<Freshness>, parked: Arc<Parked>, zone: Tz) -> Self {
        Self {
            db,
            cards: Arc::default(),
            tail: Tail::new(),
            hub: Arc::new(Hub::default()),
            bulletin: Arc::default(),
            tokens,
            parked,
            zone,
            freshness,
            committed: CommittedHead::default(),
            listener_generation: AtomicU64::new(0),
            peers: Peers::default(),
            must_ping: AtomicBool::new(false),
            look: Notify::new(),
        }
    }

    /// Asks the relay to look at the table soon.
    pub fn hint(&self) {
        self.look.notify_one();
    }

    /// The newest version that this process's writer has committed in the present history.
    pub fn committed_head(&self) -> i64 {
        self.committed.of(self.bulletin.histories())
    }

    /// Notes what the writer has committed on a basis, before anybody is answered for it.
    pub fn note_committed(&self, basis: Basis, head: i64) {
        self.committed.note(basis.histories, head);
    }

    /// Sessions and profiles for a read of the table; take them before its connection. Nothing cached if that may
    /// have been erased.
    pub fn cards(&self) -> Cards {
        if self.freshness.is_in_touch() { self.cards.cards() } else { Cards::default() }
    }

    /// What this process's cached state is true for now.
    pub fn basis(&self) -> Basis {
        Basis { histories: self.bulletin.histories(), erasures: self.cards.erasures() }
    }

    /// `events`, of which `feeds` tells whose they are.
    fn encode<'a>(
        &self,
        events: impl Iterator<Item = Shown<'a>> + Clone,
        feeds: impl Iterator<Item = FeedKey>,
    ) -> std::result::Result<Vec<Encoded>, serde_json::Error> {
        let json = event::encode(events.clone(), self.zone)?;
        let encoded = events.zip(feeds).zip(json).map(|((event, feed), json)| Encoded {
            version: event.version,
            feed,
            r#type: event.r#type,
            json,
        });
        Ok(encoded.collect())
    }
}

/// What a process takes for true. What was made on another basis is not to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Basis {
    /// What [`Bulletin::histories`] counts: what was committed in an earlier history may be no part
    /// of the present one.
    histories: u64,
    /// What [`Cards::erasures`] knows of: what is remembered from before one may be what it erased.
    erasures: i64,
}

/// What this process's writer committed.
pub struct Committed {
    /// Taken before anything of it was decided.
    pub basis: Basis,
    /// The events as readers are shown them, if it knows.
    pub events: Option<Vec<Event>>,
}

/// The relay of a process.
pub struct Relay {
    pub live: Arc<Live>,
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
            let taken = tokio::select! {
                () = stop.cancelled() => return,
                Some(committed) = self.committed.recv() => self.take(&committed),
                () = self.live.look.notified() => false,
                _ = sweep.tick() => false,
            };
            if taken {
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
                    self.live.db.doubt();
                    if std::mem::replace(&mut answers, false) {
                        tracing::warn!(error = %error, "PostgreSQL does not answer; parked polls wait, other requests are answered 50300 until it does");
                    }
                    // Not at the pace of hints: each of them would start another attempt.
                    sleep(Duration::from_millis(limits::SWEEP_MS / 2)).await;
                }
            }
        }
    }

    /// Takes events that our own writer committed. False when a look at the table is needed.
    fn take(&self, committed: &Committed) -> bool {
        let Some(events) = &committed.events else { return false };
        if committed.basis != self.live.basis() {
            return false;
        }
        let seen_already = events.last().is_some_and(|event| event.version <= self.live.tail.head());
        let encode = || self.live.encode(events.iter().map(Event::shown), events.iter().map(|event| event.feed));
        seen_already || encode().is_ok_and(|encoded| self.add(encoded))
    }

    fn add(&self, events: Vec<Encoded>) -> bool {
        let feeds: HashSet<FeedKey> = events.iter().map(|event| event.feed).collect();
        if !self.live.tail.push(events) {
            return false;
        }
        self.live.hub.wake(feeds);
        true
    }

    async fn look(&self, connection: &mut Option<PgConnection>, pinged: &mut Instant) -> Result<()> {
        let is_new = connection.is_none();
        let connection = match connection {
            Some(connection) => connection,
            None => {
                let mut made = self.live.db.connect(Purpose::Reads).await?;
                self.live.peers.set_relay(read_deadline(appends::backend(&mut made)).await?.pid);
                connection.insert(made)
            }
        };
        read_deadline(self.look_with(connection, is_new)).await?;
        let is_due = pinged.elapsed() >= Duration::from_millis(limits::LISTENER_PING_MS);
        if self.live.must_ping.swap(false, Ordering::AcqRel) || is_due {
            *pinged = Instant::now();
            read_deadline(listener::ping(connection)).await?;
        }
        Ok(())
    }

    async fn look_with(&self, connection: &mut PgConnection, is_new: bool) -> Result<()> {
        let live = &self.live;
        let began = Instant::now();
        // Taken before the query: whatever is in the tail now was committed before it, so a smaller
        // head in its answer means that the database has lost something.
        let tail_head = live.tail.head();
        let state = deadline(limits::RELAY_LOOK_MS, events::store_state(connection)).await?;
        let tail_start = (state.head - limits::TAIL_PRELOAD_EVENTS).max(state.oldest - 1);
        let is_other_history = *live.bulletin.epoch() != *state.epoch || state.head < tail_head;
        // After a failover a store may have revoked as many tokens as before, and others.
        let were_revoked = if is_new || is_other_history {
            live.tokens.begin_generation(connection, state.revocations, &live.parked).await?
        } else {
            live.tokens.catch_up(connection, state.revocations).await?
        };
        if is_other_history {
            if tail_head > 0 {
                tracing::warn!(head = state.head, known = tail_head, epoch = %state.epoch, "the database holds another history than before; readers are told");
            }
            live.db.replace_connections();
            live.cards.clear(state.erasures);
            live.tail.reset(tail_start);
        } else if state.erasures != live.cards.erasures() {
            let sessions = erasures::sessions_since(connection, live.cards.erasures()).await?;
            live.cards.take_erasures(connection, state.erasures, &sessions).await?;
            // What this erased is at or below the head, so whatever else comes into the tail is not.
            live.tail.reset(tail_start);
        }
        // Who reads on from before it is told so by the table (41000).
        live.tail.forget_before(state.oldest);
        // Everything cached is now as the database had it. Before the notices: who is woken by one and finds us
        // out of touch asks the database, and there may be thousands of them.
        live.freshness.note_look(began);
        if is_other_history {
            // After the reset: who reads the new name must not find the old tail.
            live.bulletin.change_history(&state.epoch);
        }
        if were_revoked {
            live.bulletin.count_revocation();
        }
        let cards = live.cards.cards();
        while live.tail.head() < state.head {
            let page = events::read_all(connection, &cards, live.tail.head(), limits::RELAY_SCAN_EVENTS).await?;
            let events = live
                .encode(page.events(), page.feeds())
                .map_err(|error| Error::inconsistent(format!("events cannot be written as JSON: {error}")))?;
            let count = events.len();
            if count == 0 || !self.add(events) {
                return Err(Error::inconsistent(format!(
                    "versions are not dense after {}; was the events table changed by hand?",
                    live.tail.head()
                )));
            }
            metrics::counter!("deskfeed_relay_scanned_events_total").increment(count as u64);
        }
        Ok(())
    }
}

/// Keeps a LISTEN connection and turns what it hears into hints, until `stop`.
pub async fn listen(live: Arc<Live>, stop: CancellationToken) {
    let mut pause = Duration::from_millis(50);
    loop {
        let connected = tokio::select! {
            () = stop.cancelled() => return,
            connected = Listener::connect(&live.db) => connected,
        };
        match connected {
            Ok(mut listener) => {
                pause = Duration::from_millis(50);
                let generation = live.listener_generation.fetch_add(1, Ordering::AcqRel) + 1;
                if generation > 1 {
                    metrics::counter!("deskfeed_listener_reconnects_total").increment(1);
                }
                live.peers.start_listening();
                // What was told before this connection is lost: look. And let the others know that we listen.
                live.must_ping.store(true, Ordering::Release);
                live.hint();
                let error = tokio::select! {
                    () = stop.cancelled() => return,
                    error = hear_all(&live, &mut listener) => error,
                };
                live.peers.stop_listening();
                tracing::warn!(error = %error, "the LISTEN connection is lost; connecting anew (polls go on, at the pace of the sweep)");
            }
            Err(error) => tracing::debug!(error = %error, "no LISTEN connection"),
        }
        // Time-out of the pause is the rule, not an error.
        let _ = timeout(pause, stop.cancelled()).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// Turns notifications into hints until the connection fails.
async fn hear_all(live: &Live, listener: &mut Listener) -> Error {
    loop {
        match listener.hear().await {
            // What our own writer appends it hands over itself, and a head that we have is no news;
            // anything else, even rubbish, is a cause to look.
            Ok((text, pid)) => {
                let is_own = live.peers.hear(pid) == Heard::OurWriter;
                let known = text == "ping" || text.parse::<i64>().is_ok_and(|head| is_own || head <= live.tail.head());
                if !known {
                    live.hint();
                }
            }
            Err(error) => return error,
        }
    }
}
