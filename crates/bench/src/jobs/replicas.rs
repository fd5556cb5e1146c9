//! The job `replicas`: senders divided over several service processes on one PostgreSQL, and wakes across them.

use super::wake::{Cell, QUIET, push_notify};
use crate::{
    load::{Load, checked},
    plan::Plan,
    stats::{Results, count, of_processes, of_senders},
    targets::ONE_PROCESS,
    world::{Feed, World},
    yardsticks,
};

const JOB: &str = "replicas";

pub async fn run(world: &mut World, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    let Some(url) = world.database_url() else {
        results.leave_out("replicas: more processes cannot be started on a PostgreSQL that is not ours");
        return Ok(());
    };
    let parked = plan.sizes.replica_parked;
    plan.says("replicas: creating feeds");
    let feeds = world.feeds(parked.max(plan.sizes.feeds), JOB).await?;
    let sent_to = &feeds[..plan.sizes.feeds];
    for round in 1..=plan.rounds {
        let mut of_one = Vec::new();
        for &processes in plan.sizes.replicas {
            let what = of_processes(processes);
            plan.says(&format!("replicas, round {round}: {what}"));
            world.serve(&vec![url.clone(); processes]).await?;
            for (place, &senders) in plan.sizes.replica_senders.iter().enumerate() {
                let load = Load::on_all(world, sent_to);
                let sent = checked(world, sent_to, load.closed_loop(senders, plan.time)).await?;
                let (rate, p50) = (sent.messages_per_second, sent.latencies.at(0.5));
                if processes == 1 {
                    of_one.push((rate, p50));
                }
                let one = of_one.get(place).filter(|_| processes > 1);
                let what = format!("{what}, {}", of_senders(senders));
                let beside: Vec<_> = one.map(|(rate, _)| (ONE_PROCESS, *rate)).into_iter().collect();
                results.push(JOB, &what, "throughput", "messages/s", rate, &beside);
                let beside: Vec<_> = one.map(|(_, p50)| (ONE_PROCESS, *p50)).into_iter().collect();
                results.push_latencies_beside(JOB, &what, &sent.latencies, &beside);
            }
            if processes > 1 {
                let what = format!("{what}, {} parked, quiet", count(parked));
                wake(world, plan, results, &feeds[..parked], &what).await?;
            }
        }
    }
    world.serve(&[url]).await?;
    Ok(())
}

/// Sent at one process, read at another.
async fn wake(world: &World, plan: &Plan, results: &mut Results, feeds: &[Feed], what: &str) -> anyhow::Result<()> {
    let Some(url) = world.yardsticks_url() else { return Ok(()) };
    let notify = yardsticks::notify_round_trip(&url, plan.time / 2).await?;
    let reader = world.addresses().get(1).copied().unwrap_or(world.address);
    let cell = Cell { feeds, rate: QUIET, time: plan.time, counts_transactions: false };
    let woken = cell.measure_at(world, reader).await?;
    let above = woken.latencies.at(0.99) - notify.at(0.99);
    results.push(JOB, what, "p99 above NOTIFY", "ms", above, &[]);
    results.push_latencies(JOB, what, &woken.latencies);
    push_notify(results, what, &notify);
    Ok(())
}
