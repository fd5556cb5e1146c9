//! Whether other processes work on the same database. Each that listens notifies itself every
//! [`limits::LISTENER_PING_MS`], and all hear it; whoever has listened for a few of these turns and
//! heard nobody but itself is alone, and need not notify what it appends: a NOTIFY makes commits
//! wait for each other and wakes a server process each time.
//!
//! Nothing but speed depends on it. A process that starts is heard when it listens; what is appended
//! in the moment before, its own look at the table finds ([`limits::SWEEP_MS`]).

use std::{
    sync::atomic::{AtomicI32, AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use crate::domain::limits;

/// How long nobody else must have been heard: three turns, of which two may be late.
pub const ALONE_AFTER: Duration = Duration::from_millis(3 * limits::LISTENER_PING_MS);
/// For a time that does not exist: nobody listens.
const NEVER: u64 = u64::MAX;

/// What a process knows of others.
pub struct Peers {
    started: Instant,
    /// Since when we have listened and heard nobody else, in milliseconds since `started`.
    quiet_since_ms: AtomicU64,
    /// Server processes behind our writer's and our relay's connection: what they notify is our own.
    writer: AtomicI32,
    relay: AtomicI32,
}

impl Default for Peers {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            quiet_since_ms: AtomicU64::new(NEVER),
            writer: AtomicI32::new(0),
            relay: AtomicI32::new(0),
        }
    }
}

impl Peers {
    /// Our writer's connection is served by this process.
    pub fn set_writer(&self, pid: i32) {
        self.writer.store(pid, Ordering::Release);
    }

    /// Our relay's connection is served by this process.
    pub fn set_relay(&self, pid: i32) {
        self.relay.store(pid, Ordering::Release);
    }

    /// We listen from now on.
    pub fn start_listening(&self) {
        self.quiet_since_ms.store(self.now_ms(), Ordering::Release);
    }

    /// We hear nothing any more.
    pub fn stop_listening(&self) {
        self.quiet_since_ms.store(NEVER, Ordering::Release);
    }

    /// Notes who was heard.
    pub fn hear(&self, pid: i32) -> Heard {
        if pid == self.writer.load(Ordering::Acquire) {
            Heard::OurWriter
        } else if pid == self.relay.load(Ordering::Acquire) {
            Heard::OurRelay
        } else {
            self.quiet_since_ms.store(self.now_ms(), Ordering::Release);
            Heard::Another
        }
    }

    /// Whether somebody else may want to be notified.
    pub fn may_be_there(&self) -> bool {
        let since = self.quiet_since_ms.load(Ordering::Acquire);
        since == NEVER || Duration::from_millis(self.now_ms().saturating_sub(since)) < ALONE_AFTER
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(NEVER - 1)
    }
}

/// Who notified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    OurWriter,
    OurRelay,
    Another,
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_hears_nobody_for_long_is_alone() {
        let peers = Peers::default();
        peers.set_writer(1);
        peers.set_relay(2);
        advance(2 * ALONE_AFTER).await;
        assert!(peers.may_be_there(), "who does not listen knows nothing");
        peers.start_listening();
        assert!(peers.may_be_there());
        advance(ALONE_AFTER).await;
        assert_eq!([peers.hear(1), peers.hear(2)], [Heard::OurWriter, Heard::OurRelay]);
        assert!(!peers.may_be_there());

        assert_eq!(peers.hear(3), Heard::Another);
        assert!(peers.may_be_there());
        advance(ALONE_AFTER * 99 / 100).await;
        assert!(peers.may_be_there());
        advance(ALONE_AFTER / 50).await;
        assert!(!peers.may_be_there());
        peers.stop_listening();
        assert!(peers.may_be_there());
    }
}
