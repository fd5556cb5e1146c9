//! How long a poll waits, and what ends it.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    domain::{cursor::Query, fault::Fault},
    live::{bulletin::Notice, relay::Live, tokens::Grant},
};

/// How a wait ended.
pub(super) enum Waited {
    /// Something may have happened: look again.
    Woken,
    /// Answer with nothing.
    Over,
}

/// How long one poll may wait.
pub(super) struct Wait<'a> {
    live: &'a Live,
    pub grant: &'a Grant,
    notices: watch::Receiver<Notice>,
    until: Instant,
    none: bool,
}

impl<'a> Wait<'a> {
    pub fn new(live: &'a Live, grant: &'a Grant, query: &'a Query) -> Self {
        // At a random moment in the last tenth, so that clients do not come back in step.
        let part = 1.0 - 0.1 * f64::from(fraction());
        let until = Instant::now() + Duration::from_secs(query.wait_s).mul_f64(part);
        let mut notices = live.bulletin.subscribe();
        notices.mark_unchanged();
        Self { live, grant, notices, until, none: query.wait_s == 0 }
    }

    pub fn is_over(&self) -> bool {
        self.none || self.live.bulletin.is_draining()
    }

    pub fn epoch(&self) -> Arc<str> {
        self.live.bulletin.epoch()
    }

    pub fn histories(&self) -> u64 {
        self.live.bulletin.histories()
    }

    /// Waits for news of the feed, the end of the poll's time, or a notice.
    pub async fn until_woken(&mut self, woken: impl Future<Output = ()>) -> Result<Waited, Fault> {
        let until = self.until;
        self.until_woken_by(woken, until).await
    }

    /// As [`Wait::until_woken`], for at most `most`.
    pub async fn until_woken_or(&mut self, woken: impl Future<Output = ()>, most: Duration) -> Result<Waited, Fault> {
        let until = self.until.min(Instant::now() + most);
        self.until_woken_by(woken, until).await
    }

    async fn until_woken_by(&mut self, woken: impl Future<Output = ()>, until: Instant) -> Result<Waited, Fault> {
        let waited = tokio::select! {
            () = woken => Waited::Woken,
            () = sleep_until(until) => Waited::Over,
            changed = self.notices.changed() => if changed.is_err() || self.live.bulletin.is_draining() { Waited::Over } else { Waited::Woken },
        };
        // A token that was revoked or has expired meanwhile is told nothing more.
        match waited {
            Waited::Woken => self.live.tokens.check_parked(self.grant).await?,
            // The answer tells nothing, so it must not wait for a database that is away, or for the end of a
            // stop.
            Waited::Over => self.live.tokens.check_memory(self.grant)?,
        }
        Ok(waited)
    }
}

/// A random number 0..1. Randomness here only spreads load.
fn fraction() -> f32 {
    let mut bytes = [0_u8; 2];
    match getrandom::fill(&mut bytes) {
        Ok(()) => f32::from(u16::from_le_bytes(bytes)) / f32::from(u16::MAX),
        Err(_) => 0.5,
    }
}
