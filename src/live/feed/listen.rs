//! Keeps a LISTEN connection and turns what it hears into hints for the relay.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Feed, hints::Hints};
use crate::{
    live::peers::{Heard, Peers},
    store::{Error, listener::Listener, pool::Db},
};

const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(1);

/// The listener of a process.
pub struct Listening {
    pub db: Db,
    pub feed: Arc<Feed>,
    pub hints: Arc<Hints>,
    pub peers: Arc<Peers>,
}

impl Listening {
    /// Listens until `stop`, over one connection after another.
    pub async fn run(self, stop: CancellationToken) {
        let mut pause = RECONNECT_MIN;
        let mut is_first = true;
        loop {
            let connected = tokio::select! {
                () = stop.cancelled() => return,
                connected = Listener::connect(&self.db) => connected,
            };
            match connected {
                Ok(mut listener) => {
                    pause = RECONNECT_MIN;
                    if !std::mem::take(&mut is_first) {
                        metrics::counter!("deskfeed_listener_reconnects_total").increment(1);
                    }
                    self.peers.start_listening();
                    // Notifications sent before this connection are lost: look. And tell the others that we listen.
                    self.hints.ping();
                    let error = tokio::select! {
                        () = stop.cancelled() => return,
                        error = self.hear_all(&mut listener) => error,
                    };
                    self.peers.stop_listening();
                    tracing::warn!(error = %error, "the LISTEN connection is lost; reconnecting (polls go on, at the pace of the sweep)");
                }
                Err(error) => tracing::debug!(error = %error, "no LISTEN connection"),
            }
            // Ends with a timeout unless the service stops.
            let _ = timeout(pause, stop.cancelled()).await;
            pause = (pause * 2).min(RECONNECT_MAX);
        }
    }

    /// Turns notifications into hints until the connection fails.
    async fn hear_all(&self, listener: &mut Listener) -> Error {
        loop {
            match listener.hear().await {
                // Our own writer publishes its appends itself, and a head that we have is no news; anything else,
                // even rubbish, is a reason to look.
                Ok((text, pid)) => {
                    let is_own = self.peers.hear(pid) == Heard::OurWriter;
                    let is_known =
                        text == "ping" || text.parse::<i64>().is_ok_and(|head| is_own || head <= self.feed.tail.head());
                    if !is_known {
                        self.hints.look();
                    }
                }
                Err(error) => return error,
            }
        }
    }
}
