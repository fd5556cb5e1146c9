//! `deskfeed migrate`.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use sqlx::PgConnection;

use super::{
    EXIT_SCHEMA,
    database::{Database, check_schema, connect},
    print_text,
};
use crate::{
    config::DatabaseArgs,
    store::{
        catalog,
        pool::Db,
        schema::{self, Migrations, SchemaState},
    },
};

#[derive(Debug, Args)]
pub struct MigrateArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Without one: up.
    #[command(subcommand)]
    command: Option<MigrateCommand>,
}

#[derive(Debug, Subcommand)]
enum MigrateCommand {
    /// Applies what is missing, and gives the roles their rights.
    Up {
        /// Stops after this migration.
        #[arg(long)]
        to: Option<i64>,
    },
    /// Shows which migrations are applied. Exit code 0: the service can run; 3: it cannot.
    Status,
    /// Prints the SQL that is not applied yet, for psql.
    Print {
        /// All from this migration on, without a look at the database.
        #[arg(long)]
        from: Option<i64>,
    },
    /// Records a migration whose SQL was run by other means than `up` or what `print` prints.
    MarkApplied { number: i64 },
    /// Compares the database's tables, columns, constraints, indexes, triggers, functions and so on
    /// with what the migrations make. Exit code 0: all is as it should be; 3: it is not.
    Verify,
}

pub async fn run(args: &MigrateArgs) -> anyhow::Result<ExitCode> {
    if let Some(MigrateCommand::Print { from: Some(from) }) = args.command {
        print_text(&Migrations::embedded().print_from(from)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let database = Database::borrow(&args.database).await?;
    let done = run_on(args, &database.url).await;
    database.stop().await?;
    done
}

async fn run_on(args: &MigrateArgs, url: &str) -> anyhow::Result<ExitCode> {
    let db = Db::new(url, 1)?;
    let mut connection = connect(&db).await?;
    match args.command {
        None => up(&mut connection, None).await,
        Some(MigrateCommand::Up { to }) => up(&mut connection, to).await,
        Some(MigrateCommand::Status) => status(&mut connection).await,
        Some(MigrateCommand::Print { .. }) => {
            // What is missing only: a schema that is newer or different is not a matter of more SQL.
            if !matches!(schema::state(&mut connection).await?, SchemaState::Behind { .. }) {
                check_schema(&mut connection).await?;
            }
            print_text(&Migrations::embedded().print(&mut connection).await?)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(MigrateCommand::MarkApplied { number }) => mark_applied(&mut connection, number).await,
        Some(MigrateCommand::Verify) => verify(&mut connection).await,
    }
}

async fn up(connection: &mut PgConnection, to: Option<i64>) -> anyhow::Result<ExitCode> {
    // A schema that is newer or different is left alone.
    let before = schema::state(connection).await?;
    if let SchemaState::Behind { next } = before {
        let applied = Migrations::embedded()
            .up(connection, to, |migration, took| {
                println!("{:04} {:<12} applied in {} ms", migration.version, migration.description, took.as_millis());
            })
            .await;
        applied.with_context(|| {
            format!("the migrations from {next:04} on are not all applied; what was is kept, and `deskfeed migrate` goes on from there")
        })?;
    }
    if let (SchemaState::Behind { next }, Some(to)) = (schema::state(connection).await?, to) {
        println!("Applied up to {to}, as asked for; missing from {next} on.");
        return Ok(ExitCode::SUCCESS);
    }
    check_schema(connection).await?;
    schema::grant(connection).await?;
    println!("The schema is current.");
    Ok(ExitCode::SUCCESS)
}

async fn status(connection: &mut PgConnection) -> anyhow::Result<ExitCode> {
    for line in Migrations::embedded().status(connection).await? {
        let applied = line.applied_at.map_or_else(
            || "missing".to_owned(),
            |at| format!("applied {}", at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)),
        );
        let newer = if line.known { "" } else { ", not of this program" };
        println!("{:04} {:<12} {applied}{newer}", line.number, line.name);
    }
    let state = schema::state(connection).await?;
    match state {
        SchemaState::Current => println!("The schema is current."),
        SchemaState::Extended { newest } => {
            println!(
                "The database has migrations up to {newest:04}, newer than this program, which can work with them."
            );
        }
        SchemaState::Behind { next } => {
            println!("Missing from {next:04} on: run `deskfeed migrate`, or `deskfeed migrate print` for psql.");
        }
        SchemaState::Ahead { newest } => {
            println!(
                "The database has migrations up to {newest:04}, newer than this program, which cannot work with them."
            );
        }
        SchemaState::Different { number } => {
            println!("Migration {number:04} is recorded differently from this program's file.");
        }
    }
    Ok(exit_code(state.is_usable()))
}

async fn mark_applied(connection: &mut PgConnection, number: i64) -> anyhow::Result<ExitCode> {
    if Migrations::embedded().mark_applied(connection, number).await? {
        println!("Migration {number:04} is recorded as applied.");
    } else {
        println!("Migration {number:04} is recorded already.");
    }
    // Whether it was true shows when all are recorded.
    match schema::state(connection).await? {
        SchemaState::Current => verify(connection).await,
        _ => Ok(ExitCode::SUCCESS),
    }
}

async fn verify(connection: &mut PgConnection) -> anyhow::Result<ExitCode> {
    // What is not applied is not there, and what a newer program has made is not known here.
    if schema::state(connection).await? != SchemaState::Current {
        return status(connection).await.map(|_| exit_code(false));
    }
    let differences = catalog::differences(connection).await?;
    for difference in &differences {
        println!("{difference}");
    }
    if differences.is_empty() {
        println!("The schema is what the migrations make.");
    } else {
        println!("{} differences from what the migrations make.", differences.len());
    }
    Ok(exit_code(differences.is_empty()))
}

fn exit_code(well: bool) -> ExitCode {
    if well { ExitCode::SUCCESS } else { ExitCode::from(EXIT_SCHEMA) }
}
