//! The job `growth`.

use super::{Plan, stats::Results, world::World};

pub async fn run(world: &mut World, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    let _ = (world, plan, results);
    Ok(())
}
