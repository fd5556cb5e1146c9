//! Requests that change something, and their replies.

use super::{SessionReply, open_session::Open, send_message::Sent};
use crate::{
    domain::{caller::Caller, fault::Fault, message::NewMessage},
    store::agents::AgentChange,
};

/// A request.
#[derive(Debug)]
pub enum Command {
    Send {
        caller: Caller,
        messages: Vec<NewMessage>,
    },
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
    Claim {
        caller: Caller,
        session_id: String,
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

/// Its reply.
#[derive(Debug)]
pub enum Reply {
    /// One element per message.
    Sent(Vec<Result<Sent, Fault>>),
    Session(SessionReply),
    Done,
}

impl Command {
    /// The sessions it concerns.
    pub fn session_ids(&self) -> Vec<&str> {
        match self {
            Self::Send { messages, .. } => messages.iter().map(|message| message.session_id.as_str()).collect(),
            Self::Open { open, .. } => vec![&open.card.session_id],
            Self::Close { session_id, .. }
            | Self::Release { session_id, .. }
            | Self::Transfer { session_id, .. }
            | Self::Claim { session_id, .. } => vec![session_id],
            Self::SetPresence { .. } | Self::PutAgent { .. } | Self::AssignQueued => Vec::new(),
        }
    }

    /// The agent it names.
    pub fn agent_id(&self) -> Option<&str> {
        match self {
            Self::Transfer { to_id, .. } => Some(to_id),
            Self::Open { open, .. } => open.to_id.as_deref(),
            _ => None,
        }
    }
}
