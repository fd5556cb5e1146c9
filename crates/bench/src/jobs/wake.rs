//! The job `wake`: parked polls, each on its own feed, and messages at a fixed rate.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use anyhow::Context;
use tokio::time::{Instant, sleep};

use crate::{
    load::Load,
    plan::Plan,
    polls::{Given, Polls},
    stats::{Latencies, Results, count},
    targets::{NAIVE_POLL, NOTIFY_ROUND_TRIP},
    world::{Feed, World, head},
    yardsticks,
};

/// Messages a second under quiet traffic.
pub const QUIET: u32 = 200;
/// PostgreSQL's backends report their statistics at most ten seconds after their last transaction.
const STATISTICS_ARE_IN: Duration = Duration::from_millis(10_500);

pub async fn run(world: &mut World, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    let most = plan.sizes.wake_parked.iter().copied().max().unwrap_or(1);
    plan.says(&format!("wake: making {most} feeds"));
    let feeds = world.feeds(most, "wake").await?;
    for round in 1..=plan.rounds {
        let mut of_fewest = None;
        for &parked in plan.sizes.wake_parked {
            for (rate, load) in [(QUIET, "quiet".to_owned()), (plan.sizes.rate, offered(plan.sizes.rate))] {
                let what = format!("{} parked, {load}", count(parked));
                plan.says(&format!("wake, round {round}: {what}"));
                let mut notify = None;
                if let Some(url) = world.yardsticks_url() {
                    notify = Some(yardsticks::notify_round_trip(&url, plan.time / 2).await?);
                }
                let is_counted = rate == plan.sizes.rate && plan.sizes.wake_parked.len() > 1;
                let cell = Cell { feeds: &feeds[..parked], rate, time: plan.time, counts_transactions: is_counted };
                // Half of the naive server's time before the cell and half after it, so that drift affects both alike.
                let is_quiet = rate == QUIET;
                let before = if is_quiet { naive(world, plan, parked).await? } else { None };
                let woken = cell.measure(world).await?;
                let after = if is_quiet { naive(world, plan, parked).await? } else { None };
                let mut beside = Vec::new();
                if let Some(notify) = &notify {
                    beside.push((NOTIFY_ROUND_TRIP, notify.at(0.5)));
                    let above = woken.latencies.at(0.99) - notify.at(0.99);
                    results.push("wake", &what, "p99 above NOTIFY", "ms", above, &[]);
                    push_notify(results, &what, notify);
                }
                if let (Some(before), Some(after)) = (before, after) {
                    beside.push((NAIVE_POLL, f64::midpoint(before, after)));
                }
                results.push_latencies_beside("wake", &what, &woken.latencies, &beside);
                if let Some(transactions) = woken.transactions_per_second {
                    let few = *of_fewest.get_or_insert(transactions);
                    let name = format!("{} parked", count(plan.sizes.wake_parked[0]));
                    results.push("wake", &what, "transactions", "1/s", transactions, &[(&name, few)]);
                }
            }
        }
    }
    Ok(())
}

/// Measures p50 of the naive server, in ms, in half of the time of the same cell.
async fn naive(world: &World, plan: &Plan, parked: usize) -> anyhow::Result<Option<f64>> {
    if world.yardsticks_url().is_none() {
        return Ok(None);
    }
    let feed = |number: usize| format!("feed-{number}");
    let feeds: Vec<Feed> =
        (0..parked).map(|number| Feed { agent: feed(number), token: feed(number), session: feed(number) }).collect();
    let server = world.yardsticks();
    let polls = Polls::park_at(server, "", &feeds, head(server, "").await?).await?;
    let load = Load { addresses: [server].into(), ..Load::on(world, &feeds) };
    let sent = load.open_loop(QUIET, plan.time / 2).await?;
    let given = polls.end(world, sent.acknowledged).await?;
    Ok(Some(since_due(&sent.due, given)?.at(0.5)))
}

fn offered(rate: u32) -> String {
    format!("{} messages/s", count(rate))
}

pub fn push_notify(results: &mut Results, what: &str, notify: &Latencies) {
    let name = format!("{NOTIFY_ROUND_TRIP}, before {what}");
    for (metric, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        results.push_yardstick(&name, metric, "ms", notify.at(quantile));
    }
}

/// One cell: a poll on each feed, and messages at a fixed rate to all of them in turn.
pub struct Cell<'a> {
    pub feeds: &'a [Feed],
    pub rate: u32,
    pub time: Duration,
    pub counts_transactions: bool,
}

/// Results of a cell.
pub struct Woken {
    /// From the moment a message was due to the last byte of the poll that brought it.
    pub latencies: Latencies,
    /// Of the whole database while messages were sent.
    pub transactions_per_second: Option<f64>,
}

impl Cell<'_> {
    /// # Errors
    /// When a reader received anything other than what was acknowledged.
    pub async fn measure(&self, world: &World) -> anyhow::Result<Woken> {
        self.measure_at(world, world.address).await
    }

    /// As [`Cell::measure`], with the polls at a given service process.
    ///
    /// # Errors
    /// As [`Cell::measure`].
    pub async fn measure_at(&self, world: &World, reader: SocketAddr) -> anyhow::Result<Woken> {
        let polls = Polls::park_at(reader, &world.admin, self.feeds, world.head().await?).await?;
        let url = world.database_url().filter(|_| self.counts_transactions);
        let before = settled_transactions(url.as_deref()).await?;
        let sent = Load::on(world, self.feeds).open_loop(self.rate, self.time).await?;
        let after = settled_transactions(url.as_deref()).await?;
        let given = polls.end(world, sent.acknowledged).await?;

        let latencies = since_due(&sent.due, given)?;
        let transactions = before.zip(after).map(|(before, after)| (after - before) as f64 / self.time.as_secs_f64());
        Ok(Woken { latencies, transactions_per_second: transactions })
    }
}

/// From the moment each message was due to the last byte of the poll that brought it.
fn since_due(due: &[(u64, Instant)], given: Vec<Given>) -> anyhow::Result<Latencies> {
    let due: HashMap<u64, Instant> = due.iter().copied().collect();
    let mut latencies = Latencies::new()?;
    for message in given {
        let due = due.get(&message.number).context("a message that was never due")?;
        latencies.record(message.at.saturating_duration_since(*due));
    }
    Ok(latencies)
}

async fn settled_transactions(url: Option<&str>) -> anyhow::Result<Option<i64>> {
    let Some(url) = url else { return Ok(None) };
    sleep(STATISTICS_ARE_IN).await;
    yardsticks::transactions(url).await.map(Some)
}
