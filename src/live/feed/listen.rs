//! Keeps a LISTEN connection and turns what it hears into hints for the relay.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Feed, hints::Hints};
use crate::store::{Error, listener::Listener, pool::Db};

const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(1);

/// The listener of a process.
pub struct Listening {
    pub db: Db,
    pub feed: Arc<Feed>,
    pub hints: Arc<Hints>,
    /// Marks the notifications of this process.
    pub sender: u64,
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
                    // Notifications sent before this connection are lost: look. And have it prove that it hears.
                    self.hints.notify();
                    self.hints.look();
                    let error = tokio::select! {
                        () = stop.cancelled() => return,
                        error = self.hear_all(&mut listener) => error,
                    };
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
                // The lane of this process publishes its appends itself, and a head that is in the tail is no
                // news; anything else, even rubbish, is a reason to look.
                Ok(text) => {
                    let append = text.split_once(' ').and_then(|(head, sender)| {
                        Some((head.parse::<i64>().ok()?, u64::from_str_radix(sender, 16).ok()?))
                    });
                    match append {
                        Some((head, sender)) if sender == self.sender || head <= self.feed.tail.head() => {}
                        Some(_) => self.hints.scan(),
                        None => self.hints.look(),
                    }
                }
                Err(error) => return error,
            }
        }
    }
}
