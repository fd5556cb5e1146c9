//! `deskfeed doctor`: looks at the database and says what is wrong and what to do, for people and monitors.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{database::Database, explained, print_text};
use crate::{
    config::DatabaseArgs,
    domain::finding::{Finding, Severity, worst},
    store::{
        doctor::{self, Expected},
        pool::Db,
    },
};

#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Replicas of the service that there are to be.
    #[arg(long, default_value = "3")]
    replicas: u32,
    /// Their DESKFEED_DB_READERS.
    #[arg(long, env = "DESKFEED_DB_READERS", default_value = "8")]
    db_readers: u32,
    /// Seconds that a transaction may take.
    #[arg(long, default_value = "300")]
    transaction_seconds: f64,
    /// Seconds that a standby may be behind.
    #[arg(long, default_value = "10")]
    lag_seconds: f64,
    /// One JSON object, for programs.
    #[arg(long)]
    json: bool,
}

/// Exit code as monitors want it: 0 all is well, 1 a warning, 2 something is wrong.
pub async fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let findings = match Database::borrow(&args.database).await {
        Ok(database) => {
            let findings = examine(args, &database).await;
            database.stop().await?;
            findings
        }
        Err(error) => vec![unreachable(&error)],
    };
    print_text(&if args.json { as_json(&findings)? } else { as_lines(&findings) })?;
    Ok(ExitCode::from(match worst(&findings) {
        Severity::Ok | Severity::Note => 0,
        Severity::Warning => 1,
        Severity::Critical => 2,
    }))
}

async fn examine(args: &DoctorArgs, database: &Database) -> Vec<Finding> {
    let expected = Expected {
        replicas: args.replicas,
        db_readers: args.db_readers,
        transaction_s: args.transaction_seconds,
        lag_s: args.lag_seconds,
        // In a private PostgreSQL there is one role, and nobody else gets in.
        roles: !database.is_private,
    };
    let examined = async { Ok::<_, anyhow::Error>(doctor::examine(&Db::new(&database.url, 1)?, expected).await?) };
    examined.await.unwrap_or_else(|error| vec![unreachable(&error)])
}

fn unreachable(error: &anyhow::Error) -> Finding {
    Finding::critical(
        "connection",
        format!("the database cannot be reached: {}", explained(error)),
        "check DATABASE_URL, and that the server runs and lets this role in",
    )
}

fn as_lines(findings: &[Finding]) -> String {
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let mut lines = vec![format!(
        "deskfeed doctor: {} ({} critical, {} warnings, {} notes)",
        worst(findings),
        count(Severity::Critical),
        count(Severity::Warning),
        count(Severity::Note)
    )];
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    for finding in sorted {
        lines.push(format!("{:<8} {:<13} {}", finding.severity, finding.check, finding.found));
        if let Some(advice) = &finding.advice {
            lines.push(format!("{:<22} -> {advice}", ""));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

fn as_json(findings: &[Finding]) -> serde_json::Result<String> {
    let report = json!({ "status": worst(findings), "findings": findings });
    Ok(serde_json::to_string_pretty(&report)? + "\n")
}
