//! Settings that could lose messages, or that work against the service.

use std::collections::HashMap;

use sqlx::PgConnection;

use super::Result;
use crate::domain::{finding::Finding, limits};

const CHECK: &str = "settings";

pub(super) async fn look(connection: &mut PgConnection) -> Result<Vec<Finding>> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "/* doctor.settings */
         select name, setting from pg_settings
         where name in ('fsync', 'full_page_writes', 'synchronous_commit', 'synchronous_standby_names', 'data_checksums', 'autovacuum', 'track_counts',
                        'server_encoding', 'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout')",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut findings = judge(&rows.into_iter().collect());
    findings.extend(of_roles(connection).await?);
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "what is committed is flushed, and nothing works against the service"));
    }
    Ok(findings)
}

fn judge(settings: &HashMap<String, String>) -> Vec<Finding> {
    let is = |name: &str, value: &str| settings.get(name).is_some_and(|found| found == value);
    let ms = |name: &str| settings.get(name).and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
    let mut findings = Vec::new();
    for name in ["fsync", "full_page_writes", "synchronous_commit"] {
        if is(name, "off") {
            findings.push(Finding::critical(
                CHECK,
                format!("{name}=off: a crash may lose messages that were acknowledged"),
                format!("set {name} = on; `deskfeed serve` refuses to start like this"),
            ));
        }
    }
    if is("synchronous_commit", "local") && !is("synchronous_standby_names", "") {
        findings.push(Finding::warning(
            CHECK,
            "synchronous_commit=local: the standbys of synchronous_standby_names are not waited for",
            "set synchronous_commit = on, or acknowledged messages are lost when a standby takes over",
        ));
    }
    if !is("server_encoding", "UTF8") {
        findings.push(Finding::critical(
            CHECK,
            "the database's encoding is not UTF8: some texts cannot be stored",
            "make the database anew with `template template0 encoding 'UTF8'`",
        ));
    }
    if is("data_checksums", "off") {
        findings.push(Finding::note(
            CHECK,
            "data_checksums=off: a disk that gives back other data than were written is not noticed",
            "stop the server for `pg_checksums --enable`",
        ));
    }
    for name in ["autovacuum", "track_counts"] {
        if is(name, "off") {
            findings.push(Finding::warning(
                CHECK,
                format!("{name}=off: nothing is vacuumed; sessions, agents and acks grow and get slow"),
                format!("set {name} = on"),
            ));
        }
    }
    if ms("idle_session_timeout") != 0 {
        findings.push(Finding::warning(
            CHECK,
            "idle_session_timeout is set: it ends the connections that the service keeps for reads",
            "alter role deskfeed_app set idle_session_timeout = 0",
        ));
    }
    if (1..limits::COMMIT_MS).contains(&ms("transaction_timeout")) {
        findings.push(Finding::warning(
            CHECK,
            format!(
                "transaction_timeout is below {} ms: it ends appends that the service still waits for",
                limits::COMMIT_MS
            ),
            "alter role deskfeed_app set transaction_timeout = 0",
        ));
    }
    if ms("idle_in_transaction_session_timeout") == 0 {
        findings.push(Finding::note(
            CHECK,
            "idle_in_transaction_session_timeout=0: a client that forgets a transaction holds back vacuum, and its locks, for ever",
            "set it to a minute or so for everybody (the service sets its own, of 2 s)",
        ));
    }
    findings
}

/// What was set for a role or a database, which this connection need not see.
async fn of_roles(connection: &mut PgConnection) -> Result<Vec<Finding>> {
    let set: Vec<(String, String)> =
        sqlx::query_as(include_str!("../sql/settings_of_roles.sql")).fetch_all(connection).await?;
    Ok(set
        .into_iter()
        .map(|(whose, setting)| {
            Finding::critical(
                CHECK,
                format!("{setting} is set for {whose}: the service may lose messages, or take none"),
                "take it back with `alter role ... reset` or `alter database ... reset`",
            )
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::finding::Severity;

    #[test]
    fn each_dangerous_setting_is_named() {
        let well = [
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("synchronous_commit", "on"),
            ("synchronous_standby_names", ""),
            ("data_checksums", "on"),
            ("autovacuum", "on"),
            ("track_counts", "on"),
            ("server_encoding", "UTF8"),
            ("idle_in_transaction_session_timeout", "60000"),
            ("idle_session_timeout", "0"),
            ("transaction_timeout", "0"),
        ];
        let with = |changes: &[(&str, &str)]| {
            let settings = well.iter().chain(changes).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            judge(&settings.collect())
        };
        assert_eq!(with(&[]), []);
        for (changes, severity) in [
            (&[("fsync", "off")][..], Severity::Critical),
            (&[("full_page_writes", "off")], Severity::Critical),
            (&[("synchronous_commit", "off")], Severity::Critical),
            (&[("synchronous_commit", "local"), ("synchronous_standby_names", "a")], Severity::Warning),
            (&[("server_encoding", "SQL_ASCII")], Severity::Critical),
            (&[("data_checksums", "off")], Severity::Note),
            (&[("autovacuum", "off")], Severity::Warning),
            (&[("track_counts", "off")], Severity::Warning),
            (&[("idle_session_timeout", "5000")], Severity::Warning),
            (&[("transaction_timeout", "500")], Severity::Warning),
            (&[("idle_in_transaction_session_timeout", "0")], Severity::Note),
        ] {
            let found = with(changes);
            assert_eq!(found.len(), 1, "{changes:?}: {found:?}");
            assert_eq!(found[0].severity, severity, "{changes:?}");
        }
    }
}
