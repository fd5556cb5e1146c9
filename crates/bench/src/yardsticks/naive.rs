//! The naive long poll: a transaction with a NOTIFY for each message, and a query for each wake. It takes the
//! requests of the service, as far as the benchmark's senders and readers send them, and checks nothing: `SessionId`
//! and token are the feed.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{sync::Notify, time::timeout};

use super::{server::answer, tables};

/// The server's state.
#[derive(Clone)]
pub struct Naive {
    pool: PgPool,
    /// Waiters by feed.
    feeds: Arc<Mutex<HashMap<String, Arc<Notify>>>>,
    parked: Arc<AtomicI64>,
}

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "SessionId")]
    feed: String,
    #[serde(rename = "Content")]
    content: String,
}

#[derive(Debug, Deserialize)]
struct Cursor {
    /// `now`, or a version.
    a: String,
    wait: u64,
}

/// Counts a parked poll while it lives.
struct Parked(Arc<AtomicI64>);

impl Parked {
    fn new(count: &Arc<AtomicI64>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Naive {
    pub fn on(pool: PgPool) -> Self {
        Self { pool, feeds: Arc::default(), parked: Arc::default() }
    }

    pub fn router(&self) -> Router {
        Router::new()
            .route("/message/send", post(send))
            .route("/message/query", get(query))
            .route("/metrics", get(metrics))
            .with_state(self.clone())
    }

    /// Wakes the waiters of a feed.
    pub fn wake(&self, feed: &str) {
        let feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notify) = feeds.get(feed) {
            notify.notify_waiters();
        }
    }

    fn notify_of(&self, feed: &str) -> Arc<Notify> {
        let mut feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(feeds.entry(feed.to_owned()).or_default())
    }

    async fn rows(&self, feed: &str, after: i64) -> tables::Result<Vec<(i64, String)>> {
        tables::read_feed(&mut *self.pool.acquire().await?, feed, after).await
    }

    async fn poll(&self, feed: &str, after: i64, wait: Duration) -> tables::Result<Vec<(i64, String)>> {
        let notify = self.notify_of(feed);
        let woken = notify.notified();
        // `notify_waiters` reaches every future created before it.
        let rows = self.rows(feed, after).await?;
        if !rows.is_empty() || wait.is_zero() {
            return Ok(rows);
        }
        let parked = Parked::new(&self.parked);
        let is_woken = timeout(wait, woken).await.is_ok();
        drop(parked);
        if is_woken { self.rows(feed, after).await } else { Ok(rows) }
    }
}

async fn send(State(naive): State<Naive>, Json(message): Json<Message>) -> Response {
    let kept = async {
        let mut connection = naive.pool.acquire().await?;
        tables::insert_into_feed(&mut connection, &message.feed, &message.content).await
    };
    answer(kept.await)
}

async fn query(State(naive): State<Naive>, Query(cursor): Query<Cursor>, headers: HeaderMap) -> Response {
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let feed = token.strip_prefix("Bearer ").unwrap_or_default();
    let polled = async {
        let after = match cursor.a.parse() {
            Ok(after) => after,
            Err(_) => tables::newest_of_feeds(&mut *naive.pool.acquire().await?).await?,
        };
        Ok((after, naive.poll(feed, after, Duration::from_secs(cursor.wait)).await?))
    };
    match polled.await {
        Ok((after, rows)) => {
            let next = rows.last().map_or(after, |(version, _)| *version);
            let events: Vec<Value> = rows.into_iter().map(event).collect();
            ([("Feed-Next", next.to_string())], Json(events)).into_response()
        }
        Err::<_, sqlx::Error>(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn event((version, content): (i64, String)) -> Value {
    json!({"e": "Message", "Version": version, "Data": {"Message": [{"Content": content}]}})
}

async fn metrics(State(naive): State<Naive>) -> String {
    format!("deskfeed_poll_waiters {}\n", naive.parked.load(Ordering::Relaxed))
}
