//! Sees to it that there is always a partition for the events to come: at the start, then regularly,
//! long before the newest event gets there. An append that finds no room all the same makes it itself
//! (`append_events`); this is what spares appends the wait.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::relay::Live;
use crate::{
    domain::{fault::Fault, limits},
    store::{partitions, pool::read_deadline},
};

/// After so many tries in a row somebody ought to look.
const TRIES: u32 = 30;

/// Makes partitions ahead until `stop`.
pub async fn run(live: Arc<Live>, stop: CancellationToken) {
    let mut failed = 0;
    loop {
        let pause_ms = match make_ahead(&live).await {
            Ok(made) => {
                if made > 0 {
                    tracing::info!(made, "made partitions of events ahead");
                }
                failed = 0;
                limits::PARTITIONS_SWEEP_MS
            }
            Err(fault) => {
                failed += 1;
                if failed == TRIES {
                    tracing::warn!(error = %fault, "partitions of events cannot be made ahead; `deskfeed doctor` says whether any are missing and who holds a lock");
                } else {
                    tracing::debug!(error = %fault, "partitions were not made ahead; the next try does it");
                }
                limits::PARTITIONS_PAUSE_MS
            }
        };
        if timeout(Duration::from_millis(pause_ms), stop.cancelled()).await.is_ok() {
            return;
        }
    }
}

async fn make_ahead(live: &Live) -> Result<i32, Fault> {
    let mut lease = live.db.lease().await?;
    let made = read_deadline(partitions::make_ahead(&mut lease)).await?;
    lease.finish();
    Ok(made)
}
