//! The queue of requests, and the lanes that append them. See the [module](super) for the states of a request.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::PgConnection;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::yield_now,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::cache::AppendCache;
use crate::{
    clock::Clock,
    desk::{
        SessionReply,
        command::{Command, Reply},
        decide::{self, Answers, Decided, Request, Slot},
        facts::{Fact, Facts},
        ledger::Ledger,
        send_message::Sent,
    },
    domain::{
        caller::Caller,
        event::Profile,
        fault::Fault,
        ids::{MessageId, ProfileKey},
        limits,
        message::NewMessage,
    },
    live::feed::{
        Basis,
        publisher::{Committed, Publisher},
    },
    notices,
    store::{
        self, Error, agents,
        appends::{self, Appended, OpenOutcome, Terms},
        barrier,
        cards::Cards,
        erasures, history, messages,
        pool::{Db, Purpose, deadline},
        sessions,
    },
};

/// A request that waits for its reply.
struct Job {
    request: Request,
    /// Whether it must be decided on facts that are read from now on.
    needs_fresh: bool,
    tries: u32,
    until: Instant,
    reply: Option<oneshot::Sender<Result<Reply, Fault>>>,
}

impl Job {
    fn answer(&mut self, answer: Result<Reply, Fault>) {
        if let Some(reply) = self.reply.take() {
            // A client that went away does not want it.
            let _ = reply.send(answer);
        }
    }

    fn is_open(&self) -> bool {
        self.reply.is_some()
    }
}

/// Where requests leave their work.
#[derive(Clone)]
pub struct Writer {
    jobs: mpsc::Sender<Job>,
}

impl Writer {
    /// Hands work over and waits for its reply. Dropping this future does not undo the work.
    ///
    /// # Errors
    /// What the work itself is answered; 50300 when the queue is full, the service stops, or it was not done in time.
    pub async fn submit(&self, command: Command) -> Result<Reply, Fault> {
        let (reply, answer) = oneshot::channel();
        let job = Job {
            request: Request::new(command),
            needs_fresh: false,
            tries: 0,
            until: Instant::now() + Duration::from_millis(limits::APPEND_WAIT_MS),
            reply: Some(reply),
        };
        self.jobs.try_send(job).map_err(|_| Fault::unavailable("too much is waiting to be written; try again"))?;
        answer.await.map_err(|_| Fault::unavailable("the service is stopping; try again"))?
    }

    /// [`Writer::submit`] for work that is answered with a session.
    ///
    /// # Errors
    /// As [`Writer::submit`].
    pub async fn submit_session(&self, command: Command) -> Result<SessionReply, Fault> {
        match self.submit(command).await? {
            Reply::Session(reply) => Ok(reply),
            other => Err(Fault::internal(format!("a session operation was answered with {other:?}"))),
        }
    }

    /// [`Writer::submit`] for messages.
    ///
    /// # Errors
    /// As [`Writer::submit`].
    pub async fn send(&self, caller: Caller, messages: Vec<NewMessage>) -> Result<Vec<Result<Sent, Fault>>, Fault> {
        match self.submit(Command::Send { caller, messages }).await? {
            Reply::Sent(sent) => Ok(sent),
            other => Err(Fault::internal(format!("a send was answered with {other:?}"))),
        }
    }
}

/// What the lanes of a process share.
struct Shared {
    db: Db,
    publisher: Publisher,
    queue: tokio::sync::Mutex<mpsc::Receiver<Job>>,
    cache: Mutex<AppendCache>,
    /// For the notifier: the newest version that this process has committed.
    heads: watch::Sender<i64>,
}

impl Shared {
    fn cache(&self) -> MutexGuard<'_, AppendCache> {
        // Nothing panics while holding it; if something did, it would still be no more than a cache.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The handle, and the lanes behind it, which must be run. What is committed goes to `publisher` and `heads`.
pub fn lanes(db: Db, publisher: Publisher, heads: watch::Sender<i64>) -> (Writer, Vec<Lane>) {
    let (jobs, queue) = mpsc::channel(limits::WRITER_QUEUE_MAX);
    let queue = tokio::sync::Mutex::new(queue);
    let shared = Arc::new(Shared { db, publisher, queue, cache: Mutex::default(), heads });
    let lanes = (0..limits::APPEND_LANES).map(|position| Lane {
        is_first: position == 0,
        answered: 0,
        shared: Arc::clone(&shared),
        link: None,
        unsettled: Vec::new(),
        waiting: VecDeque::new(),
    });
    (Writer { jobs }, lanes.collect())
}

/// One connection, and one append under way.
pub struct Lane {
    shared: Arc<Shared>,
    link: Option<Link>,
    /// Appends whose outcome nobody waits for any more. They are settled before anything else is appended, so that
    /// none of them happens late.
    unsettled: Vec<Terms>,
    /// Requests that were put off.
    waiting: VecDeque<Job>,
    /// The lane that always works.
    is_first: bool,
    /// How many requests were in its last batch.
    answered: usize,
}

/// A lane's connection.
struct Link {
    connection: PgConnection,
    history: Uuid,
    epoch: Arc<str>,
    /// Taken before the cards.
    basis: Basis,
    /// Taken before the connection was made.
    cards: Cards,
}

/// Why a batch did not go through.
enum Failure {
    /// Nothing of it happened.
    Nothing(Error),
    /// It may have happened.
    Unknown(Error, Terms),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Nothing(error)
    }
}

impl Lane {
    /// Runs until all handles are gone or `stop`, and what was handed over before is done.
    pub async fn run(mut self, stop: CancellationToken) {
        while let Some(batch) = self.gather(&stop).await {
            metrics::histogram!("deskfeed_append_batch_size").record(batch.len() as f64);
            self.work_off(batch).await;
        }
    }

    /// What was put off, and what waits in the queue, up to a limit. `None` at the end.
    async fn gather(&mut self, stop: &CancellationToken) -> Option<Vec<Job>> {
        let shared = Arc::clone(&self.shared);
        let mut batch: Vec<Job> = self.waiting.drain(..).collect();
        // While other processes append, they fill the time between this process's appends: then larger batches are
        // worth more than a second one under way.
        while batch.is_empty() && !self.is_first && shared.cache().is_contended() && !stop.is_cancelled() {
            let _ = timeout(Duration::from_millis(limits::APPEND_CONTENDED_MS), stop.cancelled()).await;
        }
        // The lane that waits for the next request holds the queue: what was put off does not wait for it.
        let mut queue = match shared.queue.try_lock() {
            Ok(queue) => queue,
            Err(_) if !batch.is_empty() => return Some(batch),
            Err(_) => shared.queue.lock().await,
        };
        if batch.is_empty() {
            batch.push(tokio::select! {
                biased;
                job = queue.recv() => job?,
                () = stop.cancelled() => {
                    // Take no more, but finish what is there.
                    queue.close();
                    queue.recv().await?
                }
            });
            // The request that woke this task may run before others that are ready as well: let them come first.
            yield_now().await;
        }
        self.wait_for_the_last(&mut batch, &mut queue).await;
        while batch.len() < limits::APPEND_REQUESTS_MAX
            && let Ok(job) = queue.try_recv()
        {
            batch.push(job);
        }
        Some(batch)
    }

    /// While other processes append, the next append waits for theirs. So the senders that were just answered have
    /// the time to come back, and make it a larger one. For a moment only: they may not come.
    async fn wait_for_the_last(&self, batch: &mut Vec<Job>, queue: &mut mpsc::Receiver<Job>) {
        if self.answered < limits::APPEND_WORTH_WAITING || !self.shared.cache().is_contended() {
            return;
        }
        let wanted = (batch.len() + queue.len() + self.answered * 3 / 4).min(limits::APPEND_REQUESTS_MAX);
        let gathered = async {
            while batch.len() < wanted
                && let Some(job) = queue.recv().await
            {
                batch.push(job);
            }
        };
        // Its end by the time is as good as any other.
        let _ = timeout(Duration::from_millis(limits::APPEND_WAIT_FOR_MORE_MS), gathered).await;
    }

    /// Appends a batch, or halves of it if something in it is refused by the server.
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

    /// Decides and appends a batch; after an outage, tries until its requests are overdue.
    ///
    /// # Errors
    /// When the server refuses what is in the batch.
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
            // Whatever was assumed may have been wrong.
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
        let basis = self.shared.publisher.basis();
        self.leave_other_history(basis);
        self.connect().await?;
        self.settle_left().await?;
        let round = self.round(jobs, basis).await?;
        round.give_to(jobs);
        Ok(())
    }

    /// Drops the connection if the history of `basis` is not the one that it was made in: it may lead to an old
    /// primary, and what is cached to append over it may be of what was lost.
    fn leave_other_history(&mut self, basis: Basis) {
        if self.link.as_ref().is_some_and(|link| !link.basis.is_same_history(basis)) {
            self.link = None;
            self.shared.cache().clear();
        }
    }

    async fn connect(&mut self) -> store::Result<&mut Link> {
        if self.link.is_none() {
            let publisher = &self.shared.publisher;
            let (basis, cards) = (publisher.basis(), publisher.cards());
            let mut connection = self.shared.db.connect(Purpose::Appends).await?;
            let history = deadline(limits::APPEND_ANSWER_MS, appends::begin_history(&mut connection)).await?;
            let epoch: Arc<str> = Arc::from(history::epoch(history));
            // The relay has not seen this history yet, or this server is an old primary.
            let cards = if epoch == publisher.epoch() { cards } else { cards.unshared() };
            self.shared.cache().enter(history);
            self.link = Some(Link { connection, history, epoch, basis, cards });
        }
        self.link.as_mut().ok_or(Error::Away("a lane lost its connection"))
    }

    /// Settles appends that nobody waits for any more.
    async fn settle_left(&mut self) -> store::Result<()> {
        while let Some(terms) = self.unsettled.last().copied() {
            let link = self.connect().await?;
            if deadline(limits::APPEND_ANSWER_MS, appends::settle(&mut link.connection, terms)).await?.is_some() {
                self.shared.publisher.hint();
            }
            self.unsettled.pop();
        }
        Ok(())
    }

    /// Finds out what became of an append, on a new connection, until `until`.
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

    /// Decides, appends, and finds the answers. `basis` was taken before.
    async fn round(&mut self, jobs: &[Job], basis: Basis) -> Result<Round, Failure> {
        let shared = Arc::clone(&self.shared);
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
        let terms = Terms { history: link.history, evidence, known_head: shared.cache().head() };
        let (started, warnings) = (Instant::now(), notices::warnings());
        let appended =
            deadline(limits::APPEND_ANSWER_MS, appends::append(&mut link.connection, terms, &ledger.batch)).await;
        let appended = match appended {
            Ok(Some(_)) if notices::warnings() != warnings => {
                tracing::error!(
                    "PostgreSQL has warned while an append was committed: its wait for a standby may have been cancelled. Nothing is acknowledged before the standby has it; see who cancels statements of deskfeed/appends"
                );
                Err(Error::Away("the wait for a standby was cancelled"))
            }
            appended => appended,
        };
        metrics::histogram!("deskfeed_commit_duration_seconds").record(started.elapsed().as_secs_f64());
        let (appended, is_recovered) = match appended {
            Ok(Some(appended)) => (appended, false),
            // A new history began on this very server, or by hand.
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
        let versions = ledger.batch.versions(appended.head, &appended.sessions);
        let cards = self.cards(&appended).await;
        let profile = |key| cards.as_ref().and_then(|cards| cards.profile(key));
        publish(&shared, &ledger, &appended, &versions, (basis, epoch), profile, is_recovered);
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

    /// What is known of everything that the jobs are about: from the cache, and where that knows nothing, or
    /// is not to be believed, from the database.
    async fn facts(&mut self, jobs: &[Job]) -> store::Result<Facts> {
        let mut facts = Facts { now: Clock.now(), ..Facts::default() };
        let (mut sessions, mut agents, mut ids) = (HashSet::new(), HashSet::new(), HashSet::new());
        {
            let cache = self.shared.cache();
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
        deadline(limits::APPEND_ANSWER_MS, read(&mut link.connection, &mut facts, &sessions, &agents, &ids)).await?;
        let mut cache = self.shared.cache();
        cache.add_agents(
            agents.iter().filter_map(|id| facts.agents.get_key_value(*id)).map(|(id, key)| (id.clone(), *key)),
        );
        let read = sessions.iter().filter_map(|id| facts.sessions.get(*id)).filter_map(|fact| fact.found.clone());
        cache.add(facts.head, read);
        Ok(facts)
    }

    /// The profiles that the events of an append show; where they cannot be read, the relay does.
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
}

/// Tells the relay, other processes and the cache what is committed. The relay may be busy: then it will see for
/// itself.
fn publish(
    shared: &Shared,
    ledger: &Ledger<'_>,
    appended: &Appended,
    versions: &[Option<i64>],
    (basis, epoch): (Basis, Arc<str>),
    profile: impl Fn(ProfileKey) -> Option<Arc<Profile>> + Copy,
    is_recovered: bool,
) {
    let (head, last) = (appended.head, appended.last);
    // Not what is perhaps lost: another lane may append in the new history already.
    if shared.publisher.basis().is_same_history(basis) {
        remember(&mut shared.cache(), ledger, appended, profile, is_recovered);
    }
    if last == head {
        return;
    }
    metrics::counter!("deskfeed_append_events_total").increment(u64::try_from(last - head).unwrap_or(0));
    shared.heads.send_modify(|newest| *newest = (*newest).max(last));
    let events = if is_recovered { None } else { ledger.shown(appended, versions, profile) };
    shared.publisher.publish(Committed { basis, epoch, head, events }, last);
}

/// The answers that one append gives.
#[derive(Default)]
struct Round {
    messages: Vec<(usize, Answers)>,
    replies: Vec<(usize, Result<Reply, Fault>)>,
    /// Those to be decided again on fresh facts.
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

async fn read(
    connection: &mut PgConnection,
    facts: &mut Facts,
    wanted: &HashSet<&str>,
    agent_ids: &HashSet<&str>,
    ids: &HashSet<&MessageId>,
) -> store::Result<()> {
    if !agent_ids.is_empty() {
        let ids: Vec<&str> = agent_ids.iter().copied().collect();
        facts.agents.extend(agents::find_agents(connection, &ids).await?);
    }
    if wanted.is_empty() && ids.is_empty() {
        return Ok(());
    }
    // Before the Ids are looked for: an Id that was made of a version up to this head is found then.
    let session_ids: Vec<&str> = wanted.iter().copied().collect();
    let snapshot = sessions::find(connection, &session_ids).await?;
    facts.head = snapshot.head;
    let mut found = snapshot.sessions;
    for session_id in wanted {
        let fact = Fact { found: found.remove(*session_id), seq_version: snapshot.head, is_fresh: true };
        facts.sessions.insert((*session_id).to_owned(), fact);
    }
    if !ids.is_empty() {
        let given: Vec<&MessageId> = ids.iter().copied().collect();
        facts.kept = messages::find_kept(connection, &given).await?;
        facts.looked_for = ids.iter().map(|id| (*id).clone()).collect();
        let blank = facts.kept.iter().filter(|(_, kept)| kept.content == kept.content_type.erased());
        let (blank, in_sessions): (Vec<&MessageId>, HashSet<i64>) =
            blank.map(|(id, kept)| (id, kept.session.0)).unzip();
        if !blank.is_empty() {
            let in_sessions: Vec<i64> = in_sessions.into_iter().collect();
            facts.erased = erasures::find_erased(connection, &in_sessions, &blank).await?;
        }
    }
    Ok(())
}

/// Notes in the cache what an append has left.
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

/// A number that no other append has.
fn evidence() -> Result<i64, getrandom::Error> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)?;
    Ok(i64::from_le_bytes(bytes))
}
