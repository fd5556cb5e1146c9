//! `deskfeed migrate`.

use std::process::ExitCode;

use clap::Args;

use super::{
    EXIT_SCHEMA,
    database::{Database, connect, migrate},
};
use crate::{
    config::DatabaseArgs,
    store::{
        pool::Db,
        schema::{self, SchemaState},
    },
};

#[derive(Debug, Args)]
pub struct MigrateArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Only show which migrations are applied. Exit code 0: all; 3: not all, or others.
    #[arg(long, conflicts_with = "print")]
    status: bool,
    /// Only print the SQL that is not applied yet, for psql.
    #[arg(long)]
    print: bool,
}

pub async fn run(args: &MigrateArgs) -> anyhow::Result<ExitCode> {
    let database = Database::borrow(&args.database).await?;
    let done = run_on(args, &database.url).await;
    database.stop().await?;
    done
}

async fn run_on(args: &MigrateArgs, url: &str) -> anyhow::Result<ExitCode> {
    let db = Db::new(url, 1)?;
    let mut connection = connect(&db).await?;
    if args.status {
        for line in schema::status(&mut connection).await? {
            println!("{:04} {:<12} {}", line.number, line.name, if line.applied { "applied" } else { "missing" });
        }
        let state = schema::state(&mut connection).await?;
        match state {
            SchemaState::Current => println!("The schema is current."),
            SchemaState::Behind { next } => {
                println!("Missing from {next:04} on: run `deskfeed migrate`, or `deskfeed migrate --print` for psql.");
            }
            SchemaState::Ahead { newest } => {
                println!("The database has migrations up to {newest:04}, newer than this program.");
            }
            SchemaState::Different { number } => {
                println!("Migration {number:04} is recorded differently from this program's file.");
            }
        }
        return Ok(if state == SchemaState::Current { ExitCode::SUCCESS } else { ExitCode::from(EXIT_SCHEMA) });
    }
    if args.print {
        print!("{}", schema::print_pending(&mut connection).await?);
        return Ok(ExitCode::SUCCESS);
    }
    migrate(&mut connection).await?;
    println!("The schema is current.");
    Ok(ExitCode::SUCCESS)
}
