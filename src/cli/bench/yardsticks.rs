//! What the same machine can do without us: an HTTP server that only answers `ok`, the naive way of
//! keeping messages (over the same HTTP server, and bare), and PostgreSQL on its own.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::{Context, ensure};
use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use clap::Args;
use http::StatusCode;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde_json::json;
use sqlx::{PgConnection, PgPool, postgres::PgListener};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::Instant,
};

use super::{
    check::content,
    stats::Latencies,
    wire::{self, Wire},
};
use crate::{
    http::server::{self, Bound},
    lifecycle::Lifecycle,
    store::{self, yardsticks},
};

/// Connections of the naive server to PostgreSQL.
const NAIVE_CONNECTIONS: u32 = 32;
/// Most connections of the bare yardsticks: the private PostgreSQL takes 100, of which the service
/// and the naive server have nearly half.
pub const BARE_CONNECTIONS_MAX: usize = 48;
/// Bytes of a row of the raw scan: those of the event of a 300-byte message on the wire.
const SCANNED_BYTES: i32 = 520;

#[derive(Debug, Args)]
pub struct YardsticksArgs {
    /// Without it only `/ok` is served.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "Content")]
    content: String,
}

/// Runs the server of yardsticks until it is told to stop.
///
/// # Errors
/// When the database cannot be reached.
pub async fn serve(args: &YardsticksArgs) -> anyhow::Result<ExitCode> {
    let mut router = Router::new().route("/ok", get(async || "ok").post(async || "ok"));
    // Somebody listens, as in production.
    let mut listener = None;
    if let Some(url) = &args.database_url {
        yardsticks::prepare(&mut yardsticks::connect(url).await?).await?;
        listener = Some(yardsticks::listen(url).await?);
        let writing = Router::new().route("/naive", post(naive)).route("/single", post(single));
        router = router.merge(writing.with_state(yardsticks::pool(url, NAIVE_CONNECTIONS)?));
    }
    let socket = Bound::to(SocketAddr::from(([127, 0, 0, 1], 0)))?.listen()?;
    let mut terminate = signal(SignalKind::terminate())?;
    println!("yardsticks at http://{}", socket.local_addr()?);
    let lifecycle = Lifecycle::default();
    lifecycle.spawn("accept loop", server::serve(socket, TowerToHyperService::new(router), lifecycle.clone()));
    loop {
        tokio::select! {
            _ = terminate.recv() => {
                // Who listens on the address is not missed then.
                lifecycle.stopping().cancel();
                return Ok(ExitCode::SUCCESS);
            }
            heard = heard(listener.as_mut()) => heard?,
        }
    }
}

async fn heard(listener: Option<&mut PgListener>) -> anyhow::Result<()> {
    match listener {
        Some(listener) => drop(listener.recv().await?),
        None => std::future::pending().await,
    }
    Ok(())
}

async fn naive(State(pool): State<PgPool>, Json(message): Json<Message>) -> Response {
    let kept = async { yardsticks::insert_and_notify(&mut *pool.acquire().await?, &message.content).await };
    answer(kept.await)
}

async fn single(State(pool): State<PgPool>, Json(message): Json<Message>) -> Response {
    let kept = async { yardsticks::insert(&mut *pool.acquire().await?, &message.content).await };
    answer(kept.await)
}

fn answer(kept: store::Result<i64>) -> Response {
    match kept {
        Ok(version) => Json(json!({"Version": version})).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// How often something was done in a second, and how long each time took.
#[derive(Debug)]
pub struct Measured {
    pub per_second: f64,
    pub latencies: Latencies,
}

/// Requests to the server that only answers `ok`.
///
/// # Errors
/// When the server does not answer.
pub async fn ok(address: SocketAddr, connections: usize, time: Duration) -> anyhow::Result<Measured> {
    let mut wires = Vec::with_capacity(connections);
    for number in 0..connections {
        wires.push(Wire::connect_numbered(number, address).await?);
    }
    let token = "0123456789012345678901234567890123456789012";
    let (started, mut tasks) = (Instant::now(), JoinSet::new());
    for mut wire in wires {
        let request = wire::get("/ok", token);
        tasks.spawn(async move {
            let mut latencies = Latencies::new()?;
            while started.elapsed() < time {
                let begun = Instant::now();
                wire.exchange_ok(&request).await?;
                latencies.record(begun.elapsed());
            }
            anyhow::Ok(latencies)
        });
    }
    sum(tasks, started).await
}

/// How a message is kept without HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bare {
    /// A transaction with a NOTIFY.
    Notifying,
    /// A transaction of one INSERT.
    Single,
}

/// Messages kept over so many connections (at most [`BARE_CONNECTIONS_MAX`]), a transaction each.
///
/// # Errors
/// When the database refuses something.
pub async fn bare(url: &str, connections: usize, how: Bare, time: Duration) -> anyhow::Result<Measured> {
    let mut open = Vec::new();
    for _ in 0..connections.min(BARE_CONNECTIONS_MAX) {
        open.push(yardsticks::connect(url).await?);
    }
    let (started, mut tasks) = (Instant::now(), JoinSet::new());
    for mut connection in open {
        let body = content(0);
        tasks.spawn(async move {
            let mut latencies = Latencies::new()?;
            while started.elapsed() < time {
                let begun = Instant::now();
                match how {
                    Bare::Notifying => yardsticks::insert_and_notify(&mut connection, &body).await?,
                    Bare::Single => yardsticks::insert(&mut connection, &body).await?,
                };
                latencies.record(begun.elapsed());
            }
            anyhow::Ok(latencies)
        });
    }
    sum(tasks, started).await
}

async fn sum(mut tasks: JoinSet<anyhow::Result<Latencies>>, started: Instant) -> anyhow::Result<Measured> {
    let mut latencies = Latencies::new()?;
    while let Some(ended) = tasks.join_next().await {
        latencies.add(&ended??)?;
    }
    Ok(Measured { per_second: latencies.count() as f64 / started.elapsed().as_secs_f64(), latencies })
}

/// Rows in a second that one connection inserts, so many per commit, into an empty table.
///
/// # Errors
/// When the database refuses something.
pub async fn multi_row(url: &str, rows: usize, time: Duration) -> anyhow::Result<f64> {
    let mut connection = yardsticks::connect(url).await?;
    yardsticks::empty_many(&mut connection).await?;
    let bodies: Vec<String> = (0..rows).map(|number| content(number as u64)).collect();
    let mut next = 1;
    let started = Instant::now();
    while started.elapsed() < time {
        yardsticks::insert_many(&mut connection, next, &bodies).await?;
        next += i64::try_from(rows)?;
    }
    let took = started.elapsed();
    let kept = yardsticks::count_many(&mut connection).await?;
    ensure!(kept == next - 1, "{kept} rows are there of {} that were inserted", next - 1);
    Ok(kept as f64 / took.as_secs_f64())
}

/// From the start of a transaction with a NOTIFY to the notification at another connection.
///
/// # Errors
/// When the database refuses something.
pub async fn notify_round_trip(url: &str, time: Duration) -> anyhow::Result<Latencies> {
    let mut connection = yardsticks::connect(url).await?;
    let mut listener = yardsticks::listen(url).await?;
    let (mut latencies, body) = (Latencies::new()?, content(0));
    let started = Instant::now();
    while started.elapsed() < time {
        let begun = Instant::now();
        let (version, heard) = tokio::join!(yardsticks::insert_and_notify(&mut connection, &body), async {
            let heard = listener.recv().await;
            (heard, begun.elapsed())
        });
        let (heard, took) = heard;
        ensure!(heard?.payload() == version?.to_string(), "another notification than the one sent");
        latencies.record(took);
    }
    Ok(latencies)
}

/// Makes the table of the raw scan hold `rows` rows in `feeds` feeds.
///
/// # Errors
/// When the database refuses something.
pub async fn fill_scan(url: &str, rows: u64, feeds: usize) -> anyhow::Result<()> {
    let mut connection = yardsticks::connect(url).await?;
    Ok(yardsticks::fill(&mut connection, i64::try_from(rows)?, i32::try_from(feeds)?, SCANNED_BYTES).await?)
}

/// Makes the table of the raw scan empty, for another number of feeds.
///
/// # Errors
/// When the database refuses something.
pub async fn empty_scan(url: &str) -> anyhow::Result<()> {
    Ok(yardsticks::empty_scanned(&mut yardsticks::connect(url).await?).await?)
}

/// What the raw scan gave. `pages.per_second` counts pages.
#[derive(Debug)]
pub struct Scanned {
    pub pages: Measured,
    pub events_per_second: f64,
    pub bytes_per_second: f64,
}

/// Pages of `limit` rows, a feed after the other from its beginning, by index, over so many connections.
///
/// # Errors
/// When the database cannot be read, or the table is empty.
pub async fn scan(url: &str, feeds: usize, limit: i64, connections: usize, time: Duration) -> anyhow::Result<Scanned> {
    let mut open: Vec<PgConnection> = Vec::new();
    for _ in 0..connections {
        let mut connection = yardsticks::connect(url).await?;
        yardsticks::prepare_scan(&mut connection).await?;
        open.push(connection);
    }
    let (started, mut tasks) = (Instant::now(), JoinSet::new());
    for (number, mut connection) in open.into_iter().enumerate() {
        tasks.spawn(async move {
            let (mut latencies, mut events, mut bytes, mut after) = (Latencies::new()?, 0, 0, 0);
            let (mut feed, mut empty) = (number, 0);
            while started.elapsed() < time {
                let begun = Instant::now();
                let wanted = i32::try_from(feed % feeds.max(1))?;
                let (last, count, size) = yardsticks::scan(&mut connection, wanted, after, limit).await?;
                if count > 0 {
                    latencies.record(begun.elapsed());
                }
                (events, bytes, after) = (events + count, bytes + size, last);
                if count < u64::try_from(limit)? {
                    empty = if count == 0 && after == 0 { empty + 1 } else { 0 };
                    ensure!(empty <= feeds, "the table of the raw scan is empty");
                    (after, feed) = (0, feed + connections);
                }
            }
            anyhow::Ok((latencies, events, bytes))
        });
    }
    let (mut latencies, mut events, mut bytes) = (Latencies::new()?, 0, 0);
    while let Some(ended) = tasks.join_next().await {
        let (of_one, more_events, more_bytes) = ended??;
        latencies.add(&of_one)?;
        (events, bytes) = (events + more_events, bytes + more_bytes);
    }
    let seconds = started.elapsed().as_secs_f64();
    let pages = Measured { per_second: latencies.count() as f64 / seconds, latencies };
    Ok(Scanned { pages, events_per_second: events as f64 / seconds, bytes_per_second: bytes as f64 / seconds })
}

/// Transactions of a database so far.
///
/// # Errors
/// When it cannot be read.
pub async fn transactions(url: &str) -> anyhow::Result<i64> {
    let mut connection = yardsticks::connect(url).await?;
    yardsticks::transactions(&mut connection).await.context("pg_stat_database")
}
