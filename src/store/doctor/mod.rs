//! What a DBA or a monitor wants to know about the database: one file for each thing that is looked
//! at. Everything is read; nothing is changed, and nothing but a notification is sent.
//!
//! A check that cannot look (a right is missing, a time-out) says so as a finding of its own.

mod activity;
mod indexes;
mod partitions;
mod replication;
mod rights;
mod schema;
mod server;
mod settings;

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection};

use super::{
    Result, listener,
    pool::{Db, Purpose},
};
use crate::{
    clock::Clock,
    domain::{finding::Finding, limits},
};

/// What the DBA expects of the installation.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// Replicas of the service.
    pub replicas: u32,
    /// Connections for reads of each.
    pub db_readers: u32,
    /// How long a transaction may take.
    pub transaction_s: f64,
    /// How far a standby may be behind.
    pub lag_s: f64,
    /// Whether the service is meant to run as a role of `deploy/roles.sql`.
    pub roles: bool,
}

/// A clock that is this far off makes tokens expire at the wrong time for people.
const CLOCK_OFF_S: (f64, f64) = (2.0, 60.0);

/// Looks at everything.
///
/// # Errors
/// When the server cannot be reached.
pub async fn examine(db: &Db, expected: Expected) -> Result<Vec<Finding>> {
    let mut connection = db.connect(Purpose::Commands).await?;
    let limits = format!("set statement_timeout = {}; set lock_timeout = 1000", limits::DB_STATEMENT_MS);
    sqlx::raw_sql(AssertSqlSafe(limits)).execute(&mut connection).await?;
    let connection = &mut connection;
    let mut findings = Vec::new();
    let mut add = |check, found: Result<Vec<Finding>>| match found {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(Finding::warning(
            check,
            format!("it cannot be looked at: {error}"),
            "let DATABASE_URL log in as deskfeed_monitor (deploy/roles.sql); if it does, look at the server's log",
        )),
    };
    add("version", server::version(connection).await);
    add("sight", server::sight(connection).await);
    add("clock", clock(connection).await);
    add("settings", settings::look(connection).await);
    add("connections", activity::connections(connection, expected).await);
    if expected.roles {
        add("rights", rights::look(connection).await);
    }
    add("migrations", schema::look(connection).await);
    add("partitions", partitions::look(connection).await);
    add("indexes", indexes::look(connection).await);
    add("transactions", activity::transactions(connection, expected.transaction_s).await);
    add("locks", activity::locks(connection).await);
    add("notifications", activity::notifications(connection).await);
    add("replication", replication::look(connection, expected.lag_s).await);
    add("history", replication::history(connection).await);
    add("wraparound", server::wraparound(connection).await);
    add("listen", Ok(vec![listen(db).await]));
    Ok(findings)
}

/// Whether what is notified is heard, as it must be between replicas.
async fn listen(db: &Db) -> Finding {
    match listener::round_trip(db).await {
        Ok(took) => Finding::ok("listen", format!("a notification was heard after {:.1} ms", ms(took))),
        Err(error) => Finding::critical(
            "listen",
            format!("a notification was not heard: {error}"),
            "messages reach other replicas' polls up to half a second late; connect to PostgreSQL itself, or through a pooler \
             in session mode (transaction mode loses LISTEN), and look for what drops idle connections",
        ),
    }
}

async fn clock(connection: &mut PgConnection) -> Result<Vec<Finding>> {
    let before = Clock.now();
    let theirs: DateTime<Utc> =
        sqlx::query_scalar("/* doctor.clock */ select clock_timestamp()").fetch_one(connection).await?;
    Ok(vec![judge_clock(before, theirs, Clock.now())])
}

/// The server's time was read between two readings of ours.
fn judge_clock(before: DateTime<Utc>, theirs: DateTime<Utc>, after: DateTime<Utc>) -> Finding {
    let middle = before + (after - before) / 2;
    let off_s = (theirs - middle).as_seconds_f64();
    Finding::by_limits(
        "clock",
        off_s.abs(),
        CLOCK_OFF_S,
        format!("the server's clock is {off_s:+.3} s off this machine's"),
        "keep both by NTP; expiry of tokens and CreateTime are the server's, log lines this machine's",
    )
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::finding::Severity;

    #[test]
    fn clocks_may_differ_by_seconds_only() {
        let at = |ms: i64| DateTime::from_timestamp_millis(1_800_000_000_000 + ms).expect("a time");
        // It took 2 s to ask: what lies between is no difference.
        assert_eq!(judge_clock(at(0), at(1_900), at(2_000)).severity, Severity::Ok);
        assert_eq!(judge_clock(at(0), at(2_100), at(10)).severity, Severity::Warning);
        assert_eq!(judge_clock(at(0), at(-2_100), at(10)).severity, Severity::Warning);
        let hour = judge_clock(at(0), at(3_600_000), at(0));
        assert_eq!(hour.severity, Severity::Critical);
        assert!(hour.found.contains("+3600.000 s"), "{}", hour.found);
    }
}
