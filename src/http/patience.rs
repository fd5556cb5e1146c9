//! How long a connection may keep us waiting: idle between requests, in the middle of a request's
//! head, and without taking a byte of an answer. hyper has one limit for the first two, so either
//! an honest client that keeps a connection would be cut after seconds, or one that dribbles a head
//! would be suffered for minutes; for the third it has none.
//!
//! A request's body and the time a poll is held have limits of their own, elsewhere.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::line::Line;
use crate::domain::limits;

/// A stream with limits.
pub struct Patient<S> {
    stream: S,
    line: Arc<Line>,
    /// Bytes that were read too early and are to be read again.
    ahead: Vec<u8>,
    phase: Phase,
    /// When the present phase is to be over.
    until: Option<Instant>,
    /// Runs while a read waits in a phase that has an end; a parked poll has none.
    reading: Option<Pin<Box<Sleep>>>,
    /// Runs while a write is stuck.
    writing: Option<Pin<Box<Sleep>>>,
}

/// What the client is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing since the last answer.
    Idle,
    /// Sending a head; so many bytes of the empty line that ends it have come.
    Head { end: usize },
    /// The head is complete: the request is ours.
    Request,
}

/// The end of a head.
const HEAD_END: &[u8; 4] = b"\r\n\r\n";

impl Phase {
    /// The phase after these bytes.
    fn after(self, bytes: &[u8]) -> Self {
        let mut end = match self {
            Self::Idle => 0,
            Self::Head { end } => end,
            Self::Request => return Self::Request,
        };
        for byte in bytes {
            end = match *byte {
                byte if byte == HEAD_END[end] => end + 1,
                b'\r' => 1,
                _ => 0,
            };
            if end == HEAD_END.len() {
                return Self::Request;
            }
        }
        if bytes.is_empty() { self } else { Self::Head { end } }
    }
}

impl<S> Patient<S> {
    pub fn new(stream: S, line: Arc<Line>) -> Self {
        let until = Some(Instant::now() + Duration::from_secs(limits::HEAD_READ_S));
        Self { stream, line, ahead: Vec::new(), phase: Phase::Idle, until, reading: None, writing: None }
    }

    fn enter(&mut self, phase: Phase) {
        let is_new = std::mem::discriminant(&phase) != std::mem::discriminant(&self.phase);
        self.phase = phase;
        if is_new {
            self.reading = None;
            self.until = match phase {
                Phase::Idle => Some(Instant::now() + Duration::from_secs(limits::KEEP_ALIVE_S)),
                Phase::Head { .. } => Some(Instant::now() + Duration::from_secs(limits::HEAD_READ_S)),
                Phase::Request => None,
            };
        }
    }

    /// What a write came to; an error when it has been stuck for too long.
    fn judge<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.line.set_stuck(outcome.is_pending());
        if outcome.is_ready() {
            self.writing = None;
            return outcome;
        }
        let stuck = self
            .writing
            .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + Duration::from_secs(limits::WRITE_STALL_S))));
        ready!(stuck.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes no bytes")))
    }
}

impl<S: AsyncRead + Unpin> Patient<S> {
    /// Puts back what was read and belongs to the next request.
    pub fn unread(&mut self, bytes: &[u8]) {
        self.ahead.splice(0..0, bytes.iter().copied());
    }

    /// Ready when the client has gone away. A next request that it sends meanwhile is kept, and
    /// hides its end until that is read.
    pub fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.ahead.is_empty() {
            return Poll::Pending;
        }
        let mut bytes = [0; 64];
        let mut buffer = ReadBuf::new(&mut bytes);
        match ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer)) {
            Ok(()) if !buffer.filled().is_empty() => {
                self.ahead.extend_from_slice(buffer.filled());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    /// Reads what was read before, if anything was.
    fn reread(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let count = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead[..count]);
        self.ahead.drain(..count);
        if self.ahead.is_empty() {
            self.ahead = Vec::new();
        }
        count > 0
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = if self.reread(buffer) {
            Poll::Ready(Ok(()))
        } else {
            Pin::new(&mut self.stream).poll_read(context, buffer)
        };
        if outcome.is_ready() {
            let phase = self.phase.after(&buffer.filled()[before..]);
            self.enter(phase);
            return outcome;
        }
        let Some(until) = self.until else { return Poll::Pending };
        let reading = self.reading.get_or_insert_with(|| Box::pin(sleep_until(until)));
        ready!(reading.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client sends no request")))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.enter(Phase::Idle);
        self.judge(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.enter(Phase::Idle);
        self.judge(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(context, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[test]
    fn a_head_ends_with_an_empty_line_however_it_is_cut() {
        let head = b"GET / HTTP/1.1\r\nA: b\r\r\n\r\n";
        for cut in 0..head.len() {
            let phase = Phase::Idle.after(&head[..cut]).after(&head[cut..]);
            assert_eq!(phase, Phase::Request, "cut at {cut}");
            assert_ne!(Phase::Idle.after(&head[..cut]), Phase::Request, "cut at {cut}");
        }
    }

    /// Reads until an error, on a clock that runs as fast as nothing happens.
    async fn waits_for(stream: &mut Patient<tokio::io::DuplexStream>) -> u64 {
        let started = Instant::now();
        let mut buffer = [0; 64];
        while stream.read(&mut buffer).await.is_ok() {}
        started.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn each_phase_has_its_own_limit() {
        let (mut client, server) = duplex(64);
        let mut server = Patient::new(server, Arc::default());
        assert_eq!(waits_for(&mut server).await, limits::HEAD_READ_S, "a first request that never comes");

        server = Patient::new(duplex_half(&mut client), Arc::default());
        client.write_all(b"GET / HT").await.unwrap();
        assert_eq!(waits_for(&mut server).await, limits::HEAD_READ_S, "a head that stops");

        server = Patient::new(duplex_half(&mut client), Arc::default());
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let held = tokio::time::timeout(Duration::from_secs(3600), waits_for(&mut server)).await;
        assert!(held.is_err(), "a request that is being answered has no limit here");

        server.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        assert_eq!(waits_for(&mut server).await, limits::KEEP_ALIVE_S, "an idle connection");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut() {
        let (_client, server) = duplex(64);
        let mut server = Patient::new(server, Arc::default());
        let started = Instant::now();
        server.write_all(&[0; 65]).await.unwrap_err();
        assert_eq!(started.elapsed().as_secs(), limits::WRITE_STALL_S);
    }

    #[tokio::test]
    async fn what_comes_early_is_read_later_and_hides_the_end() {
        let (mut client, server) = duplex(256);
        let mut server = Patient::new(server, Arc::default());
        let is_gone =
            |server: &mut Patient<_>| server.poll_gone(&mut Context::from_waker(std::task::Waker::noop())).is_ready();
        assert!(!is_gone(&mut server));
        client.write_all(b"GET /next HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(!is_gone(&mut server));
        drop(client);
        assert!(!is_gone(&mut server), "the request before the end is still to be answered");
        server.unread(b"first ");
        let mut text = String::new();
        server.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "first GET /next HTTP/1.1\r\n\r\n");
        assert!(is_gone(&mut server));
    }

    /// A new pair: gives the server's half and puts the client's in place.
    fn duplex_half(client: &mut tokio::io::DuplexStream) -> tokio::io::DuplexStream {
        let (new_client, server) = duplex(64);
        *client = new_client;
        server
    }
}
