//! A batch: many pieces of work in one transaction, everything but its commit.
//!
//! The requests of a batch are concurrent (none has been answered), so any order among them is
//! right: the rare operations go first, one by one, then all messages together.

use std::collections::HashMap;

use sqlx::PgConnection;

use super::{
    Failure, SessionReply, assign_queued, close_session,
    open_session::{self, Open},
    put_agent, release_session,
    send_message::{self, Send, Sent},
    set_presence, transfer_session,
};
use crate::{
    domain::{caller::Caller, fault::Fault},
    store::{
        agents::AgentChange,
        appends::{self, Ledger},
        cards::Cards,
        sessions,
    },
};

/// One piece of work.
#[derive(Debug)]
pub enum Command {
    Send(Send),
    Open {
        caller: Caller,
        open: Open,
    },
    Close {
        caller: Caller,
        session_id: String,
    },
    Release {
        caller: Caller,
        session_id: String,
    },
    Transfer {
        caller: Caller,
        session_id: String,
        to_id: String,
    },
    SetPresence {
        caller: Caller,
        online: bool,
    },
    PutAgent {
        caller: Caller,
        change: AgentChange,
    },
    /// Agents may have become available.
    AssignQueued,
}

/// What a piece of work is answered.
#[derive(Debug)]
pub enum Reply {
    Sent(Vec<Result<Sent, Fault>>),
    Session(SessionReply),
    Done,
}

/// Begins a transaction under the append lock and does everything in it.
///
/// # Errors
/// When the database fails; the transaction is then to be given up. A request that is refused is no error.
pub async fn write(
    connection: &mut PgConnection,
    cards: &Cards,
    commands: &[&Command],
) -> Result<(Ledger, Vec<Result<Reply, Fault>>), sqlx::Error> {
    let sends: Vec<&Send> = commands
        .iter()
        .filter_map(|command| if let Command::Send(send) = command { Some(send) } else { None })
        .collect();
    let only_sends = sends.len() == commands.len();
    let ids = send_message::session_ids(sends.iter().copied());

    appends::begin(connection).await?;
    let mut rare = Vec::new();
    let (mut ledger, mut found) = sessions::for_append(connection, if only_sends { &ids } else { &[] }).await?;
    if !only_sends {
        rare = apply_rare(connection, &mut ledger, commands).await?;
        // Anew: the rare operations may have changed these very sessions.
        found = if ids.is_empty() { HashMap::new() } else { sessions::for_append(connection, &ids).await?.1 };
    }
    let mut sent = match (sends.is_empty(), only_sends) {
        (true, _) => Vec::new(),
        (false, true) => send_message::apply(connection, cards, &mut ledger, found, &sends).await?,
        // Keys that this very transaction gave may be given to something else if it is not
        // committed: what it shows of them must not be remembered.
        (false, false) => send_message::apply(connection, &Cards::default(), &mut ledger, found, &sends).await?,
    }
    .into_iter();
    ledger.write(connection).await?;

    let mut rare = rare.into_iter();
    let replies = commands
        .iter()
        .map(|command| match command {
            Command::Send(_) => {
                sent.next().map(Reply::Sent).ok_or_else(|| Fault::internal("a send without an outcome"))
            }
            _ => rare.next().unwrap_or_else(|| Err(Fault::internal("an operation without an outcome"))),
        })
        .collect();
    Ok((ledger, replies))
}

/// Everything but messages, one by one, and then the assignments that have become possible.
async fn apply_rare(
    connection: &mut PgConnection,
    ledger: &mut Ledger,
    commands: &[&Command],
) -> Result<Vec<Result<Reply, Fault>>, sqlx::Error> {
    let mut replies = Vec::new();
    for command in commands {
        let applied = match command {
            Command::Send(_) => continue,
            Command::Open { caller, open } => {
                open_session::apply(connection, ledger, caller, open).await.map(Reply::Session)
            }
            Command::Close { caller, session_id } => {
                close_session::apply(connection, ledger, caller, session_id).await.map(Reply::Session)
            }
            Command::Release { caller, session_id } => {
                release_session::apply(connection, ledger, caller, session_id).await.map(Reply::Session)
            }
            Command::Transfer { caller, session_id, to_id } => {
                transfer_session::apply(connection, ledger, caller, session_id, to_id).await.map(Reply::Session)
            }
            Command::SetPresence { caller, online } => {
                set_presence::apply(connection, caller, *online).await.map(|()| Reply::Done)
            }
            Command::PutAgent { caller, change } => {
                put_agent::apply(connection, caller, change).await.map(|()| Reply::Done)
            }
            Command::AssignQueued => Ok(Reply::Done),
        };
        replies.push(match applied {
            Ok(reply) => Ok(reply),
            Err(Failure::Refused(fault)) => Err(fault),
            Err(Failure::Database(error)) => return Err(error),
        });
    }
    if sessions::any_queued(connection).await? {
        match assign_queued::apply(connection, ledger).await {
            Ok(_) => {}
            Err(Failure::Database(error)) => return Err(error),
            Err(Failure::Refused(fault)) => return Err(sqlx::Error::Configuration(fault.to_string().into())),
        }
    }
    Ok(replies)
}
