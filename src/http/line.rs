//! A connection, and the way out of hyper for an answer that takes long.
//!
//! Until a request is answered, hyper holds two buffers of 8 KiB for it, and the futures of all the
//! handlers that it has gone through. A parked poll is answered after a minute, and there are tens
//! of thousands of them. So its handler hands over what is left to do ([`Line::leave`]): the
//! connection then takes its socket back from hyper, which drops all that, waits, writes the answer
//! and gives the socket to hyper again.

use std::{
    io,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    body::{self, HttpBody},
    extract::Request,
    response::Response,
};
use futures_util::FutureExt;
use http::{HeaderValue, Method, Version, header};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::problem;
use crate::clock::Clock;

/// What is left to do for a request.
pub type Answering = Pin<Box<dyn Future<Output = Response> + Send>>;

/// Bodies up to here are written together with their heads.
const SMALL_BODY_BYTES: usize = 16 << 10;

/// One connection, as its socket, its requests and its task see it.
#[derive(Default)]
pub struct Line {
    has_asked: AtomicBool,
    is_stuck: AtomicBool,
    answering: Mutex<Option<Answering>>,
}

impl Line {
    /// A request has come.
    pub fn asks(&self) {
        self.has_asked.store(true, Ordering::Relaxed);
    }

    pub fn has_asked(&self) -> bool {
        self.has_asked.load(Ordering::Relaxed)
    }

    /// Whether the client does not take what is written.
    pub fn set_stuck(&self, is_stuck: bool) {
        self.is_stuck.store(is_stuck, Ordering::Relaxed);
    }

    /// The connection that a request came by, if its answer may be written without hyper: one that
    /// asks for nothing that only hyper knows how to do.
    pub fn to_leave_by(request: &Request) -> Option<Arc<Self>> {
        let is_plain = request.method() == Method::GET
            && request.version() == Version::HTTP_11
            && request.body().is_end_stream()
            && ![header::CONNECTION, header::EXPECT, header::UPGRADE, header::TE]
                .iter()
                .any(|name| request.headers().contains_key(name));
        request.extensions().get::<Arc<Self>>().filter(|_| is_plain).cloned()
    }

    /// Hands over what is left to do for a request, and never completes: whoever asked is dropped.
    pub async fn leave(&self, answering: impl Future<Output = Response> + Send + 'static) -> Response {
        // Nothing that a panic leaves half done is looked at again: the request ends with it.
        let answering = AssertUnwindSafe(answering).catch_unwind();
        let answering = answering.map(|answered| answered.unwrap_or_else(problem::panic_problem));
        *self.answering.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::pin(answering));
        std::future::pending().await
    }

    /// What was handed over, once hyper has nothing left to write.
    pub fn left(&self) -> Option<Answering> {
        if self.is_stuck.load(Ordering::Relaxed) {
            return None;
        }
        self.answering.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Writes an answer to a GET; `closes` tells the client that it is the last one.
///
/// # Errors
/// When the client is gone, or takes nothing.
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), response: Response, closes: bool) -> io::Result<()> {
    let (mut parts, body) = response.into_parts();
    let body = body::to_bytes(body, usize::MAX).await.map_err(io::Error::other)?;
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    if closes {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let reason = parts.status.canonical_reason().unwrap_or_default();
    let mut bytes = Vec::with_capacity(512 + if body.len() <= SMALL_BODY_BYTES { body.len() } else { 0 });
    bytes.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", parts.status.as_str()).as_bytes());
    for (name, value) in &parts.headers {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    let date = Clock.now().format("%a, %d %b %Y %H:%M:%S GMT");
    bytes.extend_from_slice(format!("date: {date}\r\n\r\n").as_bytes());
    if body.len() <= SMALL_BODY_BYTES {
        bytes.extend_from_slice(&body);
        stream.write_all(&bytes).await?;
    } else {
        stream.write_all(&bytes).await?;
        stream.write_all(&body).await?;
    }
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn request(change: impl FnOnce(http::request::Builder) -> http::request::Builder) -> Request {
        let line: Arc<Line> = Arc::default();
        change(Request::builder().uri("/message/query?a=1").extension(line)).body(Body::empty()).unwrap()
    }

    #[test]
    fn only_a_plain_request_leaves() {
        assert!(Line::to_leave_by(&request(|request| request)).is_some());
        for other in [
            request(|request| request.method(Method::HEAD)),
            request(|request| request.version(Version::HTTP_10)),
            request(|request| request.header("Connection", "close")),
            request(|request| request.header("Expect", "100-continue")),
            request(|request| request).map(|_| Body::from("a body")),
        ] {
            assert!(Line::to_leave_by(&other).is_none(), "{other:?}");
        }
    }

    #[tokio::test]
    async fn nothing_leaves_while_something_is_to_be_written() {
        let line = Line::default();
        assert!(line.leave(async { Response::new(Body::from("late")) }).now_or_never().is_none());
        line.set_stuck(true);
        assert!(line.left().is_none());
        line.set_stuck(false);
        let mut written = Vec::new();
        write(&mut written, line.left().unwrap().await, true).await.unwrap();
        assert!(line.left().is_none());
        let written = String::from_utf8(written).unwrap();
        assert!(
            written.starts_with("HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\ndate: "),
            "{written}"
        );
        assert!(written.ends_with(" GMT\r\n\r\nlate"), "{written}");
    }

    #[tokio::test]
    async fn a_panic_is_answered() {
        let line = Line::default();
        assert!(line.leave(async { panic!("on purpose") }).now_or_never().is_none());
        assert_eq!(line.left().unwrap().await.status(), 500);
    }
}
