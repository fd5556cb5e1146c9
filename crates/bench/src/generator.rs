//! The threads of the senders: half as many as the machine has cores. Service and PostgreSQL need the others, and
//! senders on all cores mostly wake each other: on two cores, one thread sends up to a tenth more than two, to the
//! service and to the yardsticks.

use std::num::NonZeroUsize;

use tokio::runtime::{Builder, Runtime};

/// Runs `work`, and everything that it spawns, on the senders' threads.
///
/// # Errors
/// As `work`, or when no thread can be started.
pub async fn generate<T: Send + 'static>(
    work: impl Future<Output = anyhow::Result<T>> + Send + 'static,
) -> anyhow::Result<T> {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let runtime = runtime(Some(cores.div_ceil(2)), "deskfeed-senders")?;
    let working = runtime.spawn(work);
    let _threads = Threads(Some(runtime));
    working.await?
}

/// A runtime that may be dropped inside another one.
struct Threads(Option<Runtime>);

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Starts a runtime with `threads` threads, else one per core.
///
/// # Errors
/// When they cannot be started.
pub fn runtime(threads: Option<usize>, name: &str) -> anyhow::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(threads);
    }
    Ok(builder.thread_name(name).enable_all().build()?)
}
