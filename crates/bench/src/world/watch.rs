//! What the service shows of itself: its newest version, and the polls that it holds.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::ensure;

use super::World;
use crate::wire::{Wire, get};

/// How long polls may take to be parked, or to be gone.
const PARK_MAX: Duration = Duration::from_secs(60);
const PARK_PAUSE: Duration = Duration::from_millis(5);

impl World {
    /// The newest version.
    ///
    /// # Errors
    /// As [`head`].
    pub async fn head(&self) -> anyhow::Result<i64> {
        head(self.address, &self.gateway_token).await
    }

    /// Waits until the first service process holds at least so many polls.
    ///
    /// # Errors
    /// As [`until_parked`].
    pub async fn until_parked(&self, count: usize) -> anyhow::Result<()> {
        until_parked(self.address, &self.admin, count).await
    }

    /// How many polls the first service process holds.
    ///
    /// # Errors
    /// As [`parked`].
    pub async fn parked(&self) -> anyhow::Result<usize> {
        parked(self.address, &self.admin).await
    }

    /// Waits until the polls of an ended job are gone.
    ///
    /// # Errors
    /// When they stay for a minute.
    pub async fn until_none_is_parked(&self) -> anyhow::Result<()> {
        // Other clients poll at a service that is not ours.
        let Some(own) = &self.own else { return Ok(()) };
        let until = Instant::now() + PARK_MAX;
        for service in &own.services {
            while parked(service.address, &self.admin).await? > 0 {
                ensure!(Instant::now() < until, "polls stay parked though their clients are gone");
                tokio::time::sleep(PARK_PAUSE).await;
            }
        }
        Ok(())
    }
}
/// The newest version of a server.
///
/// # Errors
/// When it does not answer.
pub async fn head(server: SocketAddr, token: &str) -> anyhow::Result<i64> {
    let mut wire = Wire::connect(server).await?;
    Ok(wire.exchange_ok(&get("/message/query?a=now&wait=0", token)).await?.feed_next)
}

/// How many polls a server holds.
///
/// # Errors
/// When it does not answer, or does not count them.
pub async fn parked(server: SocketAddr, token: &str) -> anyhow::Result<usize> {
    let mut wire = Wire::connect(server).await?;
    let answered = wire.exchange_ok(&get("/metrics", token)).await?;
    let text = String::from_utf8_lossy(&answered.body);
    let held = text.lines().find_map(|line| line.strip_prefix("deskfeed_poll_waiters "));
    // A gauge that was never touched is absent.
    Ok(held.unwrap_or("0").trim().split('.').next().unwrap_or("0").parse()?)
}

/// Waits until a server holds at least so many polls.
///
/// # Errors
/// When it does not within a minute.
pub async fn until_parked(server: SocketAddr, token: &str, count: usize) -> anyhow::Result<()> {
    let until = Instant::now() + PARK_MAX;
    loop {
        let parked = parked(server, token).await?;
        if parked >= count {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{parked} polls of {count} are parked");
        tokio::time::sleep(PARK_PAUSE).await;
    }
}
