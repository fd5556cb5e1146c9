//! Notifies other processes of new events, in transactions of its own. NOTIFY holds a cluster-wide lock until its
//! commit has finished; inside an append, all of them would wait for that append's flush, or for its standby. Nobody
//! waits for a notification, and under load one stands for many appends.

use std::{sync::Arc, time::Duration};

use sqlx::PgConnection;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::limits,
    live::feed::hints::Hints,
    store::{
        appends,
        pool::{Db, Purpose, read_deadline},
    },
};

/// The notifier of a process.
pub struct Notifier {
    pub(super) db: Db,
    /// The newest version that this process has committed.
    pub(super) heads: watch::Receiver<i64>,
    pub(super) hints: Arc<Hints>,
    /// Marks the notifications of this process.
    pub(super) sender: u64,
}

impl Notifier {
    /// Notifies of new heads until `stop`. Also notifies on request, and regularly even if nothing is new: that proves
    /// that the LISTEN connections of all processes work.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut connection: Option<PgConnection> = None;
        let mut ping_at = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.heads.changed() => if changed.is_err() { return },
                () = self.hints.must_notify() => {}
                () = sleep_until(ping_at) => {}
            }
            ping_at = Instant::now() + Duration::from_millis(limits::LISTENER_PING_MS);
            let head = *self.heads.borrow_and_update();
            let notified = read_deadline(async {
                let connection = match &mut connection {
                    Some(connection) => connection,
                    None => connection.insert(self.db.connect(Purpose::Notifies).await?),
                };
                appends::notify(connection, head, self.sender).await
            });
            if let Err(error) = Box::pin(notified).await {
                // Other processes find the new events with their next look.
                tracing::debug!(error = %error, "other processes were not notified");
                connection = None;
                if timeout(Duration::from_millis(limits::SWEEP_MS), stop.cancelled()).await.is_ok() {
                    return;
                }
            }
            sleep(Duration::from_millis(limits::NOTIFY_PAUSE_MS)).await;
        }
    }
}
