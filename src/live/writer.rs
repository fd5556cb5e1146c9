//! Group commit. Requests that append hand their work to one task per process, which commits many
//! of them in one transaction and answers each after the commit. There is no timer: while one
//! transaction commits, the next batch gathers, so batches grow with the load and a lone request
//! waits for nobody.
//!
//! **When the database fails.** Before the commit was sent, nothing happened: the batch is tried
//! again on a new connection. A failure that is not the connection's is some request's own: each is
//! tried alone, and the one that fails alone is answered 50000. When the commit itself is not
//! answered, the database is asked what became of the transaction; if that cannot be found out in
//! time, all are answered 50300, and those who repeat with the same ids get the truth.
//!
//! The task owns the transaction. A client that goes away changes nothing.

use std::{sync::Arc, time::Duration};

use sqlx::PgConnection;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::relay::{Committed, Live};
use crate::{
    desk::{
        SessionReply,
        batch::{self, Command, Reply},
        send_message::{Send, Sent},
    },
    domain::{fault::Fault, limits},
    store::{
        self,
        appends::{self, Outcome, Proof},
        events,
        pool::{Purpose, deadline},
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
    pub fn new(live: Arc<Live>, committed: mpsc::Sender<Committed>) -> (Self, WriterTask) {
        let (jobs, queue) = mpsc::channel(limits::WRITER_QUEUE_MAX);
        (Self { jobs }, WriterTask { live, queue, committed, connection: None })
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
    live: Arc<Live>,
    queue: mpsc::Receiver<Job>,
    committed: mpsc::Sender<Committed>,
    connection: Option<PgConnection>,
}

/// Why a batch did not go through.
enum BatchError {
    /// Nothing of it happened.
    BeforeCommit(sqlx::Error),
    /// It may have happened.
    AtCommit(sqlx::Error, Unanswered),
}

/// A batch whose commit was not answered.
struct Unanswered {
    done: Done,
    transaction_id: String,
    /// None when it appended nothing: then there is nothing to find it by.
    proof: Option<Proof>,
    epoch: Arc<str>,
}

/// A batch that went through.
struct Done {
    replies: Vec<Result<Reply, Fault>>,
    /// None when nothing was appended.
    committed: Option<Committed>,
    /// The newest version; 0 when nothing was appended.
    head: i64,
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
            Err(error) if !store::is_outage(&error) && commands.len() > 1 => {
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
                let is_outage = store::is_outage(&error);
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
    async fn commit(&mut self, commands: &[&Command]) -> Result<Vec<Result<Reply, Fault>>, sqlx::Error> {
        let until = Instant::now() + Duration::from_millis(limits::COMMIT_MS) / 3;
        loop {
            let error = match self.try_commit(commands).await {
                Ok(done) => return Ok(self.hand_over(done)),
                Err(BatchError::BeforeCommit(error)) => error,
                Err(BatchError::AtCommit(error, unanswered)) => {
                    self.connection = None;
                    metrics::counter!("deskfeed_unknown_commits_total").increment(1);
                    match self.find_outcome(&unanswered).await {
                        Outcome::Committed => return Ok(self.hand_over(unanswered.done)),
                        Outcome::Aborted => error,
                        Outcome::Unknown => {
                            return Err(sqlx::Error::Io(std::io::Error::other(format!(
                                "the outcome of a commit is not known: {error}"
                            ))));
                        }
                    }
                }
            };
            if store::is_outage(&error) {
                self.connection = None;
            }
            if !store::is_outage(&error) || Instant::now() >= until {
                return Err(error);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Tells the relay. It may be busy: then it will see for itself.
    fn hand_over(&self, done: Done) -> Vec<Result<Reply, Fault>> {
        self.live.note_committed(done.head);
        if let Some(committed) = done.committed
            && self.committed.try_send(committed).is_err()
        {
            self.live.hint();
        }
        done.replies
    }

    async fn try_commit(&mut self, commands: &[&Command]) -> Result<Done, BatchError> {
        let live = Arc::clone(&self.live);
        let histories = live.bulletin.histories();
        let connection = match self.connection.as_mut() {
            Some(connection) => connection,
            None => {
                let new = live.db.connect(Purpose::Appends).await.map_err(BatchError::BeforeCommit)?;
                self.connection.insert(new)
            }
        };
        let written = deadline(limits::COMMIT_MS, batch::write(connection, &live.cards, commands)).await;
        let (ledger, replies) = match written {
            Ok(written) => written,
            Err(error) => {
                let rolled_back = deadline(limits::DB_ACQUIRE_MS, appends::roll_back(connection)).await;
                if rolled_back.is_err() {
                    self.connection = None;
                }
                return Err(BatchError::BeforeCommit(error));
            }
        };
        let appended = ledger.versions();
        let committed = appended.map(|_| Committed { histories, events: ledger.shown(&live.cards) });
        if let Some((first, last)) = appended {
            metrics::counter!("deskfeed_append_events_total").increment(u64::try_from(last - first + 1).unwrap_or(0));
        }
        let started = Instant::now();
        let ended = deadline(limits::COMMIT_MS, appends::commit(connection)).await;
        metrics::histogram!("deskfeed_commit_duration_seconds").record(started.elapsed().as_secs_f64());
        let done = Done { replies, committed, head: appended.map_or(0, |(_, last)| last) };
        match ended {
            Ok(()) => Ok(done),
            Err(error) => {
                let proof = ledger.proof();
                let unanswered =
                    Unanswered { done, transaction_id: ledger.transaction_id, proof, epoch: live.bulletin.epoch() };
                Err(BatchError::AtCommit(error, unanswered))
            }
        }
    }

    /// Asks what became of a batch, until it is known or asking makes no sense any more.
    async fn find_outcome(&mut self, unanswered: &Unanswered) -> Outcome {
        let Some(proof) = unanswered.proof else { return Outcome::Unknown };
        let until = Instant::now() + Duration::from_millis(limits::COMMIT_MS);
        while Instant::now() < until {
            let asked = deadline(limits::DB_ACQUIRE_MS, ask(&self.live, unanswered, proof)).await;
            match asked {
                Ok(Outcome::Unknown) | Err(_) => sleep(Duration::from_millis(100)).await,
                Ok(outcome) => return outcome,
            }
        }
        Outcome::Unknown
    }
}

async fn ask(live: &Live, unanswered: &Unanswered, proof: Proof) -> Result<Outcome, sqlx::Error> {
    let mut connection = live.db.connect(Purpose::Appends).await?;
    // Transaction numbers mean something within one history only.
    if events::store_state(&mut connection).await?.epoch != *unanswered.epoch {
        return Ok(Outcome::Unknown);
    }
    appends::outcome(&mut connection, &unanswered.transaction_id, proof).await
}
