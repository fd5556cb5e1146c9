//! The job `desk`: conversations with all that belongs to them, next to as many senders of messages alone.

use std::sync::Arc;

use crate::{
    desk::{Desk, Worked},
    load::{Load, checked},
    plan::Plan,
    stats::{Results, of_conversations, of_processes},
    targets::PURE_SENDERS,
    world::{Feed, World},
};

const JOB: &str = "desk";

pub async fn run(world: &mut World, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    world.renew_if_own().await?;
    if world.database_url().is_none() {
        results.leave_out("desk: several processes; a PostgreSQL that is not ours has the ones that it has");
    }
    let feeds = world.feeds(plan.sizes.feeds, JOB).await?;
    for round in 1..=plan.rounds {
        for &processes in plan.sizes.desk_processes {
            if let Some(url) = world.database_url() {
                world.serve(&vec![url; processes]).await?;
            } else if processes > 1 {
                continue;
            }
            for &conversations in plan.sizes.conversations {
                let what = format!("{}, {}", of_conversations(conversations), of_processes(processes));
                plan.says(&format!("desk, round {round}: {what}"));
                let before = pure_senders(world, plan, &feeds, conversations).await?;
                let worked = work(world, plan, conversations).await?;
                let after = pure_senders(world, plan, &feeds, conversations).await?;
                let beside = (PURE_SENDERS, f64::midpoint(before, after));
                push(results, JOB, &what, &worked, &[beside]);
            }
        }
    }
    if let Some(url) = world.database_url() {
        world.serve(&[url]).await?;
    }
    Ok(())
}

/// One cell, with agents and a gateway of its own.
///
/// # Errors
/// As [`Desk::work`].
pub async fn work(world: &World, plan: &Plan, conversations: usize) -> anyhow::Result<Worked> {
    let tag = format!("desk-{}", uuid::Uuid::new_v4().simple());
    let desk = Arc::new(Desk::create(world, conversations, &tag).await?);
    let worked = desk.work(world, conversations, plan.time).await?;
    desk.close(world).await?;
    Ok(worked)
}

/// The figures of a cell.
pub fn push(results: &mut Results, job: &str, what: &str, worked: &Worked, beside: &[(&str, f64)]) {
    results.push(job, what, "throughput", "operations/s", worked.operations_per_second, beside);
    results.push_latencies(job, what, &worked.latencies);
    for (metric, quantile) in [("wake p50", 0.5), ("wake p99", 0.99)] {
        results.push(job, what, metric, "ms", worked.wakes.at(quantile), &[]);
    }
}

/// Messages/s of as many senders, over the same processes, for half of the time.
///
/// # Errors
/// As [`checked`].
pub async fn pure_senders(world: &World, plan: &Plan, feeds: &[Feed], senders: usize) -> anyhow::Result<f64> {
    let load = Load::on_all(world, feeds);
    Ok(checked(world, feeds, load.closed_loop(senders, plan.time / 2)).await?.messages_per_second)
}
