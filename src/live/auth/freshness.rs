//! How long ago this process last saw the database: what it may still tell from memory.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use crate::domain::limits;

/// When the relay's last successful look at the database began.
pub struct Freshness {
    started: Instant,
    /// In milliseconds since `started`; 0: none was successful yet.
    last_look_ms: AtomicU64,
}

impl Default for Freshness {
    fn default() -> Self {
        Self { started: Instant::now(), last_look_ms: AtomicU64::new(0) }
    }
}

impl Freshness {
    /// Notes a successful look by when it began: what was committed before that has been seen.
    pub fn note_look(&self, began: Instant) {
        let began_ms = millis(began.saturating_duration_since(self.started)).max(1);
        self.last_look_ms.store(began_ms, Ordering::Release);
    }

    /// Whether cached events and cards may be told ([`limits::IN_TOUCH_MS`]).
    pub fn is_in_touch(&self) -> bool {
        self.is_within(limits::IN_TOUCH_MS)
    }

    /// Whether cached tokens are believed ([`limits::TOKENS_BELIEVED_MS`]).
    pub fn knows_revocations(&self) -> bool {
        self.is_within(limits::TOKENS_BELIEVED_MS)
    }

    fn is_within(&self, ms: u64) -> bool {
        let last = self.last_look_ms.load(Ordering::Acquire);
        last > 0 && millis(self.started.elapsed()).saturating_sub(last) < ms
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_counts_from_when_the_look_began() {
        let freshness = Freshness::default();
        assert!(!freshness.is_in_touch() && !freshness.knows_revocations());
        let began = Instant::now();
        advance(Duration::from_millis(limits::TOKENS_BELIEVED_MS - 10)).await;
        freshness.note_look(began);
        assert!(freshness.is_in_touch() && freshness.knows_revocations());
        advance(Duration::from_millis(20)).await;
        assert!(freshness.is_in_touch() && !freshness.knows_revocations());
        advance(Duration::from_millis(limits::IN_TOUCH_MS)).await;
        assert!(!freshness.is_in_touch());
    }
}
