//! `deskfeed retention`: which partitions of events could go, lets them go, and makes those to come.

use std::{fmt::Write as _, process::ExitCode};

use anyhow::{Context, bail};
use chrono::{DateTime, TimeDelta, Utc};
use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use sqlx::PgConnection;
use tokio::time::Instant;

use super::{
    database::{Database, check_schema, connect},
    print_text,
};
use crate::{
    clock::Clock,
    config::DatabaseArgs,
    store::{
        events, partitions,
        pool::Db,
        retention::{self, Fate, Keep, Partition, Plan},
    },
};

#[derive(Debug, Args)]
pub struct RetentionArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(subcommand)]
    command: RetentionCommand,
}

#[derive(Debug, Subcommand)]
enum RetentionCommand {
    /// Shows the partitions of events, which of them would go, whom that concerns, and the SQL.
    Plan(KeepArgs),
    /// Lets them go: readers behind are told (41000), then each partition is detached. Finishes what
    /// an earlier run has left.
    Apply {
        #[command(flatten)]
        keep: KeepArgs,
        /// Drops what it has detached, too. Else it stays as a table, to be archived or dropped.
        #[arg(long)]
        drop: bool,
    },
    /// Makes the partitions to come. The service does that by itself.
    Ahead {
        /// Up to this version, before a large load, say.
        #[arg(long)]
        to: Option<i64>,
    },
}

/// What to keep. Only whole partitions go, never the one with the newest event.
#[derive(Debug, Clone, Copy, Args)]
#[group(multiple = false)]
struct KeepArgs {
    /// Keep the events of so many days.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    keep_days: Option<u32>,
    /// Keep so many of the newest events.
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..))]
    keep_events: Option<i64>,
    /// Keep the events from this version on.
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(i64).range(1..))]
    before: Option<i64>,
}

impl KeepArgs {
    fn keep(self) -> Keep {
        match self {
            Self { keep_days: Some(days), .. } => Keep::Since(Clock.now() - TimeDelta::days(days.into())),
            Self { keep_events: Some(count), .. } => Keep::Events(count),
            Self { before: Some(version), .. } => Keep::From(version),
            _ => Keep::All,
        }
    }
}

pub async fn run(args: &RetentionArgs) -> anyhow::Result<ExitCode> {
    let database = Database::borrow(&args.database).await?;
    let done = run_on(&args.command, &database.url).await;
    database.stop().await?;
    done.map(|()| ExitCode::SUCCESS)
}

async fn run_on(command: &RetentionCommand, url: &str) -> anyhow::Result<()> {
    let db = Db::new(url, 1)?;
    let mut connection = connect(&db).await?;
    check_schema(&mut connection).await?;
    if !retention::is_owner(&mut connection).await? {
        bail!("retention is for the role that owns the tables (deskfeed_owner; docs/dba.md, Retention)");
    }
    match command {
        RetentionCommand::Plan(keep) => {
            let plan = retention::plan(&mut connection, keep.keep()).await?;
            print_text(&as_text(&plan))?;
        }
        RetentionCommand::Apply { keep, drop } => apply(&mut connection, keep.keep(), *drop).await?,
        RetentionCommand::Ahead { to } => ahead(&mut connection, *to).await?,
    }
    Ok(())
}

async fn ahead(connection: &mut PgConnection, to: Option<i64>) -> anyhow::Result<()> {
    let state = events::store_state(connection).await?;
    let mut made = partitions::make_ahead(connection).await.context(
        "the partitions cannot be made; `deskfeed doctor` says who holds a lock; wait for that, and run this again",
    )?;
    if let Some(to) = to {
        made += partitions::make(connection, state.head + 1, to).await?;
    }
    println!("{made} partitions made.");
    Ok(())
}

async fn apply(connection: &mut PgConnection, keep: Keep, drop: bool) -> anyhow::Result<()> {
    if !retention::begin(connection).await? {
        bail!("another `deskfeed retention apply` is at work on this database");
    }
    let plan = retention::plan(connection, keep).await?;
    if plan.to_detach().next().is_none() {
        println!("Nothing goes: `deskfeed retention plan` shows why.");
        return Ok(());
    }
    if let Some(version) = plan.keep_from {
        let oldest = retention::keep_from(connection, version).await?;
        println!("Kept from version {oldest} on: who reads from before it is told so (41000).");
    }
    // One at a time may be in the middle of it: that one first.
    let (begun, rest): (Vec<&Partition>, Vec<&Partition>) = plan.to_detach().partition(|partition| partition.detaching);
    for partition in begun.into_iter().chain(rest) {
        let began = Instant::now();
        retention::detach(connection, partition).await.with_context(|| {
            format!("{} is not detached; no reader is told of its events any more, and `deskfeed retention apply` goes on from here", partition.name)
        })?;
        println!("{} detached in {:.1} s.", partition.name, began.elapsed().as_secs_f64());
        if drop {
            retention::drop_detached(connection, partition).await?;
            println!("{} dropped.", partition.name);
        }
    }
    Ok(())
}

fn as_text(plan: &Plan) -> String {
    let mut text = format!("Events {} to {}.\n\n", plan.state.oldest, plan.state.head);
    // Writing to a String cannot fail; here and below.
    let _ = writeln!(
        text,
        "{:<20} {:>31} {:>12} {:>12}  {:<20}  {:<20}  fate",
        "partition", "versions", "events", "size", "from", "to"
    );
    for (partition, fate) in &plan.partitions {
        let Partition { name, first_version, end_version, bytes, oldest, newest, .. } = partition;
        let fate = match fate {
            Fate::Goes => "GOES",
            Fate::WasBegun => "GOES: not kept any more",
            Fate::Stays(reason) => reason,
        };
        let _ = writeln!(
            text,
            "{name:<20} {:>31} {:>12} {:>12}  {:<20}  {:<20}  {fate}",
            format!("{first_version}-{}", end_version - 1),
            partition.events(),
            HumanBytes(u64::try_from(*bytes).unwrap_or(0)).to_string(),
            time(oldest.map(|(_, at)| at)),
            time(newest.map(|(_, at)| at)),
        );
    }
    for (name, bytes) in &plan.detached {
        let size = HumanBytes(u64::try_from(*bytes).unwrap_or(0));
        let _ = writeln!(text, "\n{name} ({size}) was detached earlier: archive it, then drop table {name};");
    }
    if let Some(version) = plan.keep_from {
        let concerned = &plan.concerned;
        let _ = write!(
            text,
            "\nWith the events before version {version} goes:\n\
             - what was said before it in {} open sessions, and all of {} closed ones (the sessions themselves stay);\n\
             - {} events of {} feeds that are not acknowledged: instant mode does not give them any more.\n",
            concerned.open_sessions, concerned.closed_sessions, concerned.unacknowledged_events, concerned.their_feeds
        );
    }
    let mut sql: Vec<String> =
        plan.keep_from.iter().map(|version| format!("select keep_events_from({version});")).collect();
    sql.extend(plan.to_detach().map(|partition| format!("{};", retention::detach_statement(partition))));
    if sql.is_empty() {
        text.push_str("\nNothing goes.\n");
    } else {
        let _ = write!(
            text,
            "\n`deskfeed retention apply` does that; or with psql, as the owner, each statement by itself:\n\n{}\n",
            sql.join("\n")
        );
    }
    text
}

fn time(at: Option<DateTime<Utc>>) -> String {
    at.map_or_else(|| "-".to_owned(), |at| at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true))
}
