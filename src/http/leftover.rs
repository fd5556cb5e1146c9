//! What is left of a request's body when its answer is ready. Answering while the client still
//! sends, and then closing, resets the connection, and the client may never get to read why it was
//! refused. So the rest is read and thrown away first, within limits of size and time.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, HttpBody},
    extract::Request,
};
use bytes::Bytes;
use http::header;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, timeout_at};

use crate::domain::limits;

/// What may be left of one request's body.
pub struct Leftover {
    left: Left,
    until: Instant,
}

impl Leftover {
    /// Lets a request's body be taken back from its handler. None when there is nothing to take back.
    pub fn watch(request: &mut Request) -> Option<Self> {
        // Nearly every request has no body; one that asks first has not sent it, and need not.
        if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
            return None;
        }
        let left = Left::default();
        let body = std::mem::replace(request.body_mut(), Body::new(Watched { left: left.clone() }));
        *left.body() = Some(body);
        Some(Self { left, until: Instant::now() + Duration::from_secs(limits::BODY_READ_S) })
    }

    /// Reads what is left, once the answer is ready.
    pub async fn discard(self) {
        let rest = self.left.body().take();
        if let Some(rest) = rest {
            // Whoever has not sent it by then does not want the answer.
            let until = self.until.max(Instant::now() + Duration::from_secs(1));
            drop(timeout_at(until, read_up(rest)).await);
        }
    }
}

async fn read_up(mut body: Body) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > limits::DISCARDED_BODY_BYTES_MAX {
            return;
        }
    }
}

/// A body that can be taken back from whoever reads it; none when it has been read to its end.
#[derive(Clone, Default)]
struct Left(Arc<Mutex<Option<Body>>>);

impl Left {
    fn body(&self) -> MutexGuard<'_, Option<Body>> {
        // Nothing panics while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body as handlers read it.
struct Watched {
    left: Left,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut body = self.left.body();
        let Some(reading) = body.as_mut() else { return Poll::Ready(None) };
        let polled = Pin::new(reading).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            *body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.left.body().as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.body().as_ref().map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}
