//! The lane: takes queued requests and appends them. See the [module](super) for the states of a request.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use sqlx::PgConnection;
use tokio::{
    sync::{mpsc, watch},
    task::yield_now,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    cache::AppendCache,
    lookup,
    writer::{Job, Writer},
};
use crate::{
    clock::Clock,
    desk::{
        command::{Command, Reply},
        decide::{self, Answers, Decided, Slot},
        facts::Facts,
        ledger::Ledger,
    },
    domain::{event::Profile, fault::Fault, ids::ProfileKey, limits},
    live::feed::{
        Basis,
        publisher::{Committed, Publisher},
    },
    notices,
    store::{
        self, Error,
        appends::{self, Appended, OpenOutcome, Terms},
        barrier,
        cards::Cards,
        history,
        pool::{Db, Purpose, deadline},
    },
};

/// Returns the handle, and the lane to run. Commits are reported to `publisher` and `heads`.
pub fn lane(db: Db, publisher: Publisher, heads: watch::Sender<i64>) -> (Writer, Lane) {
    let (jobs, queue) = mpsc::channel(limits::WRITER_QUEUE_MAX);
    let lane = Lane {
        db,
        publisher,
        cache: AppendCache::default(),
        heads,
        queue,
        link: None,
        unsettled: Vec::new(),
        waiting: VecDeque::new(),
        answered: 0,
    };
    (Writer { jobs }, lane)
}

/// A connection, and at most one append in flight.
pub struct Lane {
    db: Db,
    publisher: Publisher,
    cache: AppendCache,
    /// The newest version that this process has committed, for the notifier.
    heads: watch::Sender<i64>,
    queue: mpsc::Receiver<Job>,
    link: Option<Link>,
    /// Appends with an unknown outcome that nobody waits for any more. They are settled before the next append, so that
    /// none of them is committed late.
    unsettled: Vec<Terms>,
    /// Deferred requests.
    waiting: VecDeque<Job>,
    /// How many requests were in its last batch.
    answered: usize,
}

/// A lane's connection.
struct Link {
    connection: PgConnection,
    history: Uuid,
    epoch: Arc<str>,
    /// Read before the cards.
    basis: Basis,
    /// Read before connecting.
    cards: Cards,
}

/// Why a batch failed.
enum Failure {
    /// Nothing was committed.
    Nothing(Error),
    /// It may have been committed.
    Unknown(Error, Terms),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Nothing(error)
    }
}

impl Lane {
    /// Runs until all handles are dropped or `stop`; finishes what was submitted before.
    pub async fn run(mut self, stop: CancellationToken) {
        while let Some(batch) = self.gather(&stop).await {
            metrics::histogram!("deskfeed_append_batch_size").record(batch.len() as f64);
            self.work_off(batch).await;
        }
    }

    /// Takes deferred and queued requests, up to a limit. `None` at the end.
    async fn gather(&mut self, stop: &CancellationToken) -> Option<Vec<Job>> {
        let mut batch: Vec<Job> = self.waiting.drain(..).collect();
        if batch.is_empty() {
            batch.push(tokio::select! {
                biased;
                job = self.queue.recv() => job?,
                () = stop.cancelled() => {
                    // Accept nothing more, but finish what is there.
                    self.queue.close();
                    self.queue.recv().await?
                }
            });
            // The request that woke this task may have run before others that are ready as well: let them submit.
            yield_now().await;
        }
        self.wait_for_more(&mut batch).await;
        while batch.len() < limits::APPEND_REQUESTS_MAX
            && let Ok(job) = self.queue.try_recv()
        {
            batch.push(job);
        }
        Some(batch)
    }

    /// While other processes append, this append would wait for theirs in any case. So the senders that were just
    /// answered get the time to come back, which makes the batch larger and the appends fewer. They may not come, so
    /// the wait is short.
    async fn wait_for_more(&mut self, batch: &mut Vec<Job>) {
        if self.answered < limits::APPEND_WORTH_WAITING || !self.cache.is_contended() {
            return;
        }
        let wanted = (batch.len() + self.queue.len() + self.answered * 3 / 4).min(limits::APPEND_REQUESTS_MAX);
        let gathered = async {
            while batch.len() < wanted
                && let Some(job) = self.queue.recv().await
            {
                batch.push(job);
            }
        };
        // A timeout is as good an end as any.
        let _ = timeout(Duration::from_millis(limits::APPEND_WAIT_FOR_MORE_MS), gathered).await;
    }

    /// Appends a batch; if the server refuses it, splits it in half and tries again.
    async fn work_off(&mut self, batch: Vec<Job>) {
        self.answered = batch.len();
        let mut parts = vec![batch];
        while let Some(mut part) = parts.pop() {
            let Err(error) = self.append(&mut part).await else {
                self.waiting.extend(part.into_iter().filter(Job::is_open));
                continue;
            };
            part.retain(Job::is_open);
            if part.len() > 1 {
                tracing::warn!(error = %error, requests = part.len(), "the server refused a batch; trying halves of it");
                let rest = part.split_off(part.len() / 2);
                parts.extend([rest, part]);
            } else if let Some(mut job) = part.pop() {
                tracing::error!(error = %error, "the server refused a request");
                job.answer(Err(Fault::internal(error)));
            }
        }
    }

    /// Decides and appends a batch; during an outage, retries until its requests are overdue.
    ///
    /// # Errors
    /// When the server refuses something in the batch.
    async fn append(&mut self, jobs: &mut [Job]) -> Result<(), Error> {
        loop {
            let error = match self.try_append(jobs).await {
                Ok(()) => return Ok(()),
                Err(Failure::Nothing(error)) if !error.is_outage() => return Err(error),
                Err(Failure::Nothing(error)) => {
                    self.link = None;
                    error
                }
                Err(Failure::Unknown(error, terms)) => {
                    self.unsettled.push(terms);
                    self.link = None;
                    error
                }
            };
            // Any cached assumption may have been wrong.
            for job in jobs.iter_mut().filter(|job| job.is_open()) {
                job.needs_fresh = true;
                if Instant::now() >= job.until {
                    job.answer(Err(Fault::Unavailable {
                        reason: "PostgreSQL cannot be reached, or waits for a standby; try again with the same ids",
                        source: None,
                    }));
                }
            }
            if !jobs.iter().any(Job::is_open) {
                tracing::warn!(error = %error, requests = jobs.len(), "requests were not appended in time");
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn try_append(&mut self, jobs: &mut [Job]) -> Result<(), Failure> {
        let basis = self.publisher.basis();
        self.leave_other_history(basis);
        self.connect().await?;
        self.settle_left().await?;
        let round = self.round(jobs, basis).await?;
        round.give_to(jobs);
        Ok(())
    }

    /// Drops the connection if it was made in another history than that of `basis`: it may lead to an old primary,
    /// and the cache may hold state that was lost.
    fn leave_other_history(&mut self, basis: Basis) {
        if self.link.as_ref().is_some_and(|link| !link.basis.is_same_history(basis)) {
            self.link = None;
            self.cache.clear();
        }
    }

    async fn connect(&mut self) -> store::Result<&mut Link> {
        if self.link.is_none() {
            let publisher = &self.publisher;
            let (basis, cards) = (publisher.basis(), publisher.cards());
            let mut connection = self.db.connect(Purpose::Appends).await?;
            let history = deadline(limits::APPEND_ANSWER_MS, appends::begin_history(&mut connection)).await?;
            let epoch: Arc<str> = Arc::from(history::epoch(history));
            // If they differ, the relay has not seen this history yet, or this server is an old primary.
            let cards = if epoch == publisher.epoch() { cards } else { cards.unshared() };
            self.cache.enter(history);
            self.link = Some(Link { connection, history, epoch, basis, cards });
        }
        self.link.as_mut().ok_or(Error::Away("a lane lost its connection"))
    }

    /// Settles earlier appends whose outcome is still unknown.
    async fn settle_left(&mut self) -> store::Result<()> {
        while let Some(terms) = self.unsettled.last().copied() {
            let link = self.connect().await?;
            if deadline(limits::APPEND_ANSWER_MS, appends::settle(&mut link.connection, terms)).await?.is_some() {
                self.publisher.hint();
            }
            self.unsettled.pop();
        }
        Ok(())
    }

    /// Settles an append on a new connection, retrying until `until`.
    async fn settle(&mut self, terms: Terms, until: Instant) -> store::Result<Option<appends::Found>> {
        loop {
            self.link = None;
            let settled = match self.connect().await {
                Ok(link) => deadline(limits::APPEND_ANSWER_MS, appends::settle(&mut link.connection, terms)).await,
                Err(error) => Err(error),
            };
            match settled {
                Err(error) if error.is_outage() && Instant::now() < until => {
                    tracing::debug!(error = %error, "what became of an append is not known yet");
                    sleep(Duration::from_millis(50)).await;
                }
                settled => return settled,
            }
        }
    }

    /// Decides and appends a batch and collects the answers. `basis` was read before.
    async fn round(&mut self, jobs: &[Job], basis: Basis) -> Result<Round, Failure> {
        let facts = self.facts(jobs).await?;
        let mut ledger = Ledger::default();
        let mut round = Round::default();
        let mut slots: Vec<(usize, Slot)> = Vec::new();
        for (position, job) in jobs.iter().enumerate().filter(|(_, job)| job.is_open()) {
            let (decided, messages) = job.request.decide(&facts, &mut ledger);
            round.messages.push((position, messages));
            match decided {
                Decided::Reply(reply) => round.replies.push((position, reply)),
                Decided::Written(slot) => slots.push((position, slot)),
                Decided::AskAgain => round.asks.push(position),
                Decided::Later => {}
            }
        }
        let Some(link) = &mut self.link else { return Err(Error::Away("a lane lost its connection").into()) };
        if ledger.batch.is_empty() {
            if !round.is_empty() {
                deadline(limits::APPEND_ANSWER_MS, barrier::barrier(&mut link.connection)).await?;
            }
            return Ok(round);
        }
        let evidence = evidence().map_err(|_| Error::Away("the system has no random numbers to give"))?;
        let epoch = Arc::clone(&link.epoch);
        let terms = Terms { history: link.history, evidence, known_head: self.cache.head() };
        let (started, warnings) = (Instant::now(), notices::warnings());
        let appended =
            deadline(limits::APPEND_ANSWER_MS, appends::append(&mut link.connection, terms, &ledger.batch)).await;
        let appended = match appended {
            Ok(Some(_)) if notices::warnings() != warnings => {
                tracing::error!(
                    "PostgreSQL sent a warning while an append was committing: its wait for a standby may have been cancelled. It is not acknowledged before the standby has it; find out who cancels statements of deskfeed/appends"
                );
                Err(Error::Away("the wait for a standby was cancelled"))
            }
            appended => appended,
        };
        metrics::histogram!("deskfeed_commit_duration_seconds").record(started.elapsed().as_secs_f64());
        let (appended, is_recovered) = match appended {
            Ok(Some(appended)) => (appended, false),
            // A new history began on this server, or by hand.
            Ok(None) => {
                self.link = None;
                return Err(Error::Away("another history began").into());
            }
            Err(error) if appends::rules_out_commit(&error) => return Err(error.into()),
            Err(error) => {
                metrics::counter!("deskfeed_unknown_commits_total").increment(1);
                tracing::warn!(error = %error, "an append was not answered; finding out what became of it");
                let until = jobs.iter().filter(|job| job.is_open()).map(|job| job.until).max().unwrap_or(started);
                match self.settle(terms, until).await {
                    Ok(Some(found)) => (decide::recovered(&ledger, &found), true),
                    Ok(None) => return Err(Error::Away("an append did not reach PostgreSQL").into()),
                    Err(unknown) => return Err(Failure::Unknown(unknown, terms)),
                }
            }
        };
        // Answers to repetitions rely on the commit of this append; without events it may have written nothing.
        if appended.last == appended.head && !round.is_empty() {
            let link = self.connect().await?;
            deadline(limits::APPEND_ANSWER_MS, barrier::barrier(&mut link.connection)).await?;
        }
        let versions = ledger.batch.versions(appended.head, &appended.sessions);
        let cards = self.cards(&appended).await;
        let profile = |key| cards.as_ref().and_then(|cards| cards.profile(key));
        self.publish(&ledger, &appended, &versions, (basis, epoch), profile, is_recovered);
        for (position, slot) in slots {
            let request = &jobs[position].request;
            if let Slot::Messages { slots, asks } = &slot {
                let sent = request.sent(slots, &ledger, &appended, &versions);
                if *asks || sent.len() < slots.len() {
                    round.asks.push(position);
                }
                round.messages.push((position, sent));
                continue;
            }
            let agent_id = |open: &OpenOutcome| match open {
                OpenOutcome::Assigned { profile: key, .. } => profile(*key).map(|profile| profile.agent_id.clone()),
                _ => None,
            };
            match request.reply(&slot, &ledger, &appended, &versions, agent_id) {
                Some(reply) => round.replies.push((position, reply)),
                None => round.asks.push(position),
            }
        }
        Ok(round)
    }

    /// Collects the facts about everything that the jobs concern: from the cache, or from the database if an entry is
    /// missing or a job needs fresh facts.
    async fn facts(&mut self, jobs: &[Job]) -> store::Result<Facts> {
        let mut facts = Facts { now: Clock.now(), ..Facts::default() };
        let (mut sessions, mut agents, mut ids) = (HashSet::new(), HashSet::new(), HashSet::new());
        {
            let cache = &self.cache;
            facts.head = cache.head();
            for job in jobs.iter().filter(|job| job.is_open()) {
                let command = &job.request.command;
                for session_id in command.session_ids() {
                    if job.needs_fresh {
                        facts.sessions.remove(session_id);
                        sessions.insert(session_id);
                    } else if !sessions.contains(session_id) && !facts.sessions.contains_key(session_id) {
                        match cache.session(session_id) {
                            Some(fact) => drop(facts.sessions.insert(session_id.to_owned(), fact)),
                            None => drop(sessions.insert(session_id)),
                        }
                    }
                }
                if let Some(id) = command.agent_id() {
                    match cache.agent(id) {
                        Some(key) => drop(facts.agents.insert(id.to_owned(), key)),
                        None => drop(agents.insert(id)),
                    }
                }
                if let Command::Send { messages, .. } = command
                    && job.needs_fresh
                {
                    ids.extend(messages.iter().filter_map(|message| message.id.as_ref()));
                }
            }
        }
        let link = self.connect().await?;
        deadline(limits::APPEND_ANSWER_MS, lookup::read(&mut link.connection, &mut facts, &sessions, &agents, &ids))
            .await?;
        let cache = &mut self.cache;
        cache.add_agents(
            agents.iter().filter_map(|id| facts.agents.get_key_value(*id)).map(|(id, key)| (id.clone(), *key)),
        );
        let read = sessions.iter().filter_map(|id| facts.sessions.get(*id)).filter_map(|fact| fact.found.clone());
        cache.add(facts.head, read);
        Ok(facts)
    }

    /// Loads the profiles that the events of an append show. `None` if that fails; then the relay reads the events.
    async fn cards(&mut self, appended: &Appended) -> Option<Cards> {
        let link = self.link.as_mut()?;
        let profiles = Ledger::profiles(appended);
        match deadline(limits::APPEND_ANSWER_MS, link.cards.load(&mut link.connection, &[], &profiles)).await {
            Ok(()) => Some(link.cards.clone()),
            Err(error) => {
                tracing::debug!(error = %error, "profiles were not read");
                self.link = None;
                None
            }
        }
    }

    /// Reports a commit to the relay, the notifier and the cache.
    fn publish(
        &mut self,
        ledger: &Ledger<'_>,
        appended: &Appended,
        versions: &[Option<i64>],
        (basis, epoch): (Basis, Arc<str>),
        profile: impl Fn(ProfileKey) -> Option<Arc<Profile>> + Copy,
        is_recovered: bool,
    ) {
        let (head, last) = (appended.head, appended.last);
        // Not if the relay has met another history meanwhile: there it may be lost.
        if self.publisher.basis().is_same_history(basis) {
            remember(&mut self.cache, ledger, appended, profile, is_recovered);
        }
        if last == head {
            return;
        }
        metrics::counter!("deskfeed_append_events_total").increment(u64::try_from(last - head).unwrap_or(0));
        self.heads.send_modify(|newest| *newest = (*newest).max(last));
        let events = if is_recovered { None } else { ledger.shown(appended, versions, profile) };
        self.publisher.publish(Committed { basis, epoch, head, events }, last);
    }
}

/// The answers that result from one append.
#[derive(Default)]
struct Round {
    messages: Vec<(usize, Answers)>,
    replies: Vec<(usize, Result<Reply, Fault>)>,
    /// Jobs that must be decided again on fresh facts.
    asks: Vec<usize>,
}

impl Round {
    fn is_empty(&self) -> bool {
        self.replies.is_empty() && self.messages.iter().all(|(_, messages)| messages.is_empty())
    }

    fn give_to(self, jobs: &mut [Job]) {
        for (position, messages) in self.messages {
            if let Some(reply) = jobs[position].request.finish(messages) {
                jobs[position].answer(reply);
            }
        }
        for (position, reply) in self.replies {
            jobs[position].answer(reply);
        }
        for position in self.asks {
            let job = &mut jobs[position];
            job.needs_fresh = true;
            job.tries += 1;
            if job.tries > limits::APPEND_TRIES_MAX || Instant::now() >= job.until {
                job.answer(Err(Fault::unavailable("too many others change this session at the moment; try again")));
            }
        }
    }
}

/// Records in the cache how an append left its sessions.
fn remember(
    cache: &mut AppendCache,
    ledger: &Ledger<'_>,
    appended: &Appended,
    profile: impl Fn(ProfileKey) -> Option<Arc<Profile>>,
    is_recovered: bool,
) {
    let touched = ledger.touched(appended, profile);
    cache.forget(touched.changed.iter().map(String::as_str));
    if is_recovered {
        cache.forget(touched.kept.iter().map(|found| found.session.session_id.as_str()));
        cache.appended(appended.head, appended.last, []);
    } else {
        cache.appended(appended.head, appended.last, touched.kept);
    }
}

/// Random number that identifies an append.
fn evidence() -> Result<i64, getrandom::Error> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)?;
    Ok(i64::from_le_bytes(bytes))
}
