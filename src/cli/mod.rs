//! The commands. Wiring, top to bottom, and no logic.

pub mod backfill;
pub mod database;
pub mod demo;
pub mod doctor;
pub mod epoch;
pub mod erase;
pub mod export;
pub mod healthcheck;
pub mod import;
pub mod migrate;
pub mod progress;
pub mod retention;
pub mod sealed;
pub mod serve;
pub mod token;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};
use utoipa::OpenApi;

use crate::{
    config::{LogArgs, ServeArgs},
    telemetry,
};

/// What the schema must be for `serve` is not what the database has.
pub const EXIT_SCHEMA: u8 = 3;

#[derive(Debug, Parser)]
#[command(name = "deskfeed", version, about, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: Option<Command>,
    /// Without a command: serve.
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the service (the default).
    Serve(Box<ServeArgs>),
    /// Plays conversations through the HTTP interface and checks that nothing is lost.
    Demo(Box<demo::DemoArgs>),
    /// Applies the migrations, or shows what is missing.
    Migrate(migrate::MigrateArgs),
    /// Writes the whole store into a file, while the service runs.
    Export(export::ExportArgs),
    /// Puts what `export` wrote into an empty store.
    Import(import::ImportArgs),
    /// Reads one feed's whole history over HTTP into a file.
    Backfill(backfill::BackfillArgs),
    /// Makes blank what was written in a session, or by and to a customer. Cannot be undone.
    Erase(erase::EraseArgs),
    /// Shows the store's Feed-Epoch, or renews it after a restore.
    Epoch(epoch::EpochArgs),
    /// Looks at the database: what is wrong, and what to do. Exit code 0: all is well; 1: warnings; 2: critical.
    Doctor(doctor::DoctorArgs),
    /// Partitions of events: which old ones could go, lets them go, and makes those to come.
    Retention(retention::RetentionArgs),
    /// Makes, lists and revokes tokens.
    Token(token::TokenArgs),
    /// Asks a running service whether it is ready; for containers. Exit code 0: yes.
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Prints the OpenAPI document.
    Openapi,
}

/// The program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = telemetry::start_log(&cli.log) {
        eprintln!("deskfeed: {error:#}");
        return ExitCode::from(2);
    }
    // sqlx and reqwest both look for it; installing it twice is no harm.
    drop(rustls::crypto::ring::default_provider().install_default());
    let command = cli.command.unwrap_or_else(|| Command::Serve(Box::new(cli.serve)));
    let threads = if let Command::Serve(args) = &command { Some(serve::Threads::of(args)) } else { None };
    let runtimes = runtime(threads.map(|threads| threads.service), "deskfeed").and_then(|main| {
        let pages = threads.map_or(0, |threads| threads.pages);
        Ok((main, if pages > 0 { Some(runtime(Some(pages), "deskfeed-pages")?) } else { None }))
    });
    let (runtime, pages) = match runtimes {
        Ok(runtimes) => runtimes,
        Err(error) => {
            eprintln!("deskfeed: the runtime cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match command {
            Command::Serve(args) => serve::run(&args, pages.as_ref().map(Runtime::handle)).await,
            Command::Demo(args) => demo::run(&args).await,
            Command::Migrate(args) => migrate::run(&args).await,
            Command::Export(args) => export::run(&args).await,
            Command::Import(args) => import::run(&args).await,
            Command::Backfill(args) => backfill::run(&args).await,
            Command::Erase(args) => erase::run(&args).await,
            Command::Epoch(args) => epoch::run(&args).await,
            Command::Doctor(args) => doctor::run(&args).await,
            Command::Retention(args) => retention::run(&args).await,
            Command::Token(args) => token::run(&args).await,
            Command::Healthcheck(args) => healthcheck::run(&args).await,
            Command::Openapi => print_openapi(),
        }
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("deskfeed: {}", explained(&error));
            if error.is::<database::WrongSchema>() { ExitCode::from(EXIT_SCHEMA) } else { ExitCode::FAILURE }
        }
    }
}

/// An error with its causes, without those whose text is in it already.
fn explained(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| {
        if text.is_empty() {
            cause
        } else if text.contains(&cause) {
            text
        } else {
            format!("{text}: {cause}")
        }
    })
}

/// So many threads, or as many as there are cores.
///
/// # Errors
/// When they cannot be started.
fn runtime(threads: Option<usize>, name: &str) -> io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(threads);
    }
    builder.thread_name(name).enable_all().build()
}

/// Writes a text to standard output, to whose reader (`head`, `less`) a part may be enough.
fn print_text(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

fn print_openapi() -> anyhow::Result<ExitCode> {
    println!("{}", crate::http::openapi::Api::openapi().to_pretty_json()?);
    Ok(ExitCode::SUCCESS)
}
