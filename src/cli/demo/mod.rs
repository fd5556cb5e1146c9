//! `deskfeed demo`: plays conversations through the public HTTP interface, as real clients would,
//! and checks that every feed was told everything, once, unchanged and in order.

mod cast;
mod check;
mod client;
mod dialogues;
mod play;
mod report;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Context, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use self::{cast::Cast, client::Client, dialogues::Dialogue, play::Stage};
use super::{
    database::{Database, connect},
    serve::Desk,
    token,
};
use crate::{
    config::{DatabaseArgs, ServeArgs, secret},
    domain::caller::Role,
    http::server::Bound,
    store::{pool::Db, schema},
};

#[derive(Debug, Args)]
pub struct DemoArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Address to listen on.
    #[arg(long, env = "DESKFEED_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Plays the conversations of an NDJSON file: {"Language", "Topic", "Turns": [text, ...]} a line, the first
    /// turn the customer's, then alternating [default: a few of our own].
    #[arg(long)]
    dialogues: Option<PathBuf>,
    /// How often each conversation is played [default: once with --dialogues, else 25 times].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repeat: Option<u32>,
    /// Conversations that go on at a time.
    #[arg(long, default_value = "64", value_parser = clap::value_parser!(u32).range(1..=1000))]
    concurrency: u32,
    /// Ends after the summary: exit code 0, or 1 if anything was lost.
    #[arg(long)]
    exit: bool,
    /// Plays against a running service instead of starting one. It must have no agents but the demo's own.
    #[arg(long)]
    url: Option<String>,
    /// Admin token of that service.
    #[arg(long, env = "DESKFEED_ADMIN_TOKEN", hide_env_values = true)]
    admin_token: Option<String>,
    /// A file that holds the admin token of that service.
    #[arg(long, env = "DESKFEED_ADMIN_TOKEN_FILE")]
    admin_token_file: Option<PathBuf>,
}

pub async fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let dialogues = match &args.dialogues {
        Some(path) => dialogues::read(path)?,
        None => dialogues::own(),
    };
    let repeat = args.repeat.unwrap_or(if args.dialogues.is_some() { 1 } else { 25 });
    let played: Vec<Dialogue> = (0..repeat).flat_map(|_| dialogues.iter().cloned()).collect();
    if let Some(url) = &args.url {
        let admin_token = secret("DESKFEED_ADMIN_TOKEN", args.admin_token.as_deref(), args.admin_token_file.as_ref())?
            .context("--url wants the admin token of that service: --admin-token or --admin-token-file")?;
        let (code, _) = perform(args, url.trim_end_matches('/'), &admin_token, played).await?;
        return Ok(code);
    }
    run_own(args, played).await
}

/// Starts a service for the demo, on a private PostgreSQL of its own beside the one of `serve`.
async fn run_own(args: &DemoArgs, played: Vec<Dialogue>) -> anyhow::Result<ExitCode> {
    let bound = Bound::to(args.listen).with_context(|| {
        format!("cannot listen on {}; is another program using it? Set DESKFEED_LISTEN", args.listen)
    })?;
    let mut database_args = args.database.clone();
    if database_args.url()?.is_none() {
        database_args.data = Some(args.database.data_folder()?.join("demo"));
    }
    eprintln!("Starting PostgreSQL ...");
    let database = Database::own(&database_args).await?;
    let done = perform_here(args, &database, bound, played).await;
    database.stop().await?;
    done
}

async fn perform_here(
    args: &DemoArgs,
    database: &Database,
    bound: Bound,
    played: Vec<Dialogue>,
) -> anyhow::Result<ExitCode> {
    let serve_args = ServeArgs::for_demo(args.database.clone(), args.listen);
    let db = Db::new(&database.url, serve_args.db_readers).context("DATABASE_URL cannot be read")?;
    let mut connection = connect(&db).await?;
    if database.is_private {
        schema::migrate(&mut connection).await?;
    }
    super::database::check_schema(&mut connection).await?;
    let admin_token = token::create(&mut connection, Role::Admin, None, None).await?;
    drop(connection);

    let desk = Desk::start(&serve_args, None, bound, db).await?;
    let url = format!("http://{}", desk.address());
    let performed = perform(args, &url, &admin_token, played).await;
    let code = match performed {
        Ok((code, tour)) if !args.exit => {
            println!("{tour}");
            wait_for_the_end().await?;
            code
        }
        Ok((code, _)) => code,
        Err(error) => {
            desk.stop().await;
            return Err(error);
        }
    };
    desk.stop().await;
    Ok(code)
}

/// Plays everything against a service; gives the exit code and the lines to copy and paste.
async fn perform(
    args: &DemoArgs,
    url: &str,
    admin_token: &str,
    played: Vec<Dialogue>,
) -> anyhow::Result<(ExitCode, String)> {
    if played.is_empty() {
        bail!("there are no conversations to play");
    }
    let admin = Client::new(url, admin_token)?;
    let cast = Cast::gather(&admin).await?;
    let stage = Arc::new(Stage::new(cast, played, Uuid::now_v7().simple().to_string()));
    let performance = play::perform(&stage, args.concurrency).await?;
    let faults = check::check(&stage, &performance).await?;
    report::print(&stage, &performance, &faults);
    let tour = report::tour(url, admin_token, &stage);
    Ok((if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }, tour))
}

async fn wait_for_the_end() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
