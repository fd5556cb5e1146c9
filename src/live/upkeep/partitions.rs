//! Keeps partitions ahead of the newest event: at the start, then regularly, long before the newest event gets
//! there. An append that finds no room makes it itself (`append()`); this spares appends the wait.

use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::limits,
    store::{partitions, pool::Db},
};

/// After this many failures in a row an operator ought to look.
const FAILURES_BEFORE_WARNING: u32 = 30;

/// Makes partitions ahead until `stop`.
pub async fn run(db: Db, stop: CancellationToken) {
    let mut failed = 0;
    loop {
        let pause_ms = match db.change(async |connection| partitions::make_ahead(connection).await).await {
            Ok(made) => {
                if made > 0 {
                    tracing::info!(made, "made partitions of events ahead");
                }
                failed = 0;
                limits::PARTITIONS_SWEEP_MS
            }
            Err(error) => {
                failed += 1;
                if failed == FAILURES_BEFORE_WARNING {
                    tracing::warn!(error = %error, "partitions of events cannot be made ahead; `deskfeed doctor` says whether any are missing and who holds a lock");
                } else {
                    tracing::debug!(error = %error, "partitions were not made ahead; the next round will try again");
                }
                limits::PARTITIONS_PAUSE_MS
            }
        };
        if timeout(Duration::from_millis(pause_ms), stop.cancelled()).await.is_ok() {
            return;
        }
    }
}
