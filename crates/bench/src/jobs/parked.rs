//! The job `parked`: many polls held while nothing happens.

use std::time::Duration;

use tokio::time::sleep;

use crate::{
    check::Acknowledged,
    machine,
    plan::{Plan, Size},
    polls::Polls,
    stats::{Results, count},
    world::World,
};

/// Time for memory to settle after the arrivals.
const SETTLE: Duration = Duration::from_secs(3);
/// Duration of the idle measurement.
const IDLE: Duration = Duration::from_secs(10);
/// Feeds that the polls are spread over: each agent has several devices.
const FEEDS_MAX: usize = 10_000;
/// Descriptors that a process needs besides its connections.
const OTHER_FILES: usize = 500;

pub async fn run(world: &mut World, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    if world.service_pid().is_none() {
        results.leave_out("parked: memory and processor time of a service of --url cannot be seen from here");
        return Ok(());
    }
    let (settle, idle) = match plan.size {
        Size::Smoke => (SETTLE / 10, IDLE / 20),
        Size::Quick | Size::Full => (SETTLE, IDLE),
    };
    let room = usize::try_from(machine::open_files_max())?.saturating_sub(OTHER_FILES);
    let most = plan.sizes.parked.iter().copied().max().unwrap_or(1);
    plan.says("parked: making feeds");
    let feeds = world.feeds(most.min(FEEDS_MAX), "parked").await?;
    for round in 1..=plan.rounds {
        for &parked in plan.sizes.parked {
            let what = format!("{} parked", count(parked));
            if parked > room {
                let limit = machine::open_files_max();
                results.leave_out(format!("parked: {what}: a process may open {limit} files; raise `ulimit -Hn`"));
                continue;
            }
            plan.says(&format!("parked, round {round}: {what}"));
            // Memory that earlier polls have freed must not be reused.
            world.restart_service().await?;
            let after = world.head().await?;
            sleep(settle).await;
            let empty = world.rss_bytes().unwrap_or(0);
            let each: Vec<_> = feeds.iter().cycle().take(parked).cloned().collect();
            let polls = Polls::park(world, &each, after).await?;
            sleep(settle).await;
            let full = world.rss_bytes().unwrap_or(0);
            let before = world.cpu_time().unwrap_or_default();
            sleep(idle).await;
            let used = world.cpu_time().unwrap_or_default().saturating_sub(before);
            let held = world.parked().await?;
            polls.end(world, Acknowledged::default()).await?;

            let each = full.saturating_sub(empty) as f64 / 1024.0 / parked as f64;
            results.push("parked", &what, "memory per poll", "KiB", each, &[]);
            results.push("parked", &what, "held at once", "polls", held as f64, &[]);
            let share = used.as_secs_f64() / idle.as_secs_f64() * 100.0;
            results.push("parked", &what, "CPU while idle", "%", share, &[]);
        }
    }
    Ok(())
}
