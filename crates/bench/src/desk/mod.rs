//! A desk at work: agents and a gateway who follow their feeds, and conversations that go on at the same time.

mod conversation;
mod follower;
pub mod ledger;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use self::{
    conversation::{Client, Told},
    follower::Follower,
    ledger::{Kind, Read, compare},
};
use crate::{
    generator::generate,
    stats::Latencies,
    world::{Account, World},
};

/// Conversations per agent.
const PER_AGENT: usize = 4;
/// An agent has colleagues to transfer to, also in the smallest desk.
const AGENTS_MIN: usize = 2;
/// How long the last event may take to reach its reader.
const DELIVERED_MAX: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(5);
/// More than any job opens.
const MAX_SESSIONS: u32 = 1_000_000;
/// Assignments of a session that wait to be looked at: at most two are made.
const ASSIGNMENTS_MAX: usize = 8;

/// Who works at a desk. Feed n is that of agent n; the last feed is the gateway's.
pub struct Desk {
    pub agents: Vec<Account>,
    pub gateway: Account,
    /// Begins the ids of its sessions.
    tag: String,
    by_id: HashMap<String, usize>,
    conversations: AtomicU64,
    numbers: Arc<AtomicU64>,
    assigned: Arc<Assigned>,
}

/// What a cell measured.
pub struct Worked {
    pub operations_per_second: f64,
    /// Of every operation.
    pub latencies: Latencies,
    /// From a message's first byte to the last byte of the poll that brought it to the other side.
    pub wakes: Latencies,
}

impl Desk {
    /// Creates the agents and a gateway of its own, for so many conversations at a time.
    ///
    /// # Errors
    /// When the service refuses something.
    pub async fn create(world: &World, conversations: usize, tag: &str) -> anyhow::Result<Self> {
        let agents = world.agents(conversations.div_ceil(PER_AGENT).max(AGENTS_MIN), tag, MAX_SESSIONS).await?;
        let gateway = world.gateway(tag).await?;
        let by_id = agents.iter().enumerate().map(|(number, agent)| (agent.id.clone(), number)).collect();
        let (tag, numbers) = (format!("{}-session", gateway.id), world.numbers());
        Ok(Self { agents, gateway, tag, by_id, conversations: AtomicU64::new(0), numbers, assigned: Arc::default() })
    }

    /// The agents get no more sessions.
    ///
    /// # Errors
    /// When the service refuses something.
    pub async fn close(&self, world: &World) -> anyhow::Result<()> {
        world.set_away(&self.agents).await
    }

    /// So many conversations at a time, divided over all service processes. Measured after a tenth of the time.
    ///
    /// # Errors
    /// When an operation is refused, or a reader was not given what was sent.
    pub async fn work(self: &Arc<Self>, world: &World, clients: usize, time: Duration) -> anyhow::Result<Worked> {
        let stop = CancellationToken::new();
        let delivered = Arc::new(AtomicU64::new(0));
        let mut followers = self.follow(world, &delivered, &stop).await?;
        let (desk, addresses) = (Arc::clone(self), world.addresses());
        let told = generate(async move {
            let from = Instant::now() + time / 10;
            let mut tasks = JoinSet::new();
            for number in 0..clients {
                let to = addresses[number % addresses.len()];
                let client = Client::new(Arc::clone(&desk), to, from, from + time).await?;
                tasks.spawn(client.run());
            }
            let mut all = Told::new()?;
            while let Some(ended) = tasks.join_next().await {
                let told = ended??;
                all.promised.extend(told.promised);
                all.latencies.add(&told.latencies)?;
                all.operations += told.operations;
                all.sent.extend(told.sent);
            }
            Ok(all)
        });
        let told = tokio::select! {
            told = told => told?,
            // Followers end when they fail.
            Some(ended) = followers.join_next() => {
                ended??;
                anyhow::bail!("a follower has ended early")
            }
        };
        let until = Instant::now() + DELIVERED_MAX;
        while delivered.load(Ordering::Relaxed) < told.promised.len() as u64 && Instant::now() < until {
            sleep(PAUSE).await;
        }
        stop.cancel();
        let mut feeds: Vec<Vec<Read>> = Vec::new();
        feeds.resize_with(self.agents.len() + 1, Vec::new);
        while let Some(ended) = followers.join_next().await {
            let (feed, read) = ended??;
            feeds[feed] = read;
        }
        compare(&told.promised, &feeds)?;
        world.until_none_is_parked().await?;
        let wakes = wakes(&told, &feeds)?;
        let operations_per_second = told.operations as f64 / time.as_secs_f64();
        Ok(Worked { operations_per_second, latencies: told.latencies, wakes })
    }

    /// Parks a follower on each feed, from the newest version on. Agents acknowledge; the gateway does not need to.
    async fn follow(
        &self,
        world: &World,
        delivered: &Arc<AtomicU64>,
        stop: &CancellationToken,
    ) -> anyhow::Result<JoinSet<anyhow::Result<(usize, Vec<Read>)>>> {
        let (head, addresses) = (world.head().await?, world.addresses());
        let mut followers = JoinSet::new();
        let accounts = self.agents.iter().chain([&self.gateway]);
        for (feed, account) in accounts.enumerate() {
            let follower = Follower {
                feed,
                address: addresses[feed % addresses.len()],
                token: account.token.clone(),
                next: head,
                is_agent: feed < self.agents.len(),
                delivered: Arc::clone(delivered),
                assigned: Arc::clone(&self.assigned),
            };
            followers.spawn(follower.run(stop.clone()));
        }
        for (number, address) in addresses.iter().enumerate() {
            let own = (0..=self.agents.len()).filter(|feed| feed % addresses.len() == number).count();
            crate::world::until_parked(*address, &world.admin, own).await?;
        }
        Ok(followers)
    }

    fn gateway_feed(&self) -> usize {
        self.agents.len()
    }

    /// Number of the agent with this id.
    ///
    /// # Errors
    /// When it is not of this desk.
    pub fn agent(&self, id: &str) -> anyhow::Result<usize> {
        self.by_id.get(id).copied().with_context(|| format!("a session went to {id}, who is not of this desk"))
    }
}

fn wakes(told: &Told, feeds: &[Vec<Read>]) -> anyhow::Result<Latencies> {
    let mut given: HashMap<(usize, u64), Instant> = HashMap::new();
    for (feed, read) in feeds.iter().enumerate() {
        for event in read {
            if let Kind::Message(number) = event.kind {
                given.insert((feed, number), event.at);
            }
        }
    }
    let mut latencies = Latencies::new()?;
    for (number, sent, recipient) in &told.sent {
        let at = given.get(&(*recipient, *number)).context("a message that nobody was given")?;
        latencies.record(at.saturating_duration_since(*sent));
    }
    ensure!(latencies.count() > 0, "no message was sent");
    Ok(latencies)
}

/// Tells the clients of queued sessions who was assigned them.
#[derive(Default)]
pub struct Assigned(Mutex<HashMap<String, mpsc::Sender<(usize, i64)>>>);

impl Assigned {
    /// Agent and version of each AddSession of a session in an agent's feed from now on.
    fn watch(&self, session: &str) -> mpsc::Receiver<(usize, i64)> {
        let (tell, told) = mpsc::channel(ASSIGNMENTS_MAX);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(session.to_owned(), tell);
        told
    }

    fn forget(&self, session: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(session);
    }

    fn tell(&self, session: &str, agent: usize, version: i64) {
        let watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tell) = watched.get(session) {
            // The client may be past looking.
            let _ = tell.try_send((agent, version));
        }
    }
}
