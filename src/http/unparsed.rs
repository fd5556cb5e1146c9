//! Answers to what is no HTTP request. hyper answers it by itself, before any handler, with a bare
//! head; clients are promised a problem object with every refusal, so this puts one in its place.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::problem;
use crate::domain::{fault::Fault, limits};

/// A stream whose bare refusals get a body.
pub struct Explained<S> {
    stream: S,
    /// What is left to write of an answer that replaces hyper's.
    answer: Vec<u8>,
}

impl<S> Explained<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, answer: Vec::new() }
    }

    pub fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }
}

/// The answer in place of `bytes`, if they are hyper's own refusal: no handler of ours gives a 4xx
/// without a body.
fn explained(bytes: &[u8]) -> Option<Vec<u8>> {
    // Looked at first, for it costs nothing: nearly every write is something else.
    if !bytes.starts_with(b"HTTP/1.1 4") {
        return None;
    }
    let text = std::str::from_utf8(bytes).ok()?;
    let status = text.strip_prefix("HTTP/1.1 4").and_then(|rest| rest.get(..2))?;
    if !(text.contains("\r\ncontent-length: 0\r\n") && text.ends_with("\r\n\r\n")) {
        return None;
    }
    let fault = match status {
        "14" | "31" => Fault::malformed(format!(
            "the request's head is longer than {} bytes, or has too many fields",
            limits::HEAD_BYTES_MAX
        )),
        _ => Fault::malformed("this is not an HTTP/1.1 request"),
    };
    let body = problem::object(&fault).to_string();
    let head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\nconnection: close\r\n";
    Some(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes())
}

impl<S: AsyncRead + Unpin> AsyncRead for Explained<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Explained<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.answer.is_empty() {
            match explained(bytes) {
                Some(answer) => self.answer = answer,
                None => return Pin::new(&mut self.stream).poll_write(context, bytes),
            }
        }
        // The caller comes back with the same bytes until they are taken.
        let this = &mut *self;
        while !this.answer.is_empty() {
            let written = ready!(Pin::new(&mut this.stream).poll_write(context, &this.answer))?;
            this.answer.drain(..written);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match slices {
            // Nothing but a head: it may be one of hyper's own.
            [head] => self.poll_write(context, head),
            _ => Pin::new(&mut self.stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_refusal_is_replaced() {
        let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let answer = String::from_utf8(explained(bare).unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("\"code\":40000"), "{answer}");
        for other in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 20\r\n\r\n",
        ] {
            assert_eq!(explained(other.as_bytes()), None, "{other}");
        }
    }
}
