//! The jobs `pages` and `growth`: the service is measured at several sizes of one growing table.

use std::time::Duration;

use anyhow::ensure;
use tokio::{task::JoinSet, time::Instant};

use super::wake::Cell;
use crate::{
    check::{messages_of, read_after, versions_in},
    load::{Load, checked},
    plan::Plan,
    stats::{Latencies, Results, count, median},
    targets::{MULTI_ROW_100, OK_REQUESTS, RAW_SCAN},
    wire::{Wire, get},
    world::{Feed, World},
    yardsticks::{self, tables},
};

/// The newest events, which the process that wrote them has in its tail.
const TAIL_EVENTS: i64 = 20_000;
/// Events per page.
const LIMITS: [i64; 2] = [100, 1000];
/// Readers of the tail, in addition to those of [`Plan`].
const TAIL_READERS: usize = 4;
/// Of `growth`.
const GROWTH_SENDERS: usize = 64;
const GROWTH_PARKED: usize = 100;
const GROWTH_RATE: u32 = 200;
const APPEND: &str = "append";
const PAGES: &str = "cold pages";
const WAKE: &str = "wake p50";

/// Direction and source of a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walk {
    /// `a` from the oldest event, by index.
    After,
    /// `b` from the newest event of the cold part, by index.
    Before,
    /// `a` through the newest events, from memory.
    Tail,
}

pub async fn run(
    world: &mut World,
    plan: &Plan,
    results: &mut Results,
    pages: bool,
    growth: bool,
) -> anyhow::Result<()> {
    let mut sizes: Vec<u64> = Vec::new();
    sizes.extend(plan.sizes.page_events.iter().filter(|_| pages));
    sizes.extend(plan.sizes.growth_events.iter().filter(|_| growth));
    sizes.sort_unstable();
    sizes.dedup();
    if world.service_pid().is_some() {
        plan.says("an empty table");
        world.renew().await?;
    } else {
        results.leave_out("growth: a service of --url has the table that it has");
        results.leave_out("pages: its table is filled up with ours; the raw scan is PostgreSQL's, which is not ours");
        sizes.truncate(1);
    }
    let growth = growth && world.service_pid().is_some();
    let feeds = world.feeds(plan.sizes.feeds, "history").await?;
    let start = world.head().await?;
    if let Some(url) = world.yardsticks_url() {
        yardsticks::empty_scan(&url).await?;
    }
    let mut grown = Grown::default();
    for size in sizes {
        let have = u64::try_from(world.head().await? - start)?;
        world.fill(&feeds, size.saturating_sub(have), &plan.progress).await?;
        let at = format!("{} events", count(size));
        if let Some(url) = world.yardsticks_url() {
            plan.says(&format!("filling the yardstick's table: {at}"));
            yardsticks::fill_scan(&url, size, feeds.len()).await?;
        }
        plan.says(&format!("{at}: reading feeds both ways"));
        for feed in feeds.iter().take(2) {
            both_ways(world, feed, start).await?;
        }
        for round in 1..=plan.rounds {
            let walks = Walks { feeds: &feeds, start, time: plan.time };
            if pages && plan.sizes.page_events.contains(&size) {
                for limit in LIMITS {
                    plan.says(&format!("pages, round {round}: {at}, {limit} a page"));
                    walks.cells(world, plan, results, &at, limit).await?;
                }
            }
            if growth && plan.sizes.growth_events.contains(&size) {
                plan.says(&format!("growth, round {round}: {at}"));
                grown.measure(&walks, world, results, &at).await?;
            }
        }
    }
    grown.compare(world, results).await
}

/// Parameters of the walks of a round.
struct Walks<'a> {
    feeds: &'a [Feed],
    /// Version before the first event of the feeds.
    start: i64,
    time: Duration,
}

/// Results of a cell.
struct Walked {
    events_per_second: f64,
    bytes_per_second: f64,
    latencies: Latencies,
}

impl Walks<'_> {
    async fn cells(
        &self,
        world: &World,
        plan: &Plan,
        results: &mut Results,
        at: &str,
        limit: i64,
    ) -> anyhow::Result<()> {
        let mut readers = plan.sizes.page_readers.to_vec();
        readers.push(TAIL_READERS);
        readers.sort_unstable();
        readers.dedup();
        for readers in readers {
            let of = format!("{} reader{}", count(readers), if readers == 1 { "" } else { "s" });
            let ok = yardsticks::ok(world.yardsticks(), readers, self.time / 2).await?;
            let tail = self.walk(world, Walk::Tail, limit, readers).await?;
            let what = format!("{at}: a, {} a page, tail, {of}", count(limit.unsigned_abs()));
            push(results, &what, &tail, &[(OK_REQUESTS, ok.per_second)]);
            if !plan.sizes.page_readers.contains(&readers) {
                continue;
            }
            for (letter, walk) in [("a", Walk::After), ("b", Walk::Before)] {
                let mut raw = Vec::new();
                if let Some(url) = world.yardsticks_url() {
                    let scanned = yardsticks::scan(&url, self.feeds.len(), limit, readers, self.time).await?;
                    raw.push((RAW_SCAN, scanned));
                }
                let walked = self.walk(world, walk, limit, readers).await?;
                let what = format!("{at}: {letter}, {} a page, cold, {of}", count(limit.unsigned_abs()));
                push(results, &what, &walked, &raw);
            }
        }
        Ok(())
    }

    /// Walks through the feeds with several readers, each starting at a different feed.
    async fn walk(&self, world: &World, walk: Walk, limit: i64, readers: usize) -> anyhow::Result<Walked> {
        let head = world.head().await?;
        let tail = head - TAIL_EVENTS.min((head - self.start) / 2);
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        for number in 0..readers {
            let (address, start, time) = (world.address, self.start, self.time);
            let feeds = self.feeds.to_vec();
            tasks.spawn(async move {
                let mut wire = Wire::connect(address).await?;
                let mut walked = Told { events: 0, bytes: 0, latencies: Latencies::new()? };
                // Spread out, as agents are.
                for feed in feeds.iter().cycle().skip(number * feeds.len() / readers) {
                    // A poll that does not wait is always answered from the table.
                    let (letter, wait, mut next) = match walk {
                        Walk::After => ('a', 0, start),
                        Walk::Before => ('b', 0, tail + 1),
                        Walk::Tail => ('a', 60, tail),
                    };
                    loop {
                        let begun = Instant::now();
                        if begun.duration_since(started) >= time {
                            return Ok(walked);
                        }
                        let path = format!("/message/query?{letter}={next}&wait={wait}&limit={limit}&t=Message");
                        let page = wire.exchange_ok(&get(&path, &feed.token)).await?;
                        walked.latencies.record(begun.elapsed());
                        let events = in_order(&page.body, walk, next)?;
                        ensure!(!page.feed_more || events == limit, "{events} of {limit} events, and yet more");
                        walked.events += events.unsigned_abs();
                        walked.bytes += page.body.len() as u64;
                        next = page.feed_next;
                        let is_at_tail = walk == Walk::After && next >= tail;
                        if !page.feed_more || is_at_tail {
                            break;
                        }
                    }
                }
                anyhow::Ok(walked)
            });
        }
        let mut all = Told { events: 0, bytes: 0, latencies: Latencies::new()? };
        while let Some(ended) = tasks.join_next().await {
            let told = ended??;
            all.events += told.events;
            all.bytes += told.bytes;
            all.latencies.add(&told.latencies)?;
        }
        let seconds = started.elapsed().as_secs_f64();
        Ok(Walked {
            events_per_second: all.events as f64 / seconds,
            bytes_per_second: all.bytes as f64 / seconds,
            latencies: all.latencies,
        })
    }
}

/// Results of one reader.
struct Told {
    events: u64,
    bytes: u64,
    latencies: Latencies,
}

fn push(results: &mut Results, what: &str, walked: &Walked, yardsticks: &[(&str, f64)]) {
    results.push("pages", what, "throughput", "events/s", walked.events_per_second, yardsticks);
    results.push("pages", what, "volume", "MB/s", walked.bytes_per_second / 1e6, &[]);
    results.push("pages", what, "p50", "ms", walked.latencies.at(0.5), &[]);
    results.push("pages", what, "p99", "ms", walked.latencies.at(0.99), &[]);
}

/// Counts the events of a page, which must ascend and be on the correct side of the cursor.
fn in_order(body: &[u8], walk: Walk, cursor: i64) -> anyhow::Result<i64> {
    let (mut last, mut events) = (if walk == Walk::Before { 0 } else { cursor }, 0);
    for version in versions_in(body) {
        let version = version?;
        ensure!(version > last, "version {version} comes after {last}");
        ensure!(walk != Walk::Before || version < cursor, "version {version} is not before {cursor}");
        (last, events) = (version, events + 1);
    }
    Ok(events)
}

/// Reads a feed completely, forwards and backwards: the results must be the same.
async fn both_ways(world: &World, feed: &Feed, start: i64) -> anyhow::Result<()> {
    let mut wire = Wire::connect(world.address).await?;
    let forwards = read_after(&mut wire, feed, start).await?;
    let (mut backwards, mut next, mut more) = (Vec::new(), world.head().await? + 1, true);
    while more && next > start {
        let page = wire.exchange_ok(&get(&format!("/message/query?b={next}&limit=1000"), &feed.token)).await?;
        let messages = messages_of(&page.body)?;
        backwards.extend(messages.into_iter().rev().filter(|(version, _)| *version > start));
        ensure!(!page.feed_more || page.feed_next < next, "Feed-Next stays at {next}");
        (next, more) = (page.feed_next, page.feed_more);
    }
    backwards.reverse();
    ensure!(forwards == backwards, "a feed read backwards is not the same feed");
    Ok(())
}

/// Figures of `growth`: metric, size, rounds.
#[derive(Default)]
struct Grown {
    rounds: Vec<(&'static str, String, Vec<f64>)>,
}

impl Grown {
    async fn measure(
        &mut self,
        walks: &Walks<'_>,
        world: &World,
        results: &mut Results,
        at: &str,
    ) -> anyhow::Result<()> {
        let mut beside = Vec::new();
        let mut raw = Vec::new();
        if let Some(url) = world.yardsticks_url() {
            beside.push((MULTI_ROW_100, yardsticks::multi_row(&url, 100, walks.time / 2).await?));
            let scanned = yardsticks::scan(&url, walks.feeds.len(), 1000, 1, walks.time / 2).await?;
            raw.push((RAW_SCAN, scanned));
        }
        let pages = walks.walk(world, Walk::After, 1000, 1).await?.events_per_second;
        self.push(results, at, PAGES, "events/s", pages, &raw);
        let load = Load::on(world, walks.feeds);
        let sent = checked(world, walks.feeds, load.closed_loop(GROWTH_SENDERS, walks.time)).await?;
        self.push(results, at, APPEND, "messages/s", sent.messages_per_second, &beside);
        let feeds = &walks.feeds[..GROWTH_PARKED.min(walks.feeds.len())];
        let cell = Cell { feeds, rate: GROWTH_RATE, time: walks.time, counts_transactions: false };
        let p50 = cell.measure(world).await?.latencies.at(0.5);
        self.push(results, at, WAKE, "ms", p50, &[]);
        Ok(())
    }

    fn push(
        &mut self,
        results: &mut Results,
        at: &str,
        metric: &'static str,
        unit: &str,
        value: f64,
        yardsticks: &[(&str, f64)],
    ) {
        results.push("growth", at, metric, unit, value, yardsticks);
        match self.rounds.iter_mut().find(|(name, size, _)| *name == metric && size == at) {
            Some((_, _, rounds)) => rounds.push(value),
            None => self.rounds.push((metric, at.to_owned(), vec![value])),
        }
    }

    /// Compares the largest table with the smallest.
    async fn compare(self, world: &World, results: &mut Results) -> anyhow::Result<()> {
        let Some(url) = world.database_url() else { return Ok(()) };
        let outgrows = {
            let mut connection = tables::connect(&url).await?;
            // The table of the raw scan counts too.
            tables::server_bytes(&mut connection).await? > tables::shared_buffers_bytes(&mut connection).await?
        };
        for metric in [APPEND, PAGES, WAKE] {
            let mut sizes = self.rounds.iter().filter(|(name, _, _)| *name == metric).map(|(_, _, rounds)| rounds);
            let (Some(first), Some(last)) = (sizes.next(), sizes.next_back()) else { continue };
            let name = match metric {
                PAGES if outgrows => "cold pages, beyond shared_buffers",
                PAGES => "cold pages, in shared_buffers",
                other => other,
            };
            for round in last {
                results.push("growth", "last / first", name, "", round / median(first), &[]);
            }
        }
        Ok(())
    }
}
