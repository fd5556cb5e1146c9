//! The job `acks`: agents in instant mode, each poll acknowledging the page before.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use tokio::{
    sync::Barrier,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::desk::pure_senders;
use crate::{
    check::{messages_of, versions_in},
    load::Load,
    plan::Plan,
    stats::{Latencies, Results, count},
    targets::PURE_SENDERS,
    wire::{Response, Wire, get},
    world::{Feed, World},
};

const JOB: &str = "acks";
/// Senders, in a closed loop.
const SENDERS: usize = 64;
/// How long the last message may take to be acknowledged.
const DELIVERED_MAX: Duration = Duration::from_secs(30);

pub async fn run(world: &mut World, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    world.renew_if_own().await?;
    let most = plan.sizes.ack_agents.iter().copied().max().unwrap_or(1);
    plan.says("acks: creating feeds");
    let feeds = world.feeds(most, JOB).await?;
    for round in 1..=plan.rounds {
        for &agents in plan.sizes.ack_agents {
            let what = format!("{} agents", count(agents));
            plan.says(&format!("acks, round {round}: {what}"));
            let feeds = &feeds[..agents];
            let senders = SENDERS.min(agents);
            let before = pure_senders(world, plan, feeds, senders).await?;
            let acked = cell(world, feeds, senders, plan.time).await?;
            let after = pure_senders(world, plan, feeds, senders).await?;
            let beside = (PURE_SENDERS, f64::midpoint(before, after));
            results.push(JOB, &what, "throughput", "events/s", acked.per_second, &[beside]);
            results.push(JOB, &what, "sent", "messages/s", acked.sent_per_second, &[]);
            results.push_latencies(JOB, &what, &acked.polls);
        }
    }
    Ok(())
}

struct Acked {
    /// Events delivered and acknowledged.
    per_second: f64,
    sent_per_second: f64,
    /// From a poll with acknowledgements to its answer: how soon there is another page.
    polls: Latencies,
}

async fn cell(world: &World, feeds: &[Feed], senders: usize, time: Duration) -> anyhow::Result<Acked> {
    let (stop, delivered) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
    let (mut readers, drained) = (JoinSet::new(), Arc::new(Barrier::new(feeds.len() + 1)));
    for (number, feed) in feeds.iter().enumerate() {
        let reader = Reader {
            number,
            address: world.address,
            token: feed.token.clone(),
            drained: Arc::clone(&drained),
            delivered: Arc::clone(&delivered),
            told: Told::default(),
        };
        readers.spawn(reader.run(stop.clone()));
    }
    timeout(DELIVERED_MAX, drained.wait()).await.context("a feed has always more that is not acknowledged")?;
    world.until_parked(feeds.len()).await?;
    let sent = Load::on(world, feeds).closed_loop(senders, time).await?;
    let until = Instant::now() + DELIVERED_MAX;
    while delivered.load(Ordering::Relaxed) < sent.acknowledged.count() as u64 && Instant::now() < until {
        sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    let (mut acked, mut polls, mut read) = (0, Latencies::new()?, vec![Vec::new(); feeds.len()]);
    while let Some(ended) = readers.join_next().await {
        let (number, told) = ended??;
        let within = told.acked.iter().filter(|(at, _)| *at >= sent.from && *at <= sent.from + time);
        acked += within.map(|(_, events)| events).sum::<usize>();
        told.polls.iter().for_each(|poll| polls.record(*poll));
        read[number] = told.messages;
    }
    let (sent_per_second, seconds) = (sent.messages_per_second, time.as_secs_f64());
    sent.acknowledged.compare(&read)?;
    world.until_none_is_parked().await?;
    Ok(Acked { per_second: acked as f64 / seconds, sent_per_second, polls })
}

/// What a reader was given.
#[derive(Default)]
struct Told {
    /// (version, number)
    messages: Vec<(i64, u64)>,
    /// When how many events were acknowledged.
    acked: Vec<(Instant, usize)>,
    polls: Vec<Duration>,
}

/// An agent in instant mode.
struct Reader {
    number: usize,
    address: SocketAddr,
    token: String,
    /// Passed when everything from before the cell is acknowledged.
    drained: Arc<Barrier>,
    /// Counts the messages that all readers were given.
    delivered: Arc<AtomicU64>,
    told: Told,
}

impl Reader {
    async fn run(mut self, stop: CancellationToken) -> anyhow::Result<(usize, Told)> {
        let mut wire = Wire::connect_numbered(self.number, self.address).await?;
        // What earlier jobs left behind is acknowledged first.
        let mut page = Page::default();
        loop {
            page = Page::of(&wire.exchange_ok(&self.request(0, &page)).await?)?;
            if page.events == 0 {
                break;
            }
        }
        self.drained.wait().await;
        loop {
            let begun = Instant::now();
            wire.send(&self.request(60, &page)).await?;
            let answered = tokio::select! {
                answered = wire.receive() => answered?,
                () = stop.cancelled() => break,
            };
            answered.check()?;
            self.acknowledged(&page, begun.elapsed());
            page = Page::of(&answered)?;
            let messages = messages_of(&answered.body)?;
            self.delivered.fetch_add(messages.len() as u64, Ordering::Relaxed);
            self.told.messages.extend(messages);
        }
        // The poll that was given up had recorded its acknowledgements, or this one does.
        let mut wire = Wire::connect_numbered(self.number, self.address).await?;
        let left = Page::of(&wire.exchange_ok(&self.request(0, &page)).await?)?;
        ensure!(left.events == 0, "{} events that were acknowledged are given again", left.events);
        Ok((self.number, self.told))
    }

    fn acknowledged(&mut self, page: &Page, took: Duration) {
        if page.events > 0 {
            self.told.acked.push((Instant::now(), page.events));
            self.told.polls.push(took);
        }
    }

    fn request(&self, wait: u32, page: &Page) -> Vec<u8> {
        let acks = if page.events > 0 { format!("&c={}-{}", page.first, page.last) } else { String::new() };
        get(&format!("/message/query?wait={wait}&limit=1000{acks}"), &self.token)
    }
}

/// What a page holds.
#[derive(Default)]
struct Page {
    first: i64,
    last: i64,
    events: usize,
}

impl Page {
    fn of(answered: &Response) -> anyhow::Result<Self> {
        let mut page = Self::default();
        for version in versions_in(&answered.body) {
            page.last = version?;
            if page.events == 0 {
                page.first = page.last;
            }
            page.events += 1;
        }
        Ok(page)
    }
}
