//! The job `restart`: the service is stopped and started under parked clients and a sender.

use std::{net::SocketAddr, sync::Arc, sync::atomic::AtomicU64, sync::atomic::Ordering, time::Duration};

use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    check::{Acknowledged, message, turn, versions_of},
    plan::Plan,
    polls::Polls,
    stats::{Results, count},
    wire::{Wire, post},
    world::World,
};

/// Pause between two messages, and before a retry.
const PAUSE: Duration = Duration::from_millis(10);

pub async fn run(world: &mut World, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    if world.service_pid().is_none() {
        results.leave_out("restart: a service of --url is not restarted");
        return Ok(());
    }
    let clients = plan.sizes.restart_clients;
    let what = format!("{} clients", count(clients));
    plan.says("restart: making feeds");
    let feeds = world.feeds(clients, "restart").await?;
    for round in 1..=plan.rounds {
        plan.says(&format!("restart, round {round}: {what}"));
        let polls = Polls::park(world, &feeds, world.head().await?).await?;
        let stop = CancellationToken::new();
        let sender = Sender {
            address: world.address,
            gateway: world.gateway_token.clone(),
            sessions: feeds.iter().map(|feed| feed.session.clone()).collect(),
            numbers: world.numbers(),
            stop: stop.clone(),
        };
        let mut sending = JoinSet::new();
        sending.spawn(sender.run());
        sleep(plan.time / 2).await;
        let served = world.restart_service().await?;
        world.until_parked(clients).await?;
        let again = served.elapsed();
        sleep(plan.time / 2).await;
        stop.cancel();
        let mut acknowledged = Acknowledged::default();
        while let Some(sent) = sending.join_next().await {
            acknowledged.extend(sent??);
        }
        let messages = acknowledged.count();
        polls.end(world, acknowledged).await?;
        results.push("restart", &what, "parked again", "s", again.as_secs_f64(), &[]);
        results.push("restart", &what, "messages meanwhile", "", messages as f64, &[]);
    }
    Ok(())
}

/// A gateway that keeps sending, and retries unanswered messages with the same `Id`.
struct Sender {
    address: SocketAddr,
    gateway: String,
    sessions: Vec<String>,
    numbers: Arc<AtomicU64>,
    stop: CancellationToken,
}

impl Sender {
    async fn run(self) -> anyhow::Result<Acknowledged> {
        let mut acknowledged = Acknowledged::default();
        let mut wire = None;
        while !self.stop.is_cancelled() {
            let number = self.numbers.fetch_add(1, Ordering::Relaxed);
            let session = &self.sessions[turn(number, self.sessions.len())];
            let body = message(session, number, Some(&Uuid::now_v7().to_string()));
            let request = post("/message/send", &self.gateway, &body);
            loop {
                match exchange(&mut wire, self.address, &request).await {
                    Some(answered) if answered.status != 503 => {
                        answered.check()?;
                        for version in versions_of(&answered.body)? {
                            acknowledged.note(number, version);
                        }
                        break;
                    }
                    _ => wire = None,
                }
                sleep(PAUSE).await;
            }
            sleep(PAUSE).await;
        }
        Ok(acknowledged)
    }
}

/// Sends a request; `None` if the connection was lost or cannot be opened.
async fn exchange(wire: &mut Option<Wire>, to: SocketAddr, request: &[u8]) -> Option<crate::wire::Response> {
    let open = match wire {
        Some(open) => open,
        None => wire.insert(Wire::connect(to).await.ok()?),
    };
    open.exchange(request).await.ok()
}
