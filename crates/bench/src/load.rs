//! Senders, in a closed loop (each sends again as soon as it is answered) or at a fixed rate.

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
    time::{Instant, sleep},
};
use uuid::Uuid;

use crate::{
    check::{Acknowledged, batch, message, turn, versions_of},
    generator::generate,
    stats::Latencies,
    wire::{Wire, post},
    world::{Feed, World},
};

/// Senders that share a fixed rate: enough to absorb a stall of tens of milliseconds at 1,000/s. Longer stalls still
/// show in the latencies, which count from the intended time.
const PACED_SENDERS: usize = 64;
/// Pause before a retry.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// Where to send, and what. Message n goes to session n modulo the number of sessions.
#[derive(Clone)]
pub struct Load {
    /// The senders are divided over these.
    pub addresses: Arc<[SocketAddr]>,
    pub path: &'static str,
    pub token: String,
    pub sessions: Arc<[String]>,
    /// Messages per request; 1: a single object instead of an array.
    pub batch: usize,
    /// Whether each message has a client-generated `Id`.
    pub with_ids: bool,
    /// Whether a message that is answered with 503 is sent again; for messages with `Id`s.
    pub retries: bool,
    pub numbers: Arc<AtomicU64>,
}

/// Results of a cell.
pub struct Sent {
    pub messages_per_second: f64,
    /// When the measured time began.
    pub from: Instant,
    pub latencies: Latencies,
    pub acknowledged: Acknowledged,
    /// Number of each message and the moment it was due; only at a fixed rate.
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
            retries: false,
            numbers: world.numbers(),
        }
    }

    /// As [`Load::on`], with the senders divided over all service processes.
    pub fn on_all(world: &World, feeds: &[Feed]) -> Self {
        Self { addresses: world.addresses().into(), ..Self::on(world, feeds) }
    }

    /// Runs `senders` senders, each of which sends again as soon as it is answered. The first tenth is not measured.
    /// Throughput counts the answers within the measured time, latencies the requests that began in it.
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

    /// Sends at a fixed rate, regardless of the answers. Latencies count from the moment a message was due, so a stall
    /// shows in all messages that were due in it.
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

    /// Returns the number of the first message.
    async fn send(&self, wire: &mut Wire, acknowledged: &mut Acknowledged) -> anyhow::Result<u64> {
        let first = self.numbers.fetch_add(self.batch as u64, Ordering::Relaxed);
        let request = self.request(first);
        let mut answered = wire.exchange(&request).await?;
        while self.retries && answered.status == 503 {
            sleep(RETRY_PAUSE).await;
            answered = wire.exchange(&request).await?;
        }
        answered.check()?;
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

/// Yields the moments of a fixed rate as they pass. A dedicated thread keeps the time, because the runtime's timers
/// are as coarse (1 ms) as the latencies to be measured.
///
/// # Errors
/// When there are too many.
pub fn pace(rate: u32, time: Duration) -> anyhow::Result<Arc<Mutex<mpsc::Receiver<Instant>>>> {
    let total = u32::try_from(time.as_millis() * u128::from(rate) / 1000)?.max(1);
    // The channel holds all of them: the thread never waits for the senders.
    let (give, due) = mpsc::channel(usize::try_from(total)?);
    let start = Instant::now() + Duration::from_millis(20);
    let gap = Duration::from_secs(1) / rate;
    // Ends by itself; nothing needs to join it.
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

/// Results of one sender.
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

/// Sends, then checks that everything can be read as it was acknowledged. Nothing else may write to `feeds` meanwhile.
///
/// # Errors
/// As `sending`, or when a message is missing, changed or unexpected.
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
