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
    collections::{BTreeMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono_tz::Tz;
use sqlx::PgConnection;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    bulletin::Bulletin,
    committed::CommittedHead,
    freshness::Freshness,
    hub::Hub,
    parked::Parked,
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
        Error, Result,
        cards::{CardCache, Cards},
        erasures, events,
        listener::Listener,
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
    /// Tells what this process has notified from what others have.
    pub sender: u64,
    /// Asks for a notification without a cause: whoever begins to listen wants to hear one.
    pub must_notify: Notify,
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
            sender: Uuid::new_v4().as_u64_pair().0,
            must_notify: Notify::new(),
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

/// What this process has committed.
pub struct Committed {
    /// Taken before anything of it was decided.
    pub basis: Basis,
    /// The history that it was appended to.
    pub epoch: Arc<str>,
    /// The newest version before it.
    pub head: i64,
    /// The events as readers are shown them, if that is known.
    pub events: Option<Vec<Event>>,
}

/// The relay of a process.
pub struct Relay {
    pub live: Arc<Live>,
    pub committed: mpsc::Receiver<Committed>,
    /// Told when the first look has succeeded.
    pub first_look: Option<oneshot::Sender<()>>,
}

/// When the relay looks at the table.
struct Pace {
    /// `None`: with the next turn of the timer.
    due: Option<Instant>,
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
}

impl Relay {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut connection: Option<PgConnection> = None;
        let mut sweep = interval(Duration::from_millis(limits::SWEEP_MS));
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pace = Pace { due: None, not_before: Instant::now(), ahead: BTreeMap::new() };
        let mut answers = false;
        loop {
            let due = pace.due;
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(committed) = self.committed.recv() => {
                    self.take(committed, &mut pace);
                    continue;
                }
                _ = sweep.tick() => {}
                () = self.live.look.notified() => {
                    pace.want(Instant::now());
                    if pace.due.is_some_and(|due| due > Instant::now()) {
                        continue;
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
            pace.due = None;
            let began = Instant::now();
            let looked = self.look(&mut connection).await;
            pace.not_before = Instant::now() + began.elapsed() * limits::RELAY_REST;
            match looked {
                Ok(()) => {
                    pace.ahead = pace.ahead.split_off(&self.live.tail.head());
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

    /// Takes what this process has committed. What does not follow the tail waits for what is between: another
    /// append of ours, which comes at once, or another process's, for which it takes a look.
    fn take(&self, committed: Committed, pace: &mut Pace) {
        let tail_head = self.live.tail.head();
        // Another history than the one that this process knows: to look is how it gets to know it.
        let is_current = committed.basis == self.live.basis() && committed.epoch == self.live.bulletin.epoch();
        if committed.events.is_none() || !is_current {
            pace.want(Instant::now());
        } else if committed.head > tail_head {
            pace.want(Instant::now() + Duration::from_millis(limits::RELAY_REORDER_MS));
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
            && *next.key() <= self.live.tail.head()
        {
            let committed = next.remove();
            if committed.basis != self.live.basis() || !self.add_committed(&committed, self.live.tail.head()) {
                pace.want(Instant::now());
            }
        }
        if pace.ahead.is_empty() && pace.due.is_some_and(|due| due > Instant::now()) {
            // What it was to look for has come.
            pace.due = None;
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
        let encoded = self.live.encode(new.iter().map(Event::shown), new.iter().map(|event| event.feed));
        encoded.is_ok_and(|encoded| self.add(encoded))
    }

    fn add(&self, events: Vec<Encoded>) -> bool {
        let feeds: HashSet<FeedKey> = events.iter().map(|event| event.feed).collect();
        if !self.live.tail.push(events) {
            return false;
        }
        self.live.hub.wake(feeds);
        true
    }

    async fn look(&self, connection: &mut Option<PgConnection>) -> Result<()> {
        let is_new = connection.is_none();
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(self.live.db.connect(Purpose::Reads).await?),
        };
        read_deadline(self.look_with(connection, is_new)).await
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
        // A promoted standby continues a prefix of the history before; what it shares stays true.
        let has_lost = state.head < tail_head || (is_other_history && state.begins_at <= tail_head);
        // After a failover a store may have revoked as many tokens as before, and others.
        let were_revoked = if is_new || is_other_history {
            live.tokens.begin_generation(connection, state.revocations, &live.parked).await?
        } else {
            live.tokens.catch_up(connection, state.revocations).await?
        };
        if is_other_history {
            if tail_head > 0 {
                tracing::warn!(head = state.head, known = tail_head, begins_at = state.begins_at, epoch = %state.epoch, "the database holds another history than before; readers who are ahead of what was kept are told");
            }
            live.db.replace_connections();
            live.cards.clear(state.erasures);
            if has_lost || tail_head == 0 {
                live.tail.reset(tail_start);
            }
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
                // What was notified before this connection is lost: look. And prove that it hears.
                live.must_notify.notify_one();
                live.hint();
                let error = tokio::select! {
                    () = stop.cancelled() => return,
                    error = hear_all(&live, &mut listener) => error,
                };
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
            // What this process has appended is handed over without a notification, and a head that is in the tail
            // is no news; anything else, even rubbish, is a cause to look.
            Ok(text) => {
                let is_known = text.split_once(' ').is_some_and(|(head, sender)| {
                    let is_own = u64::from_str_radix(sender, 16).is_ok_and(|sender| sender == live.sender);
                    is_own || head.parse::<i64>().is_ok_and(|head| head <= live.tail.head())
                });
                if !is_known {
                    live.hint();
                }
            }
            Err(error) => return error,
        }
    }
}
