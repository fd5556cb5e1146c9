//! The job `fanout`: all devices of one busy feed.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::ensure;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use tokio_util::sync::CancellationToken;

use crate::{
    check::{messages_of, versions_in},
    load::Load,
    plan::Plan,
    stats::{Results, count},
    targets::OK_REQUESTS,
    wire::{Wire, get},
    world::{Feed, World},
    yardsticks,
};

/// Senders to the one feed, in a closed loop.
const SENDERS: usize = 4;
/// One reader in this many parses every message; the others look at versions only, or the readers would use more of
/// the machine than the service.
const READS_EVERY_WORD: usize = 50;
/// How long the last message may take to reach the last reader.
const PATIENCE: Duration = Duration::from_secs(30);

pub async fn run(world: &mut World, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    let feeds = world.feeds(1, "fanout").await?;
    for round in 1..=plan.rounds {
        for &readers in plan.sizes.fanout_readers {
            let what = format!("{} readers", count(readers));
            plan.says(&format!("fanout, round {round}: {what}"));
            let before = yardsticks::ok(world.yardsticks(), readers, plan.time / 2).await?;
            let (deliveries, sent) = cell(world, &feeds, readers, plan.time).await?;
            let after = yardsticks::ok(world.yardsticks(), readers, plan.time / 2).await?;
            let beside = (OK_REQUESTS, f64::midpoint(before.per_second, after.per_second));
            results.push("fanout", &what, "throughput", "deliveries/s", deliveries, &[beside]);
            results.push("fanout", &what, "sent", "messages/s", sent, &[]);
        }
    }
    Ok(())
}

/// Measures one cell. Returns deliveries and messages a second.
async fn cell(world: &World, feeds: &[Feed], readers: usize, time: Duration) -> anyhow::Result<(f64, f64)> {
    let after = world.head().await?;
    let (delivered, stop) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
    let mut tasks = JoinSet::new();
    for number in 0..readers {
        let reader = Reader {
            number,
            address: world.address,
            token: feeds[0].token.clone(),
            next: after,
            read: Read::default(),
            delivered: Arc::clone(&delivered),
        };
        tasks.spawn(reader.run(stop.clone()));
    }
    world.until_parked(readers).await?;
    let begun = Instant::now();
    let sent = Load::on(world, feeds).closed_loop(SENDERS, time).await?;
    let deliveries = delivered.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();

    let mut expected = Read::default();
    for version in sent.acknowledged.versions() {
        expected.add(version);
    }
    let until = Instant::now() + PATIENCE;
    while delivered.load(Ordering::Relaxed) < expected.count * readers as u64 && Instant::now() < until {
        sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        let read = ended??;
        ensure!(read == expected, "a reader was given {} events of {}, or others", read.count, expected.count);
    }
    world.until_none_is_parked().await?;
    Ok((deliveries, sent.messages_per_second))
}

/// What a reader received: the number of events, and a hash of their versions in order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    count: u64,
    hash: u64,
}

impl Read {
    fn add(&mut self, version: i64) {
        self.count += 1;
        // FNV-1a over whole words.
        self.hash = (self.hash ^ version.unsigned_abs()).wrapping_mul(0x0100_0000_01b3);
    }
}

struct Reader {
    number: usize,
    address: SocketAddr,
    token: String,
    next: i64,
    read: Read,
    delivered: Arc<AtomicU64>,
}

impl Reader {
    async fn run(mut self, stop: CancellationToken) -> anyhow::Result<Read> {
        let mut wire = Wire::connect_numbered(self.number, self.address).await?;
        loop {
            let request = get(&format!("/message/query?a={}&wait=60&limit=1000", self.next), &self.token);
            wire.send(&request).await?;
            let page = tokio::select! {
                page = wire.receive() => page?,
                () = stop.cancelled() => return Ok(self.read),
            };
            page.check()?;
            if self.number.is_multiple_of(READS_EVERY_WORD) {
                messages_of(&page.body)?;
            }
            let before = self.read.count;
            for version in versions_in(&page.body) {
                let version = version?;
                ensure!(version > self.next, "version {version} appears behind {}", self.next);
                self.next = version;
                self.read.add(version);
            }
            self.next = self.next.max(page.feed_next);
            self.delivered.fetch_add(self.read.count - before, Ordering::Relaxed);
        }
    }
}
