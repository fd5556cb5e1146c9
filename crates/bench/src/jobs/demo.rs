//! The job `demo`: `deskfeed demo` against the service, with the conversations of `--dialogues`, else its own.

use std::path::Path;

use anyhow::{Context, ensure};
use tokio::process::Command;

use crate::{plan::Plan, stats::Results, world::World};

pub async fn run(
    world: &mut World,
    plan: &Plan,
    results: &mut Results,
    dialogues: Option<&Path>,
) -> anyhow::Result<()> {
    if world.service_program().is_none() {
        results.leave_out("demo: it leaves agents behind, which a service of --url would keep");
        return Ok(());
    }
    let what = if dialogues.is_some() { "64 conversations, --dialogues" } else { "64 conversations" };
    for round in 1..=plan.rounds {
        plan.says(&format!("demo, round {round}"));
        // It wants a desk without other agents.
        world.renew().await?;
        let program = world.service_program().context("a program")?;
        let mut demo = Command::new(program);
        demo.args(["demo", "--exit", "--concurrency", "64", "--log", "warn"]);
        demo.args(["--url", &format!("http://{}", world.address), "--admin-token", &world.admin]);
        if let Some(dialogues) = dialogues {
            demo.arg("--dialogues").arg(dialogues);
        }
        let ended = demo.kill_on_drop(true).output().await?;
        let said = String::from_utf8_lossy(&ended.stdout);
        ensure!(ended.status.success(), "deskfeed demo: {said}{}", String::from_utf8_lossy(&ended.stderr));
        for metric in ["p50", "p99"] {
            let value = wake(&said, metric).with_context(|| format!("deskfeed demo names no {metric}: {said}"))?;
            results.push("demo", what, &format!("wake {metric}"), "ms", value, &[]);
        }
    }
    Ok(())
}

/// From a line such as `wake latency    p50 2.1 ms, p99 9.8 ms (...)`.
fn wake(said: &str, metric: &str) -> Option<f64> {
    let line = said.lines().find(|line| line.starts_with("wake latency"))?;
    let (_, after) = line.split_once(&format!("{metric} "))?;
    after.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_read() {
        let said = "events          7\nwake latency    p50 2.1 ms, p99 19.8 ms (from a POST)\n";
        assert_eq!((wake(said, "p50"), wake(said, "p99")), (Some(2.1), Some(19.8)));
        assert_eq!(wake("nothing", "p50"), None);
    }
}
