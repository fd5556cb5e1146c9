//! The server itself: its release, what may be seen of it, the age of its transaction numbers.

use sqlx::PgConnection;

use super::Result;
use crate::domain::finding::Finding;

/// Releases that are maintained, and the oldest minor release of each without faults that a store of
/// messages should not live with (memory corruption by any SQL user; LISTEN failing on old notifications).
const RELEASES: [(i32, i32); 4] = [(15, 18), (16, 14), (17, 10), (18, 4)];

/// Autovacuum begins to freeze at 0.2e9 by default; at 2.1e9 the server stops taking writes.
const TRANSACTION_AGE: (f64, f64) = (1.0e9, 1.6e9);

pub(super) async fn version(connection: &mut PgConnection) -> Result<Vec<Finding>> {
    let (number, name, standby): (i32, String, bool) = sqlx::query_as(
        "/* doctor.version */
         select current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery()",
    )
    .fetch_one(connection)
    .await?;
    let mut findings = vec![judge_version(number, &name)];
    if standby {
        findings.push(Finding::critical(
            "version",
            "this server is a standby: it takes no messages, and nobody can LISTEN on it",
            "let DATABASE_URL lead to the primary",
        ));
    }
    Ok(findings)
}

fn judge_version(number: i32, name: &str) -> Finding {
    let (major, minor) = (number / 10_000, number % 10_000);
    let oldest = RELEASES[0].0;
    match RELEASES.iter().find(|(maintained, _)| *maintained == major) {
        _ if major < oldest => Finding::critical(
            "version",
            format!("PostgreSQL {name}: older than any that deskfeed is tested with"),
            format!("upgrade to {oldest} or newer (docs/dba.md, Upgrades)"),
        ),
        None => Finding::note(
            "version",
            format!("PostgreSQL {name}: newer than any that this deskfeed is tested with"),
            "look for a newer deskfeed",
        ),
        Some((_, fit)) if minor < *fit => Finding::warning(
            "version",
            format!("PostgreSQL {name} has faults that {major}.{fit} does not have"),
            format!("install the newest minor release of {major} and restart the server; nothing else changes"),
        ),
        Some(_) => Finding::ok("version", format!("PostgreSQL {name}")),
    }
}

/// A role that sees only its own sessions cannot tell that all is well.
pub(super) async fn sight(connection: &mut PgConnection) -> Result<Vec<Finding>> {
    let (role, sees): (String, bool) =
        sqlx::query_as("/* doctor.sight */ select current_user::text, pg_has_role('pg_read_all_stats', 'usage')")
            .fetch_one(connection)
            .await?;
    if sees {
        return Ok(Vec::new());
    }
    Ok(vec![Finding::note(
        "sight",
        format!("{role} sees what its own sessions do, and little of others"),
        "let DATABASE_URL log in as deskfeed_monitor (deploy/roles.sql) to see all transactions, locks and standbys",
    )])
}

pub(super) async fn wraparound(connection: &mut PgConnection) -> Result<Vec<Finding>> {
    let age: i32 = sqlx::query_scalar(
        "/* doctor.wraparound */
         select greatest(age(datfrozenxid), mxid_age(datminmxid)) from pg_database where datname = current_database()",
    )
    .fetch_one(connection)
    .await?;
    Ok(vec![judge_age(age)])
}

fn judge_age(age: i32) -> Finding {
    Finding::by_limits(
        "wraparound",
        f64::from(age),
        TRANSACTION_AGE,
        format!("the oldest transaction number is {age} transactions old"),
        "end what holds it back (transactions, replication slots, prepared transactions: see the other findings), then \
         vacuum (freeze) the tables that come first in `select relname, age(relfrozenxid) from pg_class where relkind = 'r' order by 2 desc`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::finding::Severity;

    #[test]
    fn old_releases_are_told_of() {
        for (number, expected) in [
            (140_020, Severity::Critical),
            (150_017, Severity::Warning),
            (150_018, Severity::Ok),
            (180_003, Severity::Warning),
            (180_006, Severity::Ok),
            (190_000, Severity::Note),
        ] {
            assert_eq!(judge_version(number, "x").severity, expected, "{number}");
        }
    }

    #[test]
    fn transaction_numbers_may_not_get_old() {
        let severities = [300_000_000, 1_000_000_000, 1_700_000_000].map(|age| judge_age(age).severity);
        assert_eq!(severities, [Severity::Ok, Severity::Warning, Severity::Critical]);
    }
}
