//! `deskfeed erase`: makes blank what was written in a session, or by and to a customer.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::HumanCount;
use sqlx::PgConnection;
use tokio::time::sleep;

use super::database::{Database, check_schema, connect};
use crate::{
    config::DatabaseArgs,
    domain::limits,
    store::{
        erasures::{self, Asked, Erasable},
        pool::Db,
    },
};

#[derive(Debug, Args)]
pub struct EraseArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// The session (`SessionId`) that is to be erased.
    #[arg(long, value_name = "ID", required_unless_present = "customer", conflicts_with = "customer")]
    session: Option<String>,
    /// The customer (`FromId`) whose sessions are to be erased, all of them.
    #[arg(long, value_name = "ID")]
    customer: Option<String>,
    /// Only those of the customer's sessions that came through this gateway.
    #[arg(long, value_name = "ID", requires = "customer", conflicts_with = "session")]
    gateway: Option<String>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

impl EraseArgs {
    fn asked(&self) -> anyhow::Result<Asked> {
        match (&self.session, &self.customer) {
            (Some(session), None) => Ok(Asked::Session(session.clone())),
            (None, Some(id)) => Ok(Asked::Customer { id: id.clone(), gateway: self.gateway.clone() }),
            _ => bail!("say either --session or --customer"),
        }
    }
}

pub async fn run(args: &EraseArgs) -> anyhow::Result<ExitCode> {
    let database = Database::borrow(&args.database).await?;
    let done = run_on(args, &database.url).await;
    database.stop().await?;
    done.map(|()| ExitCode::SUCCESS)
}

async fn run_on(args: &EraseArgs, url: &str) -> anyhow::Result<()> {
    let asked = args.asked()?;
    let db = Db::new(url, 1)?;
    let mut connection = connect(&db).await?;
    check_schema(&mut connection).await?;
    let found = find(&mut connection, &asked).await?;
    println!("{}", summary(&found));
    if !args.yes && !is_confirmed()? {
        bail!("nothing was erased; say --yes to go ahead without being asked");
    }
    // Anew: what came while the question stood is meant, too.
    let found = find(&mut connection, &asked).await?;
    let mut messages = 0;
    for part in erasures::divide(&found) {
        messages += erasures::erase(&mut connection, &asked, &part).await.with_context(|| {
            format!("ended early, when {messages} messages were blank; run the same command again to go on from there")
        })?;
    }
    // Whoever asks any replica from then on is shown it.
    sleep(Duration::from_millis(limits::ERASURE_SETTLES_MS)).await;
    println!("Blanked {} messages; every replica shows it.", HumanCount(messages.unsigned_abs()));
    Ok(())
}

async fn find(connection: &mut PgConnection, asked: &Asked) -> anyhow::Result<Vec<Erasable>> {
    let found = erasures::find(connection, asked)
        .await
        .context("the sessions cannot be looked up; log in as deskfeed_eraser (deploy/roles.sql), or as the owner")?;
    if found.is_empty() {
        bail!("there is no such session; ids are told apart by case, too");
    }
    Ok(found)
}

/// `2 sessions (gateway web: 2), 120 messages to blank.`
fn summary(found: &[Erasable]) -> String {
    let mut gateways: BTreeMap<&str, usize> = BTreeMap::new();
    for session in found {
        *gateways.entry(session.gateway_id.as_deref().unwrap_or("none")).or_default() += 1;
    }
    let gateways: Vec<String> = gateways.iter().map(|(gateway, sessions)| format!("{gateway}: {sessions}")).collect();
    format!(
        "{} sessions (by gateway: {}), {} messages to blank.",
        HumanCount(found.len() as u64),
        gateways.join(", "),
        HumanCount(found.iter().map(Erasable::messages).sum())
    )
}

/// Asks a person, if there is one.
fn is_confirmed() -> io::Result<bool> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    let mut err = io::stderr().lock();
    write!(err, "This cannot be undone. Erase? [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}
