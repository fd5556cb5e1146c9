//! `deskfeed token`: tokens without the HTTP interface, for the first one and for emergencies.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use sqlx::PgConnection;
use uuid::Uuid;

use super::database::{Database, check_schema, connect};
use crate::{
    config::DatabaseArgs,
    domain::{caller::Role, fault::Fault},
    live::auth::issue::issue,
    store::{pool::Db, tokens},
};

#[derive(Debug, Args)]
pub struct TokenArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Makes a token and prints it, this once.
    Create {
        #[arg(long, value_parser = ["agent", "gateway", "admin"])]
        role: String,
        /// The agent's or gateway's id.
        #[arg(long)]
        subject: Option<String>,
        /// Seconds until it expires; absent: never.
        #[arg(long, value_parser = clap::value_parser!(i64).range(1..=3_155_760_000))]
        expires_in: Option<i64>,
    },
    /// Lists all tokens, without their secrets.
    List,
    /// Revokes a token.
    Revoke { token_id: Uuid },
}

pub async fn run(args: &TokenArgs) -> anyhow::Result<ExitCode> {
    let database = Database::borrow(&args.database).await?;
    let done = run_on(args, &database.url).await;
    database.stop().await?;
    done.map(|()| ExitCode::SUCCESS)
}

async fn run_on(args: &TokenArgs, url: &str) -> anyhow::Result<()> {
    let db = Db::new(url, 1)?;
    let mut connection = connect(&db).await?;
    check_schema(&mut connection).await?;
    match &args.command {
        TokenCommand::Create { role, subject, expires_in } => {
            let role = Role::parse(role).context("unknown role")?;
            println!("{}", create(&mut connection, role, subject.as_deref(), *expires_in).await?);
        }
        TokenCommand::List => {
            for line in tokens::list(&mut connection).await? {
                let subject = line.subject.unwrap_or_else(|| "-".to_owned());
                let expires = line.expires_at.map_or_else(|| "never".to_owned(), |time| time.to_rfc3339());
                let state = if line.revoked { "revoked" } else { "valid" };
                println!("{}  {:<8} {subject:<24} expires {expires}  {state}", line.token_id, line.role.name());
            }
        }
        TokenCommand::Revoke { token_id } => {
            if !tokens::revoke(&mut connection, *token_id).await? {
                bail!("there is no token {token_id}; `deskfeed token list` shows them");
            }
            println!("revoked");
        }
    }
    Ok(())
}

/// Makes a token and gives its secret.
///
/// # Errors
/// When the subject does not fit the role, or the database refuses it.
pub async fn create(
    connection: &mut PgConnection,
    role: Role,
    subject: Option<&str>,
    expires_in_s: Option<i64>,
) -> anyhow::Result<String> {
    match issue(connection, role, subject, expires_in_s).await? {
        Ok((_, secret)) => Ok(secret),
        Err(Fault::NoSuchAgent(id)) => {
            bail!("there is no {} {id:?}; an admin makes it with POST /admin/{}", role.name(), role.name())
        }
        Err(fault) => Err(fault.into()),
    }
}
