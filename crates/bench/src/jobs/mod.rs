//! What is measured, one job a file.

mod acks;
mod append;
mod demo;
mod desk;
mod distance;
mod fanout;
mod history;
mod parked;
mod rare;
mod replicas;
mod restart;
mod standby;
mod wake;

use clap::ValueEnum;

use crate::{
    args::{BenchArgs, Job},
    plan::Plan,
    stats::Results,
    world::World,
};

/// Runs the jobs. A job that fails has no figures, and the next one runs.
pub async fn run(args: &BenchArgs, plan: &Plan, world: &mut World, results: &mut Results) {
    let is_wanted = |job: Job| args.jobs.is_empty() || args.jobs.contains(&job);
    let mut is_done = false;
    for &job in Job::value_variants().iter().filter(|job| is_wanted(**job)) {
        plan.says(job.name());
        let done = match job {
            Job::Append => append::run(world, plan, results).await,
            Job::Batch => append::run_batches(world, plan, results).await,
            Job::Disk => append::run_disk(world, plan, results).await,
            Job::Wake => wake::run(world, plan, results).await,
            Job::Fanout => fanout::run(world, plan, results).await,
            Job::Replicas => replicas::run(world, plan, results).await,
            Job::Desk => desk::run(world, plan, results).await,
            Job::Rare => rare::run(world, plan, results).await,
            Job::Acks => acks::run(world, plan, results).await,
            Job::Distance => distance::run(world, plan, results).await,
            Job::Standby => standby::run(world, plan, results).await,
            Job::Demo => demo::run(world, plan, results, args.dialogues.as_deref()).await,
            // One table grows for both.
            Job::Pages | Job::Growth if is_done => continue,
            Job::Pages | Job::Growth => {
                is_done = true;
                history::run(world, plan, results, is_wanted(Job::Pages), is_wanted(Job::Growth)).await
            }
            Job::Parked => parked::run(world, plan, results).await,
            Job::Restart => restart::run(world, plan, results).await,
        };
        if let Err(error) = done {
            results.fail(job.name(), &error);
            // It may have left processes behind that the next job does not want.
            if let Some(url) = world.database_url()
                && let Err(error) = world.serve(&[url]).await
            {
                results.fail(job.name(), &error);
                return;
            }
        }
    }
}
