//! The job `distance`: senders and desks at service processes that are away from PostgreSQL, next to near ones; and a
//! thousand opens at once at a far process while another is near.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use serde_json::json;
use tokio::{
    sync::Barrier,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::desk;
use crate::{
    desk::Desk,
    load::{Load, checked},
    plan::Plan,
    postgres::url_at,
    proxy::Proxy,
    stats::{Results, count, of_conversations, of_processes, of_senders},
    targets::{NEAR, ONE_PROCESS},
    wire::{Wire, post},
    world::{Feed, World},
    yardsticks,
};

const JOB: &str = "distance";
/// Of the opens at once.
const FAR: Duration = Duration::from_millis(4);
/// Messages a second through the near process meanwhile.
const MEANWHILE: u32 = 200;
const MEANWHILE_TIME: Duration = Duration::from_secs(4);

pub async fn run(world: &mut World, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    if world.database_url().is_none() {
        results.leave_out("distance: a PostgreSQL that is not ours stays where it is");
        return Ok(());
    }
    world.renew().await?;
    let near = world.database_url().context("a database")?;
    let feeds = world.feeds(plan.sizes.feeds, JOB).await?;
    // They live until nothing is connected through them.
    let mut places = Vec::new();
    for &micros in plan.sizes.distances_micros {
        let round_trip = Duration::from_micros(micros);
        let (proxy, url) = proxy(world, round_trip)?;
        places.push((away(round_trip), url, proxy));
    }
    for round in 1..=plan.rounds {
        let mut cells = Cells::default();
        for &processes in plan.sizes.distance_processes {
            plan.says(&format!("{JOB}, round {round}: near, {}", of_processes(processes)));
            serve(world, &near, processes).await?;
            cells.measure(world, plan, results, &feeds, "near", processes).await?;
            for (away, far, _) in &places {
                plan.says(&format!("{JOB}, round {round}: {away}, {}", of_processes(processes)));
                if processes == 1 {
                    let bare = yardsticks::round_trip(far, plan.time / 4).await?;
                    results.push_yardstick(&format!("select 1, {away}"), "p50", "ms", bare.at(0.5));
                    results.push_yardstick(&format!("select 1, {away}"), "p99", "ms", bare.at(0.99));
                }
                serve(world, far, processes).await?;
                cells.measure(world, plan, results, &feeds, away, processes).await?;
            }
        }
        opens_at_once(world, plan, results, &feeds).await?;
    }
    world.serve(&[near]).await?;
    Ok(())
}

/// `0.5 ms away`.
fn away(round_trip: Duration) -> String {
    format!("{} ms away", round_trip.as_secs_f64() * 1000.0)
}

async fn serve(world: &mut World, url: &str, processes: usize) -> anyhow::Result<()> {
    world.serve(&vec![url.to_owned(); processes]).await?;
    Ok(())
}

/// A proxy to our PostgreSQL, and the URL of the service's database behind it.
fn proxy(world: &World, round_trip: Duration) -> anyhow::Result<(Proxy, String)> {
    let postgres = world.postgres().context("our PostgreSQL")?;
    let proxy = Proxy::start(postgres.socket(), round_trip)?;
    let url = url_at(proxy.address(), world.database().context("our database")?);
    Ok((proxy, url))
}

/// The rates of one round, for the ratios: place, processes, what, rate.
#[derive(Default)]
struct Cells(Vec<(String, usize, String, f64)>);

impl Cells {
    async fn measure(
        &mut self,
        world: &World,
        plan: &Plan,
        results: &mut Results,
        feeds: &[Feed],
        place: &str,
        processes: usize,
    ) -> anyhow::Result<()> {
        for &senders in plan.sizes.distance_senders {
            let load = Load::on_all(world, feeds);
            let sent = checked(world, feeds, load.closed_loop(senders, plan.time)).await?;
            let of = of_senders(senders);
            let what = format!("{place}, {}, {of}", of_processes(processes));
            let beside = self.beside(place, processes, &of, sent.messages_per_second);
            results.push(JOB, &what, "throughput", "messages/s", sent.messages_per_second, &beside);
            results.push_latencies(JOB, &what, &sent.latencies);
        }
        for &conversations in plan.sizes.distance_conversations {
            let worked = desk::work(world, plan, conversations).await?;
            let of = of_conversations(conversations);
            let what = format!("{place}, {}, {of}", of_processes(processes));
            let beside = self.beside(place, processes, &of, worked.operations_per_second);
            desk::push(results, JOB, &what, &worked, &beside);
        }
        Ok(())
    }

    /// Notes a rate; returns those that it is compared with: as many processes near, and one process at the same
    /// place.
    fn beside(&mut self, place: &str, processes: usize, of: &str, rate: f64) -> Vec<(&'static str, f64)> {
        let found = |at: &str, number: usize| {
            self.0.iter().find(|(place, processes, what, _)| place == at && *processes == number && what == of)
        };
        let mut beside = Vec::new();
        if let Some((.., near)) = found("near", processes) {
            beside.push((NEAR, *near));
        }
        if let Some((.., one)) = found(place, 1).filter(|_| processes > 1) {
            beside.push((ONE_PROCESS, *one));
        }
        self.0.push((place.to_owned(), processes, of.to_owned(), rate));
        beside
    }
}

/// Opens at a far process, all at once, while another, near one takes messages at a fixed rate.
async fn opens_at_once(world: &mut World, plan: &Plan, results: &mut Results, feeds: &[Feed]) -> anyhow::Result<()> {
    let opens = plan.sizes.opens_at_once;
    let what = format!("{} opens at once, {}", count(opens), away(FAR));
    plan.says(&format!("{JOB}: {what}"));
    let near = world.database_url().context("a database")?;
    let (proxy, far) = proxy(world, FAR)?;
    world.serve(&[near.clone(), far]).await?;
    let tag = format!("opens-{}", uuid::Uuid::new_v4().simple());
    let desk = Desk::create(world, opens / 4, &tag).await?;
    let far = *world.addresses().last().context("a far process")?;
    let (start, mut tasks) = (Arc::new(Barrier::new(opens + 1)), JoinSet::new());
    for number in 0..opens {
        let (start, token) = (Arc::clone(&start), desk.gateway.token.clone());
        let session = format!("{tag}-{number}");
        tasks.spawn(async move {
            let mut wire = Wire::connect_numbered(number, far).await?;
            let body = json!({"SessionId": session, "FromId": "customer"}).to_string();
            start.wait().await;
            let begun = Instant::now();
            let answered = wire.exchange(&post("/session/open", &token, body.as_bytes())).await?;
            anyhow::Ok((answered.status, begun.elapsed()))
        });
    }
    // A refused message is a late one, and not the end of the job.
    let load = Load { with_ids: true, retries: true, ..Load::on(world, feeds) };
    let sending = checked(world, feeds, load.open_loop(MEANWHILE, MEANWHILE_TIME));
    let opening = async {
        // The sends are under way.
        sleep(MEANWHILE_TIME / 8).await;
        start.wait().await;
        let (mut opened, mut last) = (0_u32, Duration::ZERO);
        while let Some(ended) = tasks.join_next().await {
            let (status, took) = ended??;
            opened += u32::from(status == 200);
            last = last.max(took);
        }
        anyhow::Ok((opened, last))
    };
    let (sent, opened) = tokio::join!(sending, opening);
    let ((opened, last), sent) = (opened?, sent?);
    results.push(JOB, &what, "answered 200", "", f64::from(opened), &[]);
    results.push(JOB, &what, "all answered", "s", last.as_secs_f64(), &[]);
    results.push(JOB, &what, "sends meanwhile, p50", "ms", sent.latencies.at(0.5), &[]);
    results.push(JOB, &what, "sends meanwhile, p99", "ms", sent.latencies.at(0.99), &[]);
    desk.close(world).await?;
    world.serve(&[near]).await?;
    drop(proxy);
    Ok(())
}
