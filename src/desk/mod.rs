//! One file per operation. An operation takes a connection that is in a transaction and holds the
//! append lock, decides, writes its own tables and notes its events in the ledger. It does no HTTP
//! and starts no task. It checks everything before it writes anything: a refusal leaves the
//! transaction as it was, so its neighbours in the batch go on.

pub mod assign_queued;
pub mod batch;
pub mod close_session;
pub mod known;
pub mod open_session;
pub mod put_agent;
pub mod release_session;
pub mod send_message;
pub mod set_presence;
pub mod transfer_session;

use sqlx::PgConnection;

use crate::{
    domain::{fault::Fault, session::Status},
    store::{
        self,
        sessions::{self, Found},
    },
};

/// Why an operation did not happen.
#[derive(Debug)]
pub enum Failure {
    /// The request is at fault; the transaction is as it was.
    Refused(Fault),
    /// The database is at fault; the transaction is lost.
    Database(store::Error),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Refused(fault)
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        Self::Database(error)
    }
}

/// What a session operation answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionReply {
    pub session_id: String,
    pub status: Status,
    pub to_id: Option<String>,
    pub version: i64,
}

/// The session that an operation is about, or 40401.
async fn find_session(connection: &mut PgConnection, session_id: &str) -> Result<Found, Failure> {
    let found = sessions::find(connection, session_id).await?;
    Ok(found.ok_or_else(|| Fault::NoSuchSession(session_id.to_owned()))?)
}
