//! What requests come to: one file per operation. Pure: an operation is decided on [`facts::Facts`] and
//! noted in the [`ledger::Ledger`]; it reads nothing, starts no task and does no HTTP. What it assumed is
//! checked when the ledger is appended.
//!
//! Facts may be old. A decision that writes may be made on old facts, because the append checks them. One that writes
//! nothing (a refusal, the answer to a repetition) needs facts that were read after the request came:
//! where they were not, it is [`Verdict::AskAgain`].

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

/// What a session operation answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionReply {
    pub session_id: String,
    pub status: Status,
    pub to_id: Option<String>,
    pub version: i64,
}

/// What is decided about a request, or about one message of it.
#[derive(Debug)]
pub enum Verdict<T, S> {
    /// Nothing is to be written.
    Answer(Result<T, Fault>),
    /// It is in the ledger; the slot says where.
    Write(S),
    /// Only facts that are read now can tell.
    AskAgain,
    /// It cannot be in the same append as something before it.
    Later,
}

impl<T, S> Verdict<T, S> {
    /// An answer that writes nothing, which needs fresh facts.
    fn answer(is_fresh: bool, answer: Result<T, Fault>) -> Self {
        if is_fresh { Self::Answer(answer) } else { Self::AskAgain }
    }
}
