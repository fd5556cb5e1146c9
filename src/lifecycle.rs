//! Tasks and their end. Every task has an owner and a name; one that dies unasked ends the process.

use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The tasks of one service and the two steps of its end.
#[derive(Clone, Default)]
pub struct Lifecycle {
    /// Cancelled first: take no new work, finish what there is.
    stopping: CancellationToken,
    /// Cancelled when the first step has taken too long, or is over.
    ending: CancellationToken,
    tasks: TaskTracker,
}

impl Lifecycle {
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    pub fn ending(&self) -> &CancellationToken {
        &self.ending
    }

    /// Runs a task that is needed for as long as the service runs: if it ends before it was asked
    /// to, the service stops with a failure.
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        let guard = Guard { name, lifecycle: self.clone() };
        self.tasks.spawn(async move {
            let _guard = guard;
            work.await;
        })
    }

    /// Runs a task that may end at any time, such as one connection.
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn spawn_brief(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work);
    }

    /// Waits for all tasks.
    pub async fn finished(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

struct Guard {
    name: &'static str,
    lifecycle: Lifecycle,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.lifecycle.stopping.is_cancelled() {
            tracing::error!(
                task = self.name,
                "a task that the service needs has died; stopping, so that the service is started anew"
            );
            self.lifecycle.stopping.cancel();
        }
    }
}
