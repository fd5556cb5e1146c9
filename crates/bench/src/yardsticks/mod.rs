//! What the same machine can do without the service: an HTTP server that only answers `ok`, naive ways to store
//! messages (over that HTTP server, and without HTTP), and PostgreSQL on its own.

mod naive;
pub mod server;
pub mod tables;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, ensure};
use sqlx::PgConnection;
use tokio::{task::JoinSet, time::Instant};

use crate::{
    check::content,
    stats::Latencies,
    wire::{self, Wire},
};

/// Most connections of the bare yardsticks. More would only wait for each other.
pub const BARE_CONNECTIONS_MAX: usize = 48;
/// Bytes of a row of the raw scan: the size of a 300-byte message's event on the wire.
const SCANNED_BYTES: i32 = 520;

/// A rate, and the latency of each operation.
#[derive(Debug)]
pub struct Measured {
    pub per_second: f64,
    pub latencies: Latencies,
}

/// Measures requests to the server that only answers `ok`.
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

/// How a message is stored without HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bare {
    /// A transaction with a NOTIFY.
    Notifying,
    /// A transaction of one INSERT.
    Single,
}

/// Measures messages stored over several connections (at most [`BARE_CONNECTIONS_MAX`]), in a transaction each.
///
/// # Errors
/// When the database refuses something.
pub async fn bare(url: &str, connections: usize, how: Bare, time: Duration) -> anyhow::Result<Measured> {
    let mut open = Vec::new();
    for _ in 0..connections.min(BARE_CONNECTIONS_MAX) {
        open.push(tables::connect(url).await?);
    }
    let (started, mut tasks) = (Instant::now(), JoinSet::new());
    for mut connection in open {
        let body = content(0);
        tasks.spawn(async move {
            let mut latencies = Latencies::new()?;
            while started.elapsed() < time {
                let begun = Instant::now();
                match how {
                    Bare::Notifying => tables::insert_and_notify(&mut connection, &body).await?,
                    Bare::Single => tables::insert(&mut connection, &body).await?,
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

/// Measures the rows per second that one connection inserts into an empty table, `rows` per commit.
///
/// # Errors
/// When the database refuses something.
pub async fn multi_row(url: &str, rows: usize, time: Duration) -> anyhow::Result<f64> {
    let mut connection = tables::connect(url).await?;
    tables::empty_many(&mut connection).await?;
    let bodies: Vec<String> = (0..rows).map(|number| content(number as u64)).collect();
    let mut next = 1;
    let started = Instant::now();
    while started.elapsed() < time {
        tables::insert_many(&mut connection, next, &bodies).await?;
        next += i64::try_from(rows)?;
    }
    let took = started.elapsed();
    let kept = tables::count_many(&mut connection).await?;
    ensure!(kept == next - 1, "{kept} rows are there of {} that were inserted", next - 1);
    Ok(kept as f64 / took.as_secs_f64())
}

/// Measures the time from the start of a transaction with a NOTIFY to the notification at another connection.
///
/// # Errors
/// When the database refuses something.
pub async fn notify_round_trip(url: &str, time: Duration) -> anyhow::Result<Latencies> {
    let mut connection = tables::connect(url).await?;
    let mut listener = tables::listen(url).await?;
    let (mut latencies, body) = (Latencies::new()?, content(0));
    let started = Instant::now();
    while started.elapsed() < time {
        let begun = Instant::now();
        let (version, heard) = tokio::join!(tables::insert_and_notify(&mut connection, &body), async {
            let heard = listener.recv().await;
            (heard, begun.elapsed())
        });
        let (heard, took) = heard;
        ensure!(heard?.payload() == version?.to_string(), "another notification than the one sent");
        latencies.record(took);
    }
    Ok(latencies)
}

/// Measures round trips of `select 1`.
///
/// # Errors
/// When the database cannot be reached.
pub async fn round_trip(url: &str, time: Duration) -> anyhow::Result<Latencies> {
    let mut connection = tables::connect(url).await?;
    let (started, mut latencies) = (Instant::now(), Latencies::new()?);
    while started.elapsed() < time {
        let begun = Instant::now();
        tables::select_one(&mut connection).await?;
        latencies.record(begun.elapsed());
    }
    Ok(latencies)
}

/// Fills the table of the raw scan up to `rows` rows in `feeds` feeds.
///
/// # Errors
/// When the database refuses something.
pub async fn fill_scan(url: &str, rows: u64, feeds: usize) -> anyhow::Result<()> {
    let mut connection = tables::connect(url).await?;
    Ok(tables::fill(&mut connection, i64::try_from(rows)?, i32::try_from(feeds)?, SCANNED_BYTES).await?)
}

/// Empties the table of the raw scan, for another number of feeds.
///
/// # Errors
/// When the database refuses something.
pub async fn empty_scan(url: &str) -> anyhow::Result<()> {
    Ok(tables::empty_scanned(&mut tables::connect(url).await?).await?)
}

/// Measures the rows per second of pages of `limit` rows, one feed after the other from its beginning, by index, over
/// several connections.
///
/// # Errors
/// When the database cannot be read, or the table is empty.
pub async fn scan(url: &str, feeds: usize, limit: i64, connections: usize, time: Duration) -> anyhow::Result<f64> {
    let mut open: Vec<PgConnection> = Vec::new();
    for _ in 0..connections {
        let mut connection = tables::connect(url).await?;
        tables::prepare_scan(&mut connection).await?;
        open.push(connection);
    }
    let (started, mut tasks) = (Instant::now(), JoinSet::new());
    for (number, mut connection) in open.into_iter().enumerate() {
        tasks.spawn(async move {
            let (mut rows, mut after, mut feed, mut empty) = (0, 0, number, 0);
            while started.elapsed() < time {
                let wanted = i32::try_from(feed % feeds.max(1))?;
                let (last, count) = tables::scan(&mut connection, wanted, after, limit).await?;
                (rows, after) = (rows + count, last);
                if count < u64::try_from(limit)? {
                    empty = if count == 0 && after == 0 { empty + 1 } else { 0 };
                    ensure!(empty <= feeds, "the table of the raw scan is empty");
                    (after, feed) = (0, feed + connections);
                }
            }
            anyhow::Ok(rows)
        });
    }
    let mut rows = 0;
    while let Some(ended) = tasks.join_next().await {
        rows += ended??;
    }
    Ok(rows as f64 / started.elapsed().as_secs_f64())
}

/// Counts the transactions of a database so far.
///
/// # Errors
/// When it cannot be read.
pub async fn transactions(url: &str) -> anyhow::Result<i64> {
    let mut connection = tables::connect(url).await?;
    tables::transactions(&mut connection).await.context("pg_stat_database")
}
