//! The jobs that send: `append` (one message a request), `batch` (arrays of 100) and `disk`.

use super::{Plan, stats::Results, world::World};

pub async fn run(world: &mut World, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    let _ = (world, plan, results);
    Ok(())
}

pub async fn run_batches(world: &mut World, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    let _ = (world, plan, results);
    Ok(())
}

pub async fn run_disk(world: &mut World, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    let _ = (world, plan, results);
    Ok(())
}
