//! The threads that requests are sent from: half as many as the machine has cores. Service and
//! PostgreSQL need the others, and senders spread over all of them wake each other for nothing: on two
//! cores one thread sends up to a tenth more than two, to us and to the yardsticks.

use std::num::NonZeroUsize;

use tokio::runtime::{Builder, Runtime};

/// Does `work` on such threads, with whatever it spawns.
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

/// A runtime that may be dropped by a task of another.
struct Threads(Option<Runtime>);

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// So many threads, or as many as there are cores.
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
