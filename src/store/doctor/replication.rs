//! Standbys that are behind, and slots that keep WAL for somebody who does not come.

use sqlx::PgConnection;

use super::Result;
use crate::{
    domain::finding::Finding,
    store::history::{self, Newest},
};

const CHECK: &str = "replication";
/// A standby this many times as far behind as allowed is critical.
const FAR_BEHIND: f64 = 10.0;
/// WAL that an inactive slot may keep, in bytes.
const KEPT_BYTES_MAX: i64 = 1024 * 1024 * 1024;

pub(super) async fn look(connection: &mut PgConnection, allowed_s: f64) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let standby: bool =
        sqlx::query_scalar("/* doctor.replication */ select pg_is_in_recovery()").fetch_one(&mut *connection).await?;
    if standby {
        return Ok(findings);
    }
    let standbys: Vec<(String, String, f64)> = sqlx::query_as(
        "/* doctor.replication */
         select coalesce(nullif(application_name, ''), client_addr::text, 'a standby'), coalesce(sync_state, 'unknown'),
                coalesce(extract(epoch from replay_lag), 0)::float8
         from pg_stat_replication where state is distinct from 'backup' order by 1",
    )
    .fetch_all(&mut *connection)
    .await?;
    let (waited_for, waiting): (String, i64) = sqlx::query_as(
        "/* doctor.replication */
         select current_setting('synchronous_standby_names'),
                (select count(*) from pg_stat_activity where wait_event = 'SyncRep')",
    )
    .fetch_one(&mut *connection)
    .await?;
    let synchronous = standbys.iter().filter(|(_, state, _)| ["sync", "quorum"].contains(&state.as_str())).count();
    if !waited_for.is_empty() && synchronous == 0 {
        findings.push(Finding::critical(
            CHECK,
            format!("synchronous_standby_names = {waited_for}, but no such standby is connected: commits wait for it ({waiting} do)"),
            "bring the standby back; never cancel a commit that waits (it would be acknowledged without its standby)",
        ));
    }
    for (name, state, lag_s) in &standbys {
        findings.push(Finding::by_limits(
            CHECK,
            *lag_s,
            (allowed_s, allowed_s * FAR_BEHIND),
            format!("{name} ({state}) is {lag_s:.1} s behind"),
            "look at its disk, its network and at queries on it that hold up replay (max_standby_streaming_delay)",
        ));
    }
    findings.extend(slots(connection).await?);
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "no standby and no slot that is not used"));
    }
    Ok(findings)
}

/// Whether the newest history is the server's own.
pub(super) async fn history(connection: &mut PgConnection) -> Result<Vec<Finding>> {
    Ok(vec![judge_history(&history::newest(connection).await?)])
}

fn judge_history(newest: &Newest) -> Finding {
    let Newest { ordinal, epoch, first_version, is_own } = newest;
    let found = format!("the newest is {ordinal}, from version {first_version} on (Feed-Epoch {epoch})");
    if *is_own == Some(false) {
        return Finding::note(
            "history",
            format!("{found}; it is not this server's: the next append begins a new one"),
            "nothing, if a standby was promoted or a backup restored: readers go on, but for those who are ahead of what \
             was kept, who are answered 41001. Otherwise find out where this server comes from (docs/dba.md, Failover)",
        );
    }
    Finding::ok("history", found)
}

async fn slots(connection: &mut PgConnection) -> Result<Vec<Finding>> {
    let slots: Vec<(String, bool, String, i64)> = sqlx::query_as(
        "/* doctor.replication */
         select slot_name::text, active, coalesce(wal_status, 'none kept'),
                coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint
         from pg_replication_slots where not active or wal_status in ('unreserved', 'lost') order by 1",
    )
    .fetch_all(connection)
    .await?;
    Ok(slots.into_iter().map(|(name, active, status, bytes)| judge_slot(&name, active, &status, bytes)).collect())
}

fn judge_slot(name: &str, active: bool, status: &str, kept_bytes: i64) -> Finding {
    let used = if active { "" } else { ", and nobody uses it" };
    let found = format!("slot {name} keeps {} MiB of WAL ({status}){used}", kept_bytes >> 20);
    let advice = format!(
        "bring back who uses it, or select pg_drop_replication_slot('{name}'): WAL is kept until the disk is full (max_slot_wal_keep_size)"
    );
    if status == "unreserved" || status == "lost" || kept_bytes > KEPT_BYTES_MAX {
        Finding::critical(CHECK, found, advice)
    } else {
        Finding::warning(CHECK, found, advice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::finding::Severity;

    #[test]
    fn the_history_of_another_server_is_told_of() {
        for (is_own, severity) in [(None, Severity::Ok), (Some(true), Severity::Ok), (Some(false), Severity::Note)] {
            let newest = Newest { ordinal: 2, epoch: "e".to_owned(), first_version: 9, is_own };
            assert_eq!(judge_history(&newest).severity, severity, "{is_own:?}");
        }
    }

    #[test]
    fn a_slot_that_nobody_uses_gets_worse() {
        assert_eq!(judge_slot("s", false, "reserved", 0).severity, Severity::Warning);
        assert_eq!(judge_slot("s", false, "extended", 2 << 30).severity, Severity::Critical);
        assert_eq!(judge_slot("s", true, "lost", 0).severity, Severity::Critical);
    }
}
