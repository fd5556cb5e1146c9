//! Polling clients, each on its own connection.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{bail, ensure};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    check::{Acknowledged, messages_of},
    wire::{Wire, get},
    world::{Feed, World, until_parked},
};

/// The longest `wait`, in seconds: polls stay parked for a whole cell.
const WAIT: u64 = 60;
/// How long the last message may take to reach its reader.
const PATIENCE: Duration = Duration::from_secs(30);
/// Clients connect in groups of this size.
const ARRIVING: usize = 256;
/// A client that lost its connection reconnects after 20 to 40 ms.
const COMES_BACK_MS: u64 = 20;

/// A message that a reader received.
#[derive(Debug, Clone, Copy)]
pub struct Given {
    pub version: i64,
    pub number: u64,
    /// When the last byte of its answer arrived.
    pub at: Instant,
}

/// Clients that poll until this is dropped.
pub struct Polls {
    clients: JoinSet<anyhow::Result<Client>>,
    feeds: usize,
    delivered: Arc<AtomicU64>,
    stop: CancellationToken,
}

impl Polls {
    /// Starts a client on each of `feeds` from version `after`, and waits until the service has parked all of them.
    ///
    /// # Errors
    /// When one cannot be parked.
    pub async fn park(world: &World, feeds: &[Feed], after: i64) -> anyhow::Result<Self> {
        Self::park_at(world.address, &world.admin, feeds, after).await
    }

    /// As [`Polls::park`], at a given server. `token` may read its metrics.
    ///
    /// # Errors
    /// When one cannot be parked.
    pub async fn park_at(server: SocketAddr, token: &str, feeds: &[Feed], after: i64) -> anyhow::Result<Self> {
        let mut polls = Self {
            clients: JoinSet::new(),
            feeds: feeds.len(),
            delivered: Arc::default(),
            stop: CancellationToken::new(),
        };
        for (chunk, some) in feeds.chunks(ARRIVING).enumerate() {
            for (place, feed) in some.iter().enumerate() {
                let client = Client {
                    number: chunk * ARRIVING + place,
                    address: server,
                    token: feed.token.clone(),
                    next: after,
                    given: Vec::new(),
                };
                polls.clients.spawn(client.run(Arc::clone(&polls.delivered), polls.stop.clone()));
            }
            if let Err(error) = until_parked(server, token, (chunk * ARRIVING + some.len()).min(feeds.len())).await {
                return Err(polls.why(error).await);
            }
        }
        Ok(polls)
    }

    /// Waits until everything that was acknowledged has reached the readers, and stops them. They must have received
    /// exactly that.
    ///
    /// # Errors
    /// Describes the first difference.
    pub async fn end(mut self, world: &World, acknowledged: Acknowledged) -> anyhow::Result<Vec<Given>> {
        let until = Instant::now() + PATIENCE;
        while self.delivered.load(Ordering::Relaxed) < acknowledged.count() as u64 && Instant::now() < until {
            sleep(Duration::from_millis(5)).await;
        }
        self.stop.cancel();
        let mut all = Vec::with_capacity(acknowledged.count());
        let mut read = vec![Vec::new(); self.feeds];
        while let Some(ended) = self.clients.join_next().await {
            let client = ended??;
            read[client.number] = client.given.iter().map(|given| (given.version, given.number)).collect();
            all.extend(client.given);
        }
        acknowledged.compare(&read)?;
        world.until_none_is_parked().await?;
        Ok(all)
    }

    /// Returns a client's own error, which says more than that a client is missing.
    async fn why(mut self, missing: anyhow::Error) -> anyhow::Error {
        self.stop.cancel();
        while let Some(ended) = self.clients.join_next().await {
            match ended {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return error,
                Err(error) => return error.into(),
            }
        }
        missing
    }
}

struct Client {
    number: usize,
    address: SocketAddr,
    token: String,
    next: i64,
    given: Vec<Given>,
}

/// Why a poll failed.
enum Failed {
    /// The service is gone or draining.
    Gone,
    /// The service misbehaved.
    Wrong(anyhow::Error),
}

impl Client {
    async fn run(mut self, delivered: Arc<AtomicU64>, stop: CancellationToken) -> anyhow::Result<Self> {
        let mut wire: Option<Wire> = None;
        loop {
            let polled = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(self),
                polled = self.poll(&mut wire) => polled,
            };
            match polled {
                Ok(count) => {
                    delivered.fetch_add(count, Ordering::Relaxed);
                }
                Err(Failed::Wrong(error)) => return Err(error),
                Err(Failed::Gone) => {
                    wire = None;
                    let spread = COMES_BACK_MS + self.number as u64 % COMES_BACK_MS;
                    tokio::select! {
                        () = stop.cancelled() => return Ok(self),
                        () = sleep(Duration::from_millis(spread)) => {}
                    }
                }
            }
        }
    }

    /// Polls once; returns the number of messages.
    async fn poll(&mut self, wire: &mut Option<Wire>) -> Result<u64, Failed> {
        let open = match wire {
            Some(open) => open,
            None => {
                let connected = Wire::connect_numbered(self.number, self.address).await;
                wire.insert(connected.map_err(|_| Failed::Gone)?)
            }
        };
        let request = get(&format!("/message/query?a={}&wait={WAIT}&limit=1000", self.next), &self.token);
        open.send(&request).await.map_err(|_| Failed::Gone)?;
        drop(request);
        let answered = open.receive().await.map_err(|_| Failed::Gone)?;
        let at = Instant::now();
        match answered.status {
            200 => {}
            503 => return Err(Failed::Gone),
            _ => answered.check().map_err(Failed::Wrong)?,
        }
        self.take(&answered.body, answered.feed_next, at).map_err(Failed::Wrong)
    }

    fn take(&mut self, body: &[u8], feed_next: i64, at: Instant) -> anyhow::Result<u64> {
        let messages = messages_of(body)?;
        if let Some((version, _)) = messages.first() {
            ensure!(*version > self.next, "version {version} appears behind {}", self.next);
        }
        ensure!(feed_next >= self.next, "Feed-Next goes back from {} to {feed_next}", self.next);
        let last = messages.last().map_or(0, |(version, _)| *version);
        if feed_next < last {
            bail!("Feed-Next {feed_next} is below version {last}, which came with it");
        }
        self.next = feed_next;
        self.given.extend(messages.iter().map(|&(version, number)| Given { version, number, at }));
        Ok(messages.len() as u64)
    }
}
