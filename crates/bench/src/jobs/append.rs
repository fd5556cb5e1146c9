//! The jobs that send: `append` (one message a request), `batch` (arrays of 100) and `disk`.

use std::time::Duration;

use crate::{
    check::CONTENT_BYTES,
    generator::generate,
    load::{Load, checked},
    plan::{Plan, Size},
    stats::{Latencies, Results, count, of_connections, of_senders},
    targets::{COMMIT_AND_OK, LIMITS, MULTI_ROW_100, MULTI_ROW_1000, NAIVE_HTTP, OK_REQUESTS, SENDERS_64, SINGLE_HTTP},
    world::{Feed, World},
    yardsticks::{self, BARE_CONNECTIONS_MAX, Bare, tables},
};

/// Messages per array of the job `batch`.
const BATCH: usize = 100;
/// Senders of the cell with client-generated `Id`s.
const SENDERS_WITH_IDS: usize = 64;

/// Measures one message per request, from senders in a closed loop and at a fixed rate.
pub async fn run(world: &mut World, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    let feeds = world.feeds(plan.sizes.feeds, "append").await?;
    let load = Load::on(world, &feeds);
    if world.yardsticks_url().is_none() {
        results.leave_out("append, batch: yardsticks in PostgreSQL, which is not ours with --url");
    }
    if plan.size != Size::Smoke {
        plan.says("waiting until the service knows that it is alone");
    }
    for round in 1..=plan.rounds {
        let mut of_64 = None;
        for &senders in plan.sizes.senders {
            plan.says(&format!("append, round {round}: {}", of_senders(senders)));
            let rate = cell(world, plan, results, &feeds, &load, senders, of_64).await?;
            of_64 = of_64.or((senders == 64).then_some(rate));
        }
        plan.says(&format!("append, round {round}: client Ids, fixed rate, bare yardsticks"));
        let senders = SENDERS_WITH_IDS.min(plan.sizes.senders.iter().copied().max().unwrap_or(1));
        let with_ids = Load { with_ids: true, ..load.clone() };
        let sent = checked(world, &feeds, with_ids.closed_loop(senders, plan.time)).await?;
        let what = format!("{}, client Ids", of_senders(senders));
        results.push("append", &what, "throughput", "messages/s", sent.messages_per_second, &[]);
        results.push_latencies("append", &what, &sent.latencies);

        let sent = checked(world, &feeds, load.open_loop(plan.sizes.rate, plan.time)).await?;
        let what = format!("{} messages/s offered", count(plan.sizes.rate));
        results.push_latencies("append", &what, &sent.latencies);
        bare(world, plan, results).await?;
    }
    Ok(())
}

/// Measures one cell between two halves of its yardsticks, so that drift affects both alike. Returns messages/s.
async fn cell(
    world: &World,
    plan: &Plan,
    results: &mut Results,
    feeds: &[Feed],
    load: &Load,
    senders: usize,
    of_64: Option<f64>,
) -> anyhow::Result<f64> {
    let before = Beside::measure(world, load, senders, plan.time / 2).await?;
    let sent = checked(world, feeds, load.closed_loop(senders, plan.time)).await?;
    let after = Beside::measure(world, load, senders, plan.time / 2).await?;

    let what = of_senders(senders);
    let mut beside = Beside::mean(&before, &after);
    beside.extend(limits(&beside));
    beside.extend(of_64.map(|rate| (SENDERS_64, rate)));
    results.push("append", &what, "throughput", "messages/s", sent.messages_per_second, &beside);
    let mut floor = Vec::new();
    if senders == 1
        && let (Some(before), Some(after)) = (before.floor_ms, after.floor_ms)
    {
        floor.push((COMMIT_AND_OK, f64::midpoint(before, after)));
    }
    results.push_latencies_beside("append", &what, &sent.latencies, &floor);
    let spread = sent.latencies.at(0.99) / sent.latencies.at(0.5);
    results.push("append", &what, "p99 / p50", "", spread, &[]);
    Ok(sent.messages_per_second)
}

/// The rate of HTTP and PostgreSQL one after the other.
fn limits(rates: &[(&'static str, f64)]) -> Option<(&'static str, f64)> {
    let of = |wanted| rates.iter().find(|(name, _)| *name == wanted).map(|(_, rate)| *rate);
    Some((LIMITS, 1.0 / (1.0 / of(OK_REQUESTS)? + 1.0 / of(MULTI_ROW_100)?)))
}

/// Yardsticks measured just before or after a cell, with as many senders.
struct Beside {
    /// By name, in messages, rows or requests per second.
    rates: Vec<(&'static str, f64)>,
    /// A bare commit of one row plus an `ok` round trip, in ms: the minimum latency of one sender.
    floor_ms: Option<f64>,
}

impl Beside {
    async fn measure(world: &World, load: &Load, senders: usize, time: Duration) -> anyhow::Result<Self> {
        let ok = generate(yardsticks::ok(world.yardsticks(), senders, time)).await?;
        let (mut rates, mut floor_ms) = (vec![(OK_REQUESTS, ok.per_second)], None);
        if let Some(url) = world.yardsticks_url() {
            for (name, path) in [(NAIVE_HTTP, "/naive"), (SINGLE_HTTP, "/single")] {
                let theirs = Load { addresses: [world.yardsticks()].into(), path, ..load.clone() };
                rates.push((name, theirs.closed_loop(senders, time).await?.messages_per_second));
            }
            rates.push((MULTI_ROW_100, yardsticks::multi_row(&url, BATCH, time).await?));
            if senders == 1 {
                let commit = yardsticks::bare(&url, 1, Bare::Single, time).await?;
                floor_ms = Some(commit.latencies.at(0.5) + ok.latencies.at(0.5));
            }
        }
        Ok(Self { rates, floor_ms })
    }

    fn mean(before: &Self, after: &Self) -> Vec<(&'static str, f64)> {
        let both = before.rates.iter().zip(&after.rates);
        both.map(|((name, before), (_, after))| (*name, f64::midpoint(*before, *after))).collect()
    }
}

/// Measures the yardsticks on their own, once a round.
async fn bare(world: &World, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    let largest = plan.sizes.senders.iter().copied().max().unwrap_or(1);
    for &connections in plan.sizes.senders {
        let ok = generate(yardsticks::ok(world.yardsticks(), connections, plan.time / 2)).await?;
        let what = format!("ok server, {}", of_connections(connections));
        results.push_yardstick(&what, "throughput", "requests/s", ok.per_second);
        push_usual(results, &what, &ok.latencies);
    }
    let Some(url) = world.yardsticks_url() else { return Ok(()) };
    let mut connections: Vec<usize> = plan.sizes.senders.iter().map(|&n| n.min(BARE_CONNECTIONS_MAX)).collect();
    connections.dedup();
    for connections in connections {
        for (name, how) in [("transaction with NOTIFY", Bare::Notifying), ("single insert", Bare::Single)] {
            let measured = yardsticks::bare(&url, connections, how, plan.time / 2).await?;
            let what = format!("{name}, bare, {}", of_connections(connections));
            results.push_yardstick(&what, "throughput", "messages/s", measured.per_second);
            push_usual(results, &what, &measured.latencies);
        }
    }
    for (name, rows) in [(MULTI_ROW_100, 100), (MULTI_ROW_1000, 1000)] {
        let per_second = yardsticks::multi_row(&url, rows, plan.time / 2).await?;
        results.push_yardstick(name, "throughput", "rows/s", per_second);
    }
    for (name, path) in [(NAIVE_HTTP, "/naive"), (SINGLE_HTTP, "/single")] {
        let load = Load {
            addresses: [world.yardsticks()].into(),
            path,
            token: world.gateway_token.clone(),
            sessions: ["nobody's".to_owned()].into(),
            batch: 1,
            with_ids: false,
            retries: false,
            numbers: world.numbers(),
        };
        let sent = load.closed_loop(largest, plan.time / 2).await?;
        let what = format!("{name}, {}", of_senders(largest));
        results.push_yardstick(&what, "throughput", "messages/s", sent.messages_per_second);
        push_usual(results, &what, &sent.latencies);
    }
    Ok(())
}

fn push_usual(results: &mut Results, what: &str, latencies: &Latencies) {
    results.push_yardstick(what, "p50", "ms", latencies.at(0.5));
    results.push_yardstick(what, "p99", "ms", latencies.at(0.99));
}

/// Measures arrays of 100 messages from senders in a closed loop.
pub async fn run_batches(world: &mut World, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    let feeds = world.feeds(plan.sizes.feeds, "batch").await?;
    let load = Load { batch: BATCH, ..Load::on(world, &feeds) };
    let url = world.yardsticks_url();
    for round in 1..=plan.rounds {
        for &senders in plan.sizes.batch_senders {
            let what = of_senders(senders);
            plan.says(&format!("batch, round {round}: {what}"));
            let mut rates = Vec::new();
            if let Some(url) = &url {
                rates.push(yardsticks::multi_row(url, BATCH, plan.time / 2).await?);
            }
            let sent = checked(world, &feeds, load.closed_loop(senders, plan.time)).await?;
            if let Some(url) = &url {
                rates.push(yardsticks::multi_row(url, BATCH, plan.time / 2).await?);
            }
            let mean = rates.iter().sum::<f64>() / 2.0;
            let beside: &[(&str, f64)] = if rates.is_empty() { &[] } else { &[(MULTI_ROW_100, mean)] };
            results.push("batch", &what, "throughput", "messages/s", sent.messages_per_second, beside);
            results.push_latencies("batch", &what, &sent.latencies);
        }
    }
    Ok(())
}

/// Measures how much the tables grow per message, including indexes.
pub async fn run_disk(world: &mut World, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    let Some(url) = world.database_url() else {
        results.leave_out("disk: the database of a service of --url is not ours to look into");
        return Ok(());
    };
    let feeds = world.feeds(plan.sizes.feeds, "disk").await?;
    let mut connection = tables::connect(&url).await?;
    for round in 1..=plan.rounds {
        plan.says(&format!("disk, round {round}"));
        let before = tables::disk_bytes(&mut connection).await?;
        let filled = world.fill(&feeds, plan.sizes.disk_messages, &plan.progress).await?;
        let after = tables::disk_bytes(&mut connection).await?;
        let each = (after - before) as f64 / filled.count as f64;
        results.push("disk", &format!("messages of {CONTENT_BYTES} bytes"), "size", "bytes", each, &[]);
    }
    Ok(())
}
