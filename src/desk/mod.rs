//! The operations, one file each. Pure: an operation is decided on [`facts::Facts`] and recorded in the
//! [`ledger::Ledger`]; it reads nothing, starts no task and knows no HTTP. Its assumptions are checked when the
//! ledger is appended.
//!
//! Facts may be stale. A decision that writes may use stale facts, because the append checks them. One that writes
//! nothing (a refusal, the reply to a repetition) needs facts read after the request arrived; without them it is
//! [`Verdict::AskAgain`].

pub mod claim_session;
pub mod close_session;
pub mod command;
pub mod decide;
pub mod facts;
pub mod ledger;
pub mod open_session;
pub mod release_session;
pub mod send_message;
pub mod transfer_session;

use crate::domain::{fault::Fault, session::Status};

/// The reply to a session operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionReply {
    pub session_id: String,
    pub status: Status,
    pub to_id: Option<String>,
    pub version: i64,
}

/// The decision about a request, or about one message of it.
#[derive(Debug)]
pub enum Verdict<T, S> {
    /// Nothing needs to be written.
    Answer(Result<T, Fault>),
    /// It is in the ledger, at this slot.
    Write(S),
    /// Needs fresh facts.
    AskAgain,
    /// Cannot share an append with something before it.
    Later,
}

impl<T, S> Verdict<T, S> {
    /// An answer that writes nothing, and so needs fresh facts.
    fn answer(is_fresh: bool, answer: Result<T, Fault>) -> Self {
        if is_fresh { Self::Answer(answer) } else { Self::AskAgain }
    }
}
