//! `deskfeed bench`: measures the service beside what the same machine does without it, and checks
//! every message on the way. How to read it: `bench/README.md`.

mod append;
mod check;
mod fanout;
mod generator;
mod history;
mod load;
mod machine;
mod parked;
mod plan;
mod polls;
mod process;
mod report;
mod restart;
mod stats;
mod targets;
mod wake;
mod wire;
mod world;
pub mod yardsticks;

use std::{path::PathBuf, process::ExitCode};

use anyhow::ensure;
use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

pub use self::plan::Plan;
use self::{plan::Size, report::Report, stats::Results, world::World};
use crate::config::DatabaseArgs;

#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// What to measure [default: all].
    #[arg(long, value_delimiter = ',', value_enum)]
    jobs: Vec<Job>,
    /// How large.
    #[arg(long, value_enum, default_value = "quick")]
    size: Size,
    /// How often each cell is measured; the figure is the median [default: 3; smoke: 1].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: Option<u32>,
    /// How long each cell is measured, in seconds [default: smoke 0.2, quick 1, full 4].
    #[arg(long)]
    seconds: Option<f64>,
    /// Prints everything as JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Writes results.json, machine.txt and report.txt into this folder.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Measures a running service instead of starting one. It should have no agents but the benchmark's own.
    #[arg(long, requires = "admin_token")]
    url: Option<String>,
    /// Admin token of that service.
    #[arg(long, env = "DESKFEED_ADMIN_TOKEN", hide_env_values = true)]
    admin_token: Option<String>,
}

/// In the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Job {
    Append,
    Batch,
    Disk,
    Wake,
    Fanout,
    Pages,
    Parked,
    Restart,
    Growth,
}

pub async fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    ensure!(args.seconds.is_none_or(|seconds| seconds > 0.0 && seconds < 3600.0), "--seconds must be 0..3600");
    ensure!(
        args.url.is_some() || args.database.url()?.is_none(),
        "the benchmark makes a PostgreSQL of its own: unset DATABASE_URL, or aim at a running service with --url"
    );
    machine::raise_open_files();
    let plan = Plan::new(args);
    plan.says("starting PostgreSQL and the service");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut world = World::start(args).await?;
    let mut results = Results::default();
    let measured = tokio::select! {
        measured = measure(args, &plan, &mut world, &mut results) => Some(measured),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    let machine = report::machine(&world).await;
    plan.progress.finish_and_clear();
    world.stop().await?;
    let Some(()) = measured else {
        eprintln!("The benchmark was broken off; there are no figures.");
        return Ok(ExitCode::FAILURE);
    };
    let report = Report { size: plan.size, rounds: plan.rounds, seconds: plan.time.as_secs_f64(), machine, results };
    report.publish(args.json, args.out.as_deref())?;
    Ok(if report.results.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the jobs. One that fails leaves no figures, and the next one runs.
async fn measure(args: &BenchArgs, plan: &Plan, world: &mut World, results: &mut Results) {
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
        }
    }
}

impl Job {
    fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Batch => "batch",
            Self::Disk => "disk",
            Self::Wake => "wake",
            Self::Fanout => "fanout",
            Self::Pages => "pages",
            Self::Parked => "parked",
            Self::Restart => "restart",
            Self::Growth => "growth",
        }
    }
}
