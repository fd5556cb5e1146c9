//! Measures deskfeed next to what the same machine does without it, and checks every message. How to use it:
//! `bench/README.md`.

mod args;
mod binary;
mod check;
mod desk;
mod generator;
mod jobs;
mod load;
mod machine;
mod plan;
mod polls;
mod postgres;
mod process;
mod proxy;
mod report;
mod stats;
mod targets;
mod wire;
mod world;
mod yardsticks;

use std::process::ExitCode;

use anyhow::ensure;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    args::{BenchArgs, Cli, Command},
    plan::Plan,
    report::Report,
    stats::Results,
    world::World,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::WARN).init();
    let outcome = generator::runtime(None, "deskfeed-bench").and_then(|runtime| {
        runtime.block_on(async {
            match cli.command {
                Some(Command::Yardsticks(args)) => yardsticks::server::run(&args).await,
                None => run(&cli.bench).await,
            }
        })
    });
    outcome.unwrap_or_else(|error| {
        eprintln!("deskfeed-bench: {error:#}");
        ExitCode::FAILURE
    })
}

async fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    ensure!(args.seconds.is_none_or(|seconds| seconds > 0.0 && seconds < 3600.0), "--seconds must be 0..3600");
    machine::raise_open_files();
    let plan = Plan::new(args);
    plan.says("starting PostgreSQL and the service");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut world = World::start(args).await?;
    let mut results = Results::default();
    let measured = tokio::select! {
        measured = jobs::run(args, &plan, &mut world, &mut results) => Some(measured),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    let machine = report::machine(&world).await;
    plan.progress.finish_and_clear();
    world.stop().await?;
    let Some(()) = measured else {
        eprintln!("The benchmark was interrupted; there are no figures.");
        return Ok(ExitCode::FAILURE);
    };
    let report = Report { size: plan.size, rounds: plan.rounds, seconds: plan.time.as_secs_f64(), machine, results };
    report.publish(args.json, args.out.as_deref())?;
    Ok(if report.results.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
