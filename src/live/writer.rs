//! Group commit. Requests that append hand their work to one task per process, which commits many
//! of them in one transaction and answers each after the commit. There is no timer: while one
//! transaction commits, the next batch gathers, so batches grow with the load and a lone request
//! waits for nobody.
//!
//! **When the database fails.** Before the commit was sent, nothing happened: the batch is tried
//! again on a new connection. A failure that is not the connection's is some request's own: each is
//! tried alone, and the one that fails alone is answered 50000. When the commit itself (or the one
//! call that appends and commits) is not answered, the database is asked what became of the
//! transaction; if that cannot be found out in time, all are answered 50300, and those who repeat
//! with the same ids get the truth.
//!
//! The task owns the transaction. A client that goes away changes nothing.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    feed::{Basis, publisher::Publisher},
    peers::Peers,
};
use crate::{
    desk::{
        SessionReply,
        batch::{self, Command, Decision, Reply},
        known::Known,
        send_message::{Send, Sent},
    },
    domain::{fault::Fault, limits},
    store::{
        self,
        appends::{self, Backend, Outcome, Proof},
        events,
        pool::{Db, Purpose, deadline, read_deadline},
    },
};

struct Job {
    command: Command,
    reply: oneshot::Sender<Result<Reply, Fault>>,
}

/// Where requests leave their work.
#[derive(Clone)]
pub struct Writer {
    jobs: mpsc::Sender<Job>,
}

impl Writer {
    /// The handle and its worker, which must be run.
    pub fn new(db: Db, publisher: Publisher, peers: Arc<Peers>) -> (Self, WriterTask) {
        let (jobs, queue) = mpsc::channel(limits::WRITER_QUEUE_MAX);
        (Self { jobs }, WriterTask { db, publisher, peers, queue, link: None, known: None })
    }

    /// Hands work over and waits for its answer. Dropping this future does not undo the work.
    ///
    /// # Errors
    /// What the work itself is answered; 50300 when the queue is full or the service stops.
    pub async fn submit(&self, command: Command) -> Result<Reply, Fault> {
        let (reply, answer) = oneshot::channel();
        self.jobs
            .try_send(Job { command, reply })
            .map_err(|_| Fault::unavailable("too much is waiting to be written; try again"))?;
        answer.await.map_err(|_| Fault::unavailable("the service is stopping; try again"))?
    }

    /// [`Writer::submit`] for work that answers with a session.
    ///
    /// # Errors
    /// As [`Writer::submit`].
    pub async fn submit_session(&self, command: Command) -> Result<SessionReply, Fault> {
        match self.submit(command).await? {
            Reply::Session(reply) => Ok(reply),
            other => Err(Fault::internal(format!("the writer answered a session operation with {other:?}"))),
        }
    }

    /// [`Writer::submit`] for messages.
    ///
    /// # Errors
    /// As [`Writer::submit`].
    pub async fn send(&self, send: Send) -> Result<Vec<Result<Sent, Fault>>, Fault> {
        match self.submit(Command::Send(send)).await? {
            Reply::Sent(sent) => Ok(sent),
            other => Err(Fault::internal(format!("the writer answered a send with {other:?}"))),
        }
    }
}

/// The worker.
pub struct WriterTask {
    db: Db,
    publisher: Publisher,
    peers: Arc<Peers>,
    queue: mpsc::Receiver<Job>,
    link: Option<Link>,
    /// The store as our last append over this link left it.
    known: Option<Known>,
}

/// The writer's connection.
struct Link {
    connection: PgConnection,
    backend: Backend,
}

/// Why a batch did not go through.
enum BatchError<'a> {
    /// Nothing of it happened.
    BeforeCommit(store::Error),
    /// It may have happened.
    AtCommit(store::Error, Box<Unanswered<'a>>),
}

impl From<store::Error> for BatchError<'_> {
    fn from(error: store::Error) -> Self {
        Self::BeforeCommit(error)
    }
}

/// A batch whose commit was not answered.
struct Unanswered<'a> {
    decision: Decision<'a>,
    backend: Backend,
    basis: Basis,
    epoch: Arc<str>,
}

impl WriterTask {
    /// Runs until all handles are gone or `stop`, and what was handed over before is done.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let first = tokio::select! {
                biased;
                job = self.queue.recv() => job,
                () = stop.cancelled() => {
                    // Take no more, but finish what is there.
                    self.queue.close();
                    self.queue.recv().await
                }
            };
            let Some(first) = first else { return };
            let batch = self.gather(first);
            metrics::histogram!("deskfeed_append_batch_size").record(batch.len() as f64);
            self.work_off(batch).await;
        }
    }

    /// What waits already, up to a limit.
    fn gather(&mut self, first: Job) -> Vec<Job> {
        let (mut messages, mut bytes) = (0, 0);
        let mut batch = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next {
            if let Command::Send(send) = &job.command {
                messages += send.messages.len();
                bytes += send.messages.iter().map(|message| message.content.len()).sum::<usize>();
            } else {
                messages += 1;
            }
            batch.push(job);
            let full = messages >= limits::WRITER_BATCH_MESSAGES_MAX || bytes >= limits::WRITER_BATCH_BYTES_MAX;
            next = if full { None } else { self.queue.try_recv().ok() };
        }
        batch
    }

    async fn work_off(&mut self, batch: Vec<Job>) {
        let (commands, answers): (Vec<Command>, Vec<_>) = batch.into_iter().map(|job| (job.command, job.reply)).unzip();
        let commands: Vec<&Command> = commands.iter().collect();
        let replies = match self.commit(&commands).await {
            Ok(replies) => replies,
            // Some request's own fault, but whose? Each alone.
            Err(error) if !error.is_outage() && commands.len() > 1 => {
                tracing::warn!(error = %error, requests = commands.len(), "a batch failed; trying its requests one by one");
                let mut replies = Vec::with_capacity(commands.len());
                for command in commands {
                    replies.push(match self.commit(&[command]).await {
                        Ok(mut alone) => {
                            alone.pop().unwrap_or_else(|| Err(Fault::internal("a request without a reply")))
                        }
                        Err(error) => Err(error.into()),
                    });
                }
                replies
            }
            Err(error) => {
                let reason = error.to_string();
                tracing::warn!(error = %error, requests = commands.len(), "a batch failed");
                let is_outage = error.is_outage();
                commands
                    .iter()
                    .map(|_| {
                        if is_outage {
                            Err(Fault::unavailable("PostgreSQL cannot be reached; try again with the same ids"))
                        } else {
                            Err(Fault::internal(reason.clone()))
                        }
                    })
                    .collect()
            }
        };
        for (answer, reply) in answers.into_iter().zip(replies) {
            // A client that went away does not want it.
            let _ = answer.send(reply);
        }
    }

    /// Commits `commands` together; after an outage, tries for a while.
    async fn commit(&mut self, commands: &[&Command]) -> store::Result<Vec<Result<Reply, Fault>>> {
        let started = Instant::now();
        loop {
            let mut patience = Duration::from_millis(limits::COMMIT_MS) / 3;
            let error = match self.try_commit(commands).await {
                Ok(replies) => return Ok(replies),
                Err(BatchError::BeforeCommit(error)) => error,
                Err(BatchError::AtCommit(error, unanswered)) => {
                    self.link = None;
                    metrics::counter!("deskfeed_unknown_commits_total").increment(1);
                    match self.find_outcome(&unanswered).await {
                        Outcome::Committed(appended_at) => {
                            let Unanswered { decision, basis, .. } = *unanswered;
                            return Ok(self.hand_over(decision, basis, appended_at));
                        }
                        // To know this may have taken a while; it is worth another try.
                        Outcome::Aborted => {
                            patience = Duration::from_millis(limits::COMMIT_MS);
                            error
                        }
                        Outcome::Unknown => {
                            return Err(store::Error::UnknownOutcome(Box::new(error)));
                        }
                    }
                }
            };
            self.known = None;
            if error.is_outage() {
                self.link = None;
            }
            if !error.is_outage() || started.elapsed() >= patience {
                return Err(error);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Tells the relay what is committed, and gives the answers. The relay may be busy: then it will
    /// see for itself.
    fn hand_over(&self, decision: Decision<'_>, basis: Basis, appended_at: DateTime<Utc>) -> Vec<Result<Reply, Fault>> {
        if let Some((first, last)) = decision.ledger.versions() {
            metrics::counter!("deskfeed_append_events_total").increment(u64::try_from(last - first + 1).unwrap_or(0));
            self.publisher.publish(basis, last, decision.ledger.shown(appended_at));
        }
        decision.replies(appended_at)
    }

    async fn try_commit<'a>(&mut self, commands: &[&'a Command]) -> Result<Vec<Result<Reply, Fault>>, BatchError<'a>> {
        let basis = self.publisher.basis();
        if self.link.is_none() {
            self.known = None;
            let mut connection = self.db.connect(Purpose::Appends).await?;
            let backend = deadline(limits::DB_ACQUIRE_MS, appends::backend(&mut connection)).await?;
            self.peers.set_writer(backend.pid);
            self.link = Some(Link { connection, backend });
        }
        if let Some(replies) = self.append_at_once(commands, basis).await? {
            return Ok(replies);
        }
        self.append_under_lock(commands, basis).await
    }

    /// In one round trip, if what we remember reaches and still holds. None: nothing was done.
    async fn append_at_once<'a>(
        &mut self,
        commands: &[&'a Command],
        basis: Basis,
    ) -> Result<Option<Vec<Result<Reply, Fault>>>, BatchError<'a>> {
        let (epoch, peers, cards) = (self.publisher.epoch(), Arc::clone(&self.peers), self.publisher.cards());
        let (Some(link), Some(known)) = (&mut self.link, self.known.as_mut().filter(|known| known.is_trusted)) else {
            return Ok(None);
        };
        let assumed = batch::assume(&mut link.connection, &cards, known, commands);
        // With nothing to append, nothing would check that what was assumed still holds.
        let Some(mut decision) =
            deadline(limits::COMMIT_MS, assumed).await?.filter(|decision| !decision.ledger.is_empty())
        else {
            return Ok(None);
        };
        let started = Instant::now();
        let written = read_deadline(decision.ledger.write(&mut link.connection, peers.may_be_there())).await;
        metrics::histogram!("deskfeed_commit_duration_seconds").record(started.elapsed().as_secs_f64());
        match written {
            Ok(Some(appended_at)) => {
                self.known = Known::after(self.known.take(), None, &mut decision);
                Ok(Some(self.hand_over(decision, basis, appended_at)))
            }
            Ok(None) => {
                metrics::counter!("deskfeed_append_misses_total").increment(1);
                Ok(None)
            }
            Err(error) if appends::is_refusal(&error) => Err(BatchError::BeforeCommit(error)),
            Err(error) => Err(unanswered(epoch, error, decision, link.backend, basis)),
        }
    }

    /// Under the append lock, which makes what is read true until the commit.
    async fn append_under_lock<'a>(
        &mut self,
        commands: &[&'a Command],
        basis: Basis,
    ) -> Result<Vec<Result<Reply, Fault>>, BatchError<'a>> {
        let (epoch, peers, cards) = (self.publisher.epoch(), Arc::clone(&self.peers), self.publisher.cards());
        let Some(link) = &mut self.link else { return Err(store::Error::Away("the writer has no connection").into()) };
        let connection = &mut link.connection;
        let written = deadline(limits::COMMIT_MS, async {
            let (decision, standing) = batch::decide(connection, &cards, commands).await?;
            let appended_at = if decision.ledger.is_empty() {
                None
            } else {
                decision.ledger.write(connection, peers.may_be_there()).await?
            };
            match appended_at {
                None if !decision.ledger.is_empty() => {
                    Err(store::Error::inconsistent("the newest version has changed under the append lock"))
                }
                _ => Ok((decision, standing, appended_at.unwrap_or_default())),
            }
        })
        .await;
        let (mut decision, standing, appended_at) = match written {
            Ok(written) => written,
            Err(error) => {
                if deadline(limits::DB_ACQUIRE_MS, appends::roll_back(connection)).await.is_err() {
                    self.link = None;
                }
                return Err(BatchError::BeforeCommit(error));
            }
        };
        let started = Instant::now();
        let ended = deadline(limits::COMMIT_MS, appends::commit(connection)).await;
        metrics::histogram!("deskfeed_commit_duration_seconds").record(started.elapsed().as_secs_f64());
        match ended {
            Ok(()) => {
                self.known = Known::after(self.known.take(), Some(&standing), &mut decision);
                Ok(self.hand_over(decision, basis, appended_at))
            }
            Err(error) => Err(unanswered(epoch, error, decision, link.backend, basis)),
        }
    }

    /// Asks what became of a batch, until it is known or asking makes no sense any more.
    async fn find_outcome(&mut self, unanswered: &Unanswered<'_>) -> Outcome {
        let Some(proof) = unanswered.decision.ledger.proof() else { return Outcome::Unknown };
        let until = Instant::now() + Duration::from_millis(limits::COMMIT_MS);
        while Instant::now() < until {
            let asked = deadline(limits::DB_ACQUIRE_MS, ask(&self.db, unanswered, &proof)).await;
            match asked {
                Ok(Outcome::Unknown) | Err(_) => sleep(Duration::from_millis(100)).await,
                Ok(outcome) => return outcome,
            }
        }
        Outcome::Unknown
    }
}

fn unanswered(
    epoch: Arc<str>,
    error: store::Error,
    decision: Decision<'_>,
    backend: Backend,
    basis: Basis,
) -> BatchError<'_> {
    BatchError::AtCommit(error, Box::new(Unanswered { decision, backend, basis, epoch }))
}

async fn ask(db: &Db, unanswered: &Unanswered<'_>, proof: &Proof) -> store::Result<Outcome> {
    let mut connection = db.connect(Purpose::Appends).await?;
    // Versions mean something within one history only.
    if events::store_state(&mut connection).await?.epoch != *unanswered.epoch {
        return Ok(Outcome::Unknown);
    }
    appends::outcome(&mut connection, unanswered.backend, proof).await
}
