//! The job `standby`: appends that wait for a synchronous standby, near and 2 ms away.

use std::time::Duration;

use anyhow::Context;

use crate::{
    load::{Load, checked},
    plan::Plan,
    postgres::{Postgres, conninfo_at},
    proxy::Proxy,
    stats::{Results, of_senders},
    targets::{MULTI_ROW_100, NO_STANDBY},
    world::{Feed, World},
    yardsticks::{self, tables},
};

const JOB: &str = "standby";
const FAR: Duration = Duration::from_millis(2);

pub async fn run(world: &mut World, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    if world.database_url().is_none() {
        results.leave_out("standby: a PostgreSQL that is not ours has the standbys that it has");
        return Ok(());
    }
    world.renew().await?;
    let feeds = world.feeds(plan.sizes.feeds, JOB).await?;
    plan.says("standby: pg_basebackup");
    let primary = world.postgres().context("our PostgreSQL")?;
    let proxy = Proxy::start(primary.socket(), FAR)?;
    let places = [("near", primary.conninfo()), ("2 ms away", conninfo_at(proxy.address()))];
    let mut standby = primary.standby(world.folder().join("standby"), &places[0].1).await?;
    let measured = measure(world, plan, results, &feeds, &places, &mut standby).await;
    // Also after a failure: without the standby, every later commit would wait for it.
    tables::set_synchronous(&url(world)?, false).await?;
    standby.stop().await?;
    measured
}

async fn measure(
    world: &World,
    plan: &Plan,
    results: &mut Results,
    feeds: &[Feed],
    places: &[(&str, String); 2],
    standby: &mut Postgres,
) -> anyhow::Result<()> {
    let url = url(world)?;
    for round in 1..=plan.rounds {
        let mut alone = Vec::new();
        plan.says(&format!("standby, round {round}: none"));
        for &senders in plan.sizes.standby_senders {
            alone.push(cell(world, plan, results, feeds, "no standby", senders, &[]).await?);
        }
        for (place, from) in places {
            plan.says(&format!("standby, round {round}: {place}"));
            standby.follow(from).await?;
            tables::set_synchronous(&url, true).await?;
            for (&senders, alone) in plan.sizes.standby_senders.iter().zip(&alone) {
                let beside = yardsticks::multi_row(&url_of_yardsticks(world)?, 100, plan.time / 2).await?;
                let beside = [(NO_STANDBY, *alone), (MULTI_ROW_100, beside)];
                cell(world, plan, results, feeds, place, senders, &beside).await?;
            }
            tables::set_synchronous(&url, false).await?;
        }
    }
    Ok(())
}

/// Returns messages/s.
async fn cell(
    world: &World,
    plan: &Plan,
    results: &mut Results,
    feeds: &[Feed],
    place: &str,
    senders: usize,
    beside: &[(&str, f64)],
) -> anyhow::Result<f64> {
    let sent = checked(world, feeds, Load::on(world, feeds).closed_loop(senders, plan.time)).await?;
    let what = format!("{place}, {}", of_senders(senders));
    results.push(JOB, &what, "throughput", "messages/s", sent.messages_per_second, beside);
    results.push_latencies(JOB, &what, &sent.latencies);
    Ok(sent.messages_per_second)
}

fn url(world: &World) -> anyhow::Result<String> {
    world.database_url().context("a database of ours")
}

fn url_of_yardsticks(world: &World) -> anyhow::Result<String> {
    world.yardsticks_url().context("a database of ours")
}
