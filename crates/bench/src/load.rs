//! Senders: in a closed loop (each sends again when it is answered) or at a fixed rate.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::ensure;
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
    time::Instant,
};
use uuid::Uuid;

use crate::{
    check::{Acknowledged, batch, message, turn, versions_of},
    generator::generate,
    stats::Latencies,
    wire::{Wire, post},
    world::{Feed, World},
};

/// Senders that share a fixed rate: enough for a stall of some ten milliseconds at 1,000/s; longer
/// ones show in the latencies all the same, which count from the intended time.
const PACED_SENDERS: usize = 64;

/// Where to send to and what. Message number n goes to session n, counted round.
#[derive(Clone)]
pub struct Load {
    /// The senders are divided over these.
    pub addresses: Arc<[SocketAddr]>,
    pub path: &'static str,
    pub token: String,
    pub sessions: Arc<[String]>,
    /// Messages in a request; 1: not as an array.
    pub batch: usize,
    /// Whether each message has an `Id` of the client's.
    pub with_ids: bool,
    pub numbers: Arc<AtomicU64>,
}

/// What a cell gave.
pub struct Sent {
    pub messages_per_second: f64,
    /// When the measured time began.
    pub from: Instant,
    pub latencies: Latencies,
    pub acknowledged: Acknowledged,
    /// When each message was due, by its number, where a rate is fixed.
    pub due: Vec<(u64, Instant)>,
}

impl Load {
    /// Single messages to the sessions of `feeds`, through the gateway.
    pub fn on(world: &World, feeds: &[Feed]) -> Self {
        Self {
            addresses: [world.address].into(),
            path: "/message/send",
            token: world.gateway_token.clone(),
            sessions: feeds.iter().map(|feed| feed.session.clone()).collect(),
            batch: 1,
            with_ids: false,
            numbers: world.numbers(),
        }
    }

    /// As [`Load::on`], with the senders divided over all service processes.
    pub fn on_all(world: &World, feeds: &[Feed]) -> Self {
        Self { addresses: world.addresses().into(), ..Self::on(world, feeds) }
    }

    /// So many senders, each of which sends again when it is answered. Measured after a tenth of
    /// the time: throughput by the answers within it, latencies by the requests begun in it.
    ///
    /// # Errors
    /// When a message is refused or a connection ends.
    pub async fn closed_loop(&self, senders: usize, time: Duration) -> anyhow::Result<Sent> {
        let load = self.clone();
        generate(async move { load.in_turn(senders, time).await }).await
    }

    async fn in_turn(&self, senders: usize, time: Duration) -> anyhow::Result<Sent> {
        let mut wires = Vec::with_capacity(senders);
        for number in 0..senders {
            wires.push(Wire::connect_numbered(number, self.addresses[number % self.addresses.len()]).await?);
        }
        let from = Instant::now() + time / 10;
        let until = from + time;
        let mut tasks = JoinSet::new();
        for mut wire in wires {
            let load = self.clone();
            tasks.spawn(async move {
                let mut told = Told::new()?;
                while Instant::now() < until {
                    let started = Instant::now();
                    load.send(&mut wire, &mut told.acknowledged).await?;
                    let ended = Instant::now();
                    if started >= from {
                        told.latencies.record(ended - started);
                    }
                    if ended >= from && ended <= until {
                        told.messages += load.batch;
                    }
                }
                anyhow::Ok(told)
            });
        }
        collect(tasks, from, time).await
    }

    /// So many messages a second, whatever the answers. Latencies count from the moment at which a
    /// message was due, so that a stall is seen by all who were due in it.
    ///
    /// # Errors
    /// As [`Load::closed_loop`].
    pub async fn open_loop(&self, rate: u32, time: Duration) -> anyhow::Result<Sent> {
        let (from, due) = (Instant::now(), pace(rate, time)?);
        let mut wires = Vec::new();
        for number in 0..PACED_SENDERS {
            wires.push(Wire::connect_numbered(number, self.addresses[number % self.addresses.len()]).await?);
        }
        let mut tasks = JoinSet::new();
        for mut wire in wires {
            let (load, due) = (self.clone(), Arc::clone(&due));
            tasks.spawn(async move {
                let mut told = Told::new()?;
                loop {
                    let next = due.lock().await.recv().await;
                    let Some(at) = next else { return anyhow::Ok(told) };
                    let number = load.send(&mut wire, &mut told.acknowledged).await?;
                    told.latencies.record(at.elapsed());
                    told.due.push((number, at));
                    told.messages += load.batch;
                }
            });
        }
        collect(tasks, from, time).await
    }

    /// Gives the number of the first message.
    async fn send(&self, wire: &mut Wire, acknowledged: &mut Acknowledged) -> anyhow::Result<u64> {
        let first = self.numbers.fetch_add(self.batch as u64, Ordering::Relaxed);
        let answered = wire.exchange_ok(&self.request(first)).await?;
        let versions = versions_of(&answered.body)?;
        ensure!(versions.len() == self.batch, "{} messages were answered with {}", self.batch, versions.len());
        for (number, version) in (first..).zip(versions) {
            acknowledged.note(number, version);
        }
        Ok(first)
    }

    fn request(&self, first: u64) -> Vec<u8> {
        let body = if self.batch == 1 {
            let id = self.with_ids.then(|| Uuid::now_v7().to_string());
            message(&self.sessions[turn(first, self.sessions.len())], first, id.as_deref())
        } else {
            batch(&self.sessions, first, self.batch as u64)
        };
        post(self.path, &self.token, &body)
    }
}

/// The moments of a fixed rate, each given out when it has come. A thread of its own keeps them,
/// because the runtime's timers are as coarse as the latencies to be measured (1 ms).
///
/// # Errors
/// When there are too many.
pub fn pace(rate: u32, time: Duration) -> anyhow::Result<Arc<Mutex<mpsc::Receiver<Instant>>>> {
    let total = u32::try_from(time.as_millis() * u128::from(rate) / 1000)?.max(1);
    // Room for all: the thread never waits for the senders.
    let (give, due) = mpsc::channel(usize::try_from(total)?);
    let start = Instant::now() + Duration::from_millis(20);
    let gap = Duration::from_secs(1) / rate;
    // Ends by itself; nobody has to wait for it.
    drop(std::thread::spawn(move || {
        for turn in 0..total {
            let at = start + gap * turn;
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            if give.try_send(at).is_err() {
                return;
            }
        }
    }));
    Ok(Arc::new(Mutex::new(due)))
}

/// What one sender has to tell.
struct Told {
    acknowledged: Acknowledged,
    latencies: Latencies,
    messages: usize,
    due: Vec<(u64, Instant)>,
}

impl Told {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { acknowledged: Acknowledged::default(), latencies: Latencies::new()?, messages: 0, due: Vec::new() })
    }
}

async fn collect(mut tasks: JoinSet<anyhow::Result<Told>>, from: Instant, time: Duration) -> anyhow::Result<Sent> {
    let mut all = Told::new()?;
    while let Some(ended) = tasks.join_next().await {
        let told = ended??;
        all.latencies.add(&told.latencies)?;
        all.acknowledged.extend(told.acknowledged);
        all.messages += told.messages;
        all.due.extend(told.due);
    }
    let messages_per_second = all.messages as f64 / time.as_secs_f64();
    Ok(Sent { messages_per_second, from, latencies: all.latencies, acknowledged: all.acknowledged, due: all.due })
}

/// Sends, and checks that all of it can be read as it was acknowledged. Nobody else may write to
/// `feeds` meanwhile.
///
/// # Errors
/// As `sending`, or with what is wrong.
pub async fn checked(
    world: &World,
    feeds: &[Feed],
    sending: impl Future<Output = anyhow::Result<Sent>>,
) -> anyhow::Result<Sent> {
    let before = world.head().await?;
    let mut sent = sending.await?;
    std::mem::take(&mut sent.acknowledged).check(world.address, feeds, before).await?;
    Ok(sent)
}
