//! The handle: queues requests for the lane.

use std::time::Duration;

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    desk::{
        SessionReply,
        command::{Command, Reply},
        decide::Request,
        send_message::Sent,
    },
    domain::{caller::Caller, fault::Fault, limits, message::NewMessage},
};

/// A request and its pending reply.
pub(super) struct Job {
    pub request: Request,
    /// Whether it must be decided on fresh facts.
    pub needs_fresh: bool,
    pub tries: u32,
    pub until: Instant,
    reply: Option<oneshot::Sender<Result<Reply, Fault>>>,
}

impl Job {
    pub fn answer(&mut self, answer: Result<Reply, Fault>) {
        if let Some(reply) = self.reply.take() {
            // Fails if the client has disconnected.
            let _ = reply.send(answer);
        }
    }

    pub fn is_open(&self) -> bool {
        self.reply.is_some()
    }
}

/// The handle through which requests are submitted.
#[derive(Clone)]
pub struct Writer {
    pub(super) jobs: mpsc::Sender<Job>,
}

impl Writer {
    /// Submits a command and waits for its reply. Dropping the future does not undo the command.
    ///
    /// # Errors
    /// The command's own refusal; 50300 if the queue is full, the service is stopping, or the command timed out.
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

    /// [`Writer::submit`] for commands that are answered with a session.
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
