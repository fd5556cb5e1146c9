//! What is going on: connections, transactions, locks, notifications.

use sqlx::PgConnection;

use super::{Expected, Result};
use crate::domain::{finding::Finding, limits};

/// What a process takes besides its connections for reads: two for appends; acknowledgements, LISTEN, NOTIFY, the relay.
const OTHER_CONNECTIONS: u32 = 6;
/// Left over for people and `deskfeed` commands.
const SPARE_CONNECTIONS: i64 = 3;
/// How full: of the connections, and of the queue of notifications (a full one fails every append).
const CONNECTIONS_USED: (f64, f64) = (0.8, 0.95);
const QUEUE_USED: (f64, f64) = (0.1, 0.5);
/// A transaction this many times as long as allowed is critical.
const FAR_TOO_LONG: f64 = 12.0;

/// Whether all replicas get their connections, one more than there are while they are replaced.
pub(super) async fn connections(connection: &mut PgConnection, expected: Expected) -> Result<Vec<Finding>> {
    let (max, used, live): (i64, i64, i64) =
        sqlx::query_as(include_str!("../sql/connections.sql")).fetch_one(connection).await?;
    let replicas = live.max(i64::from(expected.replicas));
    let each = i64::from(expected.db_readers + OTHER_CONNECTIONS);
    let needed = (replicas + 1) * each + SPARE_CONNECTIONS;
    let mut findings = vec![Finding::by_limits(
        "connections",
        used as f64 / max.max(1) as f64,
        CONNECTIONS_USED,
        format!("{used} of {max} connections are in use, by {live} replicas and others"),
        "raise max_connections (and restart), or find who holds them: select usename, application_name, count(*) from \
         pg_stat_activity group by 1, 2",
    )];
    if needed > max {
        findings.push(Finding::warning(
            "connections",
            format!("{replicas} replicas need up to {needed} connections, of {max} that there may be"),
            format!(
                "raise max_connections by {} or more, or lower DESKFEED_DB_READERS: each replica takes that and \
                 {OTHER_CONNECTIONS}, and one more runs while they are replaced",
                needed - max
            ),
        ));
    }
    Ok(findings)
}

/// Transactions that hold back vacuum and keep their locks.
pub(super) async fn transactions(connection: &mut PgConnection, allowed_s: f64) -> Result<Vec<Finding>> {
    let long: Vec<(String, f64)> =
        sqlx::query_as(include_str!("../sql/long_transactions.sql")).bind(allowed_s).fetch_all(connection).await?;
    if long.is_empty() {
        return Ok(vec![Finding::ok("transactions", format!("none is older than {allowed_s} s"))]);
    }
    Ok(long
        .into_iter()
        .map(|(who, age_s)| {
            Finding::by_limits(
                "transactions",
                age_s,
                (0.0, allowed_s.max(1.0) * FAR_TOO_LONG),
                format!("{who} has been in a transaction for {age_s:.0} s"),
                "end it (select pg_terminate_backend(pid), or rollback prepared): until then vacuum removes nothing that is newer",
            )
        })
        .collect())
}

/// Who waits for whom, longer than the service itself would.
pub(super) async fn locks(connection: &mut PgConnection) -> Result<Vec<Finding>> {
    let waits: Vec<(String, f64)> = sqlx::query_as(include_str!("../sql/lock_waits.sql"))
        .bind(limits::DB_LOCK_MS as f64 / 1000.0)
        .fetch_all(connection)
        .await?;
    if waits.is_empty() {
        return Ok(vec![Finding::ok("locks", "nobody waits long for one")]);
    }
    Ok(waits
        .into_iter()
        .map(|(who, waited_s)| {
            Finding::warning(
                "locks",
                format!("{who} (for {waited_s:.0} s)"),
                "end the one that holds it: select pg_terminate_backend(pid)",
            )
        })
        .collect())
}

pub(super) async fn notifications(connection: &mut PgConnection) -> Result<Vec<Finding>> {
    let used: f64 = sqlx::query_scalar("/* doctor.notifications */ select pg_notification_queue_usage()")
        .fetch_one(connection)
        .await?;
    Ok(vec![judge_queue(used)])
}

fn judge_queue(used: f64) -> Finding {
    Finding::by_limits(
        "notifications",
        used,
        QUEUE_USED,
        format!("the queue of notifications is {:.1} % full", used * 100.0),
        "a session that listens is in a transaction and holds it up: end it (the server's log names its pid, and the longest \
         transactions are in pg_stat_activity); a full queue fails every append",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::finding::Severity;

    #[test]
    fn a_queue_that_fills_is_told_of_early() {
        assert_eq!(
            [0.0, 0.1, 0.5].map(|used| judge_queue(used).severity),
            [Severity::Ok, Severity::Warning, Severity::Critical]
        );
    }
}
