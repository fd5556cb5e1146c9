//! Barriers: what may be acknowledged after a failover that PostgreSQL calls lossless.
//!
//! With synchronous replication a commit is answered when a standby has it. Two things can be seen before
//! that: what was committed by a server that restarted while the commit waited, and a commit whose wait somebody
//! cancelled. The server says so by a warning at most. So whatever is acknowledged without a commit of our own, and
//! whatever was committed while the server warned, waits for a small commit on the same connection, which comes
//! after it in the log.

use sqlx::PgConnection;

use super::Result;
use crate::notices;

/// Waits until everything that this connection has seen is replicated as far as the server's settings ask for.
///
/// # Errors
/// When that is not so in time.
pub async fn barrier(connection: &mut PgConnection) -> Result<()> {
    sqlx::query(
        "/* barrier.barrier */
         select case when current_setting('synchronous_standby_names') <> ''
                     then pg_logical_emit_message(true, 'deskfeed', '') end is not null",
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// When a [`barrier`] follows a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Barrier {
    /// When the server has warned meanwhile.
    AfterWarning,
    /// Always: the work may find that there is nothing to write.
    Always,
}

/// Runs something that commits.
///
/// # Errors
/// As `work`. When the barrier fails, what was committed is there, but a failover may lose it.
pub async fn committed<T>(
    connection: &mut PgConnection,
    follows: Barrier,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T>,
) -> Result<T> {
    let warnings = notices::warnings();
    let done = work(&mut *connection).await?;
    let has_warned = notices::warnings() != warnings;
    if has_warned {
        tracing::error!(
            "PostgreSQL has warned while a commit was under way: its wait for a standby may have been cancelled. Nothing is \
             acknowledged before the standby has it; see who cancels statements of deskfeed"
        );
    }
    if has_warned || follows == Barrier::Always {
        barrier(connection).await?;
    }
    Ok(done)
}
