//! How long a poll waits, and what ends its wait.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    domain::{cursor::Query, fault::Fault},
    live::{
        auth::tokens::{Grant, Tokens},
        feed::notices::{Notice, Notices},
    },
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
    tokens: &'a Tokens,
    notices: &'a Notices,
    pub grant: &'a Grant,
    changes: watch::Receiver<Notice>,
    until: Instant,
    /// Whether the reader wants an answer at once.
    is_instant: bool,
}

impl<'a> Wait<'a> {
    /// A revocation that comes after this ends the wait.
    pub fn new(tokens: &'a Tokens, notices: &'a Notices, grant: &'a Grant, query: &'a Query) -> Self {
        // At a random moment in the last tenth, so that clients do not come back in step.
        let part = 1.0 - 0.1 * f64::from(fraction());
        let until = Instant::now() + Duration::from_secs(query.wait_s).mul_f64(part);
        let (changes, is_instant) = (notices.subscribe(), query.wait_s == 0);
        Self { tokens, notices, grant, changes, until, is_instant }
    }

    pub fn is_over(&self) -> bool {
        self.is_instant || self.notices.is_draining()
    }

    pub fn epoch(&self) -> Arc<str> {
        self.notices.epoch()
    }

    pub fn histories(&self) -> u64 {
        self.notices.histories()
    }

    /// Waits for news of the feed, a notice, or the end of the poll's time.
    pub async fn until_woken(&mut self, woken: impl Future<Output = ()>) -> Result<Waited, Fault> {
        let until = self.until;
        self.until_woken_by(woken, until).await
    }

    /// [`Wait::until_woken`], but for at most `at_most`.
    pub async fn until_woken_or(
        &mut self,
        woken: impl Future<Output = ()>,
        at_most: Duration,
    ) -> Result<Waited, Fault> {
        let until = self.until.min(Instant::now() + at_most);
        self.until_woken_by(woken, until).await
    }

    async fn until_woken_by(&mut self, woken: impl Future<Output = ()>, until: Instant) -> Result<Waited, Fault> {
        let waited = tokio::select! {
            () = woken => Waited::Woken,
            () = sleep_until(until) => Waited::Over,
            changed = self.changes.changed() => if changed.is_err() || self.notices.is_draining() { Waited::Over } else { Waited::Woken },
        };
        // The holder of a token that was revoked or has expired meanwhile is told nothing more.
        match waited {
            Waited::Woken => self.tokens.check_parked(self.grant).await?,
            // The answer tells nothing, so it need not wait for a database that is away.
            Waited::Over => self.tokens.check_memory(self.grant)?,
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
