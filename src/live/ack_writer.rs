//! Group commit of acknowledgements, as of appends but independent of them: it needs neither the append lock nor
//! versions. It is idempotent, so a batch that failed is simply retried.

use std::time::Duration;

use sqlx::PgConnection;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{cursor::Ack, fault::Fault, ids::FeedKey, limits},
    store::{
        self,
        acks::{self, FeedAcks},
        barrier::{self, Barrier},
        pool::{Db, Purpose, deadline},
    },
};

struct Job {
    feed: FeedKey,
    acks: Vec<Ack>,
    reply: oneshot::Sender<Result<(), Fault>>,
}

/// The handle through which polls record acknowledgements.
#[derive(Clone)]
pub struct AckWriter {
    jobs: mpsc::Sender<Job>,
}

impl AckWriter {
    /// The handle and its worker, which must be run.
    pub fn new(db: Db) -> (Self, AckWriterTask) {
        let (jobs, queue) = mpsc::channel(limits::WRITER_QUEUE_MAX);
        (Self { jobs }, AckWriterTask { db, queue, connection: None })
    }

    /// Records acknowledgements; they are durable when this returns.
    ///
    /// # Errors
    /// 50300 if PostgreSQL cannot be reached or the queue is full; recording them again is harmless.
    pub async fn record(&self, feed: FeedKey, acks: Vec<Ack>) -> Result<(), Fault> {
        if acks.is_empty() {
            return Ok(());
        }
        let (reply, answer) = oneshot::channel();
        self.jobs
            .try_send(Job { feed, acks, reply })
            .map_err(|_| Fault::unavailable("too many acknowledgements are waiting; try again"))?;
        answer.await.map_err(|_| Fault::unavailable("the service is stopping; try again"))?
    }
}

/// The task that records them.
pub struct AckWriterTask {
    db: Db,
    queue: mpsc::Receiver<Job>,
    connection: Option<PgConnection>,
}

impl AckWriterTask {
    /// Runs until all handles are gone or `stop`, and the queue is empty.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let first = tokio::select! {
                biased;
                job = self.queue.recv() => job,
                () = stop.cancelled() => {
                    self.queue.close();
                    self.queue.recv().await
                }
            };
            let Some(first) = first else { return };
            let mut items = first.acks.len();
            let mut batch = vec![first];
            while batch.len() < limits::ACK_BATCH_MAX
                && items < limits::ACK_BATCH_ITEMS_MAX
                && let Ok(job) = self.queue.try_recv()
            {
                items += job.acks.len();
                batch.push(job);
            }
            self.work_off(batch).await;
        }
    }

    /// Records a batch; if the server refuses it or needs too long for it, splits it in half and tries again.
    async fn work_off(&mut self, batch: Vec<Job>) {
        let mut parts = vec![batch];
        while let Some(mut part) = parts.pop() {
            let requests: Vec<FeedAcks<'_>> =
                part.iter().map(|job| FeedAcks { feed: job.feed, acks: &job.acks }).collect();
            let outcome = self.record(&requests).await;
            if let Err(error) = &outcome {
                tracing::warn!(error = %error, requests = part.len(), "acknowledgements were not recorded");
                if part.len() > 1 && is_spoiled(error) {
                    let rest = part.split_off(part.len() / 2);
                    parts.extend([rest, part]);
                    continue;
                }
            }
            Self::answer(part, outcome);
        }
    }

    fn answer(batch: Vec<Job>, outcome: store::Result<()>) {
        let is_outage = outcome.as_ref().is_err_and(store::Error::is_outage);
        let reason = outcome.err().map(|error| error.to_string());
        for job in batch {
            let reply = match &reason {
                None => Ok(()),
                Some(_) if is_outage => Err(Fault::unavailable("PostgreSQL cannot be reached; try again")),
                Some(reason) => Err(Fault::internal(reason.clone())),
            };
            // The client may be gone.
            let _ = job.reply.send(reply);
        }
    }

    async fn record(&mut self, requests: &[FeedAcks<'_>]) -> store::Result<()> {
        let until = Instant::now() + Duration::from_millis(limits::COMMIT_MS) / 3;
        loop {
            let error = match self.try_record(requests).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            self.connection = None;
            if !error.is_outage() || Instant::now() >= until {
                return Err(error);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn try_record(&mut self, requests: &[FeedAcks<'_>]) -> store::Result<()> {
        let connection = match self.connection.as_mut() {
            Some(connection) => connection,
            None => self.connection.insert(self.db.connect(Purpose::Acks).await?),
        };
        // Acknowledgements that are there already lock rows, too, so every batch has a commit that waits.
        let recorded = barrier::committed(connection, Barrier::AfterWarning, async |c| acks::record(c, requests).await);
        deadline(limits::COMMIT_MS, recorded).await
    }
}

/// Whether a batch may fail for what is in it: the server refused it, or ended a statement that took too long.
fn is_spoiled(error: &store::Error) -> bool {
    !error.is_outage() || error.sqlstate().is_some_and(|code| code == "57014")
}
