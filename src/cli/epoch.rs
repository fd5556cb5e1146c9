//! `deskfeed epoch`: shows `Feed-Epoch`, or begins a new one.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::database::{Database, check_schema, connect};
use crate::{
    config::DatabaseArgs,
    store::{events, history, pool::Db},
};

#[derive(Debug, Args)]
pub struct EpochArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Without one: show.
    #[command(subcommand)]
    command: Option<EpochCommand>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum EpochCommand {
    /// Prints the epoch.
    Show,
    /// Begins a new epoch with the next version, so that readers who are ahead of what was kept are told so (41001).
    /// A promoted standby and a server that was recovered to a point in time begin one themselves, with their first
    /// append; a dump that is restored into the same server, or a snapshot of its disk, does not. Services that run
    /// notice by themselves.
    Renew,
}

pub async fn run(args: &EpochArgs) -> anyhow::Result<ExitCode> {
    let database = Database::borrow(&args.database).await?;
    let done = run_on(args, &database.url).await;
    database.stop().await?;
    done.map(|()| ExitCode::SUCCESS)
}

async fn run_on(args: &EpochArgs, url: &str) -> anyhow::Result<()> {
    let db = Db::new(url, 1)?;
    let mut connection = connect(&db).await?;
    check_schema(&mut connection).await?;
    let state = events::store_state(&mut connection).await.context("the store cannot be read")?;
    match args.command {
        None | Some(EpochCommand::Show) => {
            println!("{}", state.epoch);
            if history::newest(&mut connection).await?.is_own == Some(false) {
                eprintln!(
                    "The server was promoted or restored since: the next append begins a new epoch with version {}.",
                    state.head + 1
                );
            }
        }
        Some(EpochCommand::Renew) => {
            history::renew(&mut connection)
                .await
                .context("the epoch cannot be changed; log in as the role that owns the tables")?;
            let renewed = events::store_state(&mut connection).await?.epoch;
            println!("Feed-Epoch was {} and is {renewed} now; the newest version is {}.", state.epoch, state.head);
        }
    }
    Ok(())
}
