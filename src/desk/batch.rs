//! A batch: many pieces of work in one transaction, everything but its commit.
//!
//! The requests of a batch are concurrent (none has been answered), so any order among them is
//! right: the rare operations go first, one by one, then all messages together.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{
    Failure, SessionReply, assign_queued, close_session,
    known::Known,
    open_session::{self, Open},
    put_agent, release_session,
    send_message::{self, Decided, Send, Sent},
    set_presence, transfer_session,
};
use crate::{
    domain::{caller::Caller, fault::Fault},
    store::{
        self,
        agents::AgentChange,
        appends::{self, Ledger},
        cards::Cards,
        sessions::{self, Found, Standing},
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

/// A batch that is decided and waits to be written.
#[derive(Debug)]
pub struct Decision<'a> {
    pub ledger: Ledger<'a>,
    replies: Vec<Pending>,
    /// The sessions of its messages, as they are after it.
    pub sessions: HashMap<String, Found>,
    /// The count of changes to sessions and agents that it leaves; none where it made some.
    pub changes: Option<i64>,
}

/// What a piece of work is answered when the batch is committed.
#[derive(Debug)]
enum Pending {
    Sent(Vec<Result<Decided, Fault>>),
    Other(Result<Reply, Fault>),
}

impl Decision<'_> {
    /// The answers, in the order of the work.
    pub fn replies(self, appended_at: DateTime<Utc>) -> Vec<Result<Reply, Fault>> {
        let sent = |decided: Vec<Result<Decided, Fault>>| {
            decided.into_iter().map(|decided| decided.map(|decided| decided.at(appended_at))).collect()
        };
        self.replies
            .into_iter()
            .map(|reply| match reply {
                Pending::Sent(decided) => Ok(Reply::Sent(sent(decided))),
                Pending::Other(reply) => reply,
            })
            .collect()
    }
}

/// The sends of a batch, if it is nothing else.
fn only_sends<'a>(commands: &[&'a Command]) -> Option<Vec<&'a Send>> {
    commands.iter().map(|command| if let Command::Send(send) = command { Some(send) } else { None }).collect()
}

/// Decides about a batch on what is remembered of the store, without the append lock. None when
/// that does not reach. What is decided holds only if the ledger's assumptions do when it is written.
/// The sessions are taken out of what is remembered; [`Known::after`] puts them back.
///
/// # Errors
/// When the database cannot be read.
pub async fn assume<'a>(
    connection: &mut PgConnection,
    cards: &Cards,
    known: &mut Known,
    commands: &[&'a Command],
) -> Result<Option<Decision<'a>>, store::Error> {
    let Some(sends) = only_sends(commands) else { return Ok(None) };
    let given = send_message::given_ids(&sends);
    // Whose it is, if it is made of a version that is there, only a look can tell.
    if given.iter().any(|id| id.version_made_of().is_some_and(|version| version <= known.head)) {
        return Ok(None);
    }
    let Some(mut found) = known.take(&send_message::session_ids(sends.iter().copied())) else { return Ok(None) };
    let mut ledger = Ledger::assuming(known.head, known.changes, given.is_empty());
    let decided = send_message::apply(connection, cards, &mut ledger, &mut found, &sends, HashMap::new()).await?;
    let replies = decided.into_iter().map(Pending::Sent).collect();
    Ok(Some(Decision { ledger, replies, sessions: found, changes: Some(known.changes) }))
}

/// Begins a transaction under the append lock and decides about a batch in it. Gives also what the
/// store looked like at its start.
///
/// # Errors
/// When the database fails; the transaction is then to be given up. A request that is refused is no error.
pub async fn decide<'a>(
    connection: &mut PgConnection,
    cards: &Cards,
    commands: &[&'a Command],
) -> Result<(Decision<'a>, Standing), store::Error> {
    let sends: Vec<&'a Send> = commands
        .iter()
        .filter_map(|command| if let Command::Send(send) = command { Some(send) } else { None })
        .collect();
    let only_sends = sends.len() == commands.len();
    let ids = send_message::session_ids(sends.iter().copied());

    appends::begin(connection).await?;
    let mut rare = Vec::new();
    let mut standing = sessions::for_append(connection, if only_sends { &ids } else { &[] }).await?;
    let mut ledger = standing.ledger();
    let mut found = std::mem::take(&mut standing.sessions);
    if !only_sends {
        rare = apply_rare(connection, &mut ledger, commands).await?;
        // Anew: the rare operations may have changed these very sessions.
        found = if ids.is_empty() { HashMap::new() } else { sessions::for_append(connection, &ids).await?.sessions };
    }
    let kept = send_message::find_kept(connection, &sends).await?;
    let mut sent = match (sends.is_empty(), only_sends) {
        (true, _) => Vec::new(),
        (false, true) => {
            for found in found.values() {
                cards.put_session(found.session.key, &found.card);
            }
            send_message::apply(connection, cards, &mut ledger, &mut found, &sends, kept).await?
        }
        // Keys that this very transaction gave may be given to something else if it is not
        // committed: what it shows of them must not be remembered.
        (false, false) => {
            send_message::apply(connection, &Cards::default(), &mut ledger, &mut found, &sends, kept).await?
        }
    }
    .into_iter();

    let mut rare = rare.into_iter();
    let replies = commands
        .iter()
        .map(|command| match command {
            Command::Send(_) => sent
                .next()
                .map_or_else(|| Pending::Other(Err(Fault::internal("a send without an outcome"))), Pending::Sent),
            _ => Pending::Other(rare.next().unwrap_or_else(|| Err(Fault::internal("an operation without an outcome")))),
        })
        .collect();
    let changes = only_sends.then_some(standing.changes);
    Ok((Decision { ledger, replies, sessions: found, changes }, standing))
}

/// Everything but messages, one by one, and then the assignments that have become possible.
async fn apply_rare(
    connection: &mut PgConnection,
    ledger: &mut Ledger<'_>,
    commands: &[&Command],
) -> Result<Vec<Result<Reply, Fault>>, store::Error> {
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
            Err(Failure::Refused(fault)) => return Err(store::Error::inconsistent(fault.to_string())),
        }
    }
    Ok(replies)
}
