//! Readers that follow a feed in `a` mode and acknowledge each page by a range.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Assigned,
    ledger::{Kind, Read, events_of},
};
use crate::wire::{Wire, get};

/// One reader of one feed.
pub struct Follower {
    /// Number of the feed.
    pub feed: usize,
    pub address: SocketAddr,
    pub token: String,
    /// Follows from here.
    pub next: i64,
    /// Agents acknowledge, and tell who was assigned a session.
    pub is_agent: bool,
    /// Counts the events that all followers were given.
    pub delivered: Arc<AtomicU64>,
    pub assigned: Arc<Assigned>,
}

impl Follower {
    /// Follows until `stop`; returns the feed's number and what it was given.
    ///
    /// # Errors
    /// When the service refuses a poll, or breaks the order.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<(usize, Vec<Read>)> {
        let mut wire = Wire::connect(self.address).await?;
        let (mut all, mut range) = (Vec::new(), String::new());
        loop {
            let path = format!("/message/query?a={}&wait=60&limit=1000{range}", self.next);
            wire.send(&get(&path, &self.token)).await?;
            let page = tokio::select! {
                page = wire.receive() => page?,
                () = stop.cancelled() => return Ok((self.feed, all)),
            };
            let at = Instant::now();
            page.check()?;
            let events = events_of(&page.body, self.next, at)?;
            range.clear();
            if let (true, Some(first), Some(last)) = (self.is_agent, events.first(), events.last()) {
                range = format!("&c={}-{}", first.version, last.version);
            }
            self.next = page.feed_next;
            for event in events.iter().filter(|event| self.is_agent && event.kind == Kind::Added) {
                self.assigned.tell(&event.session, self.feed, event.version);
            }
            self.delivered.fetch_add(events.len() as u64, Ordering::Relaxed);
            all.extend(events);
        }
    }
}
