//! `POST /session/release`: the owner hands a session back to the queue.

use sqlx::PgConnection;

use super::{Failure, SessionReply, find_session};
use crate::{
    domain::{
        caller::Caller,
        session::{Happening, LastOp, Session, Status},
    },
    store::{agents, appends::Ledger, sessions},
};

pub async fn apply(
    connection: &mut PgConnection,
    ledger: &mut Ledger<'_>,
    caller: &Caller,
    session_id: &str,
) -> Result<SessionReply, Failure> {
    let session = find_session(connection, session_id).await?.session;
    let reply =
        |version| SessionReply { session_id: session_id.to_owned(), status: Status::Queued, to_id: None, version };
    if is_repetition(&session, caller) {
        return Ok(reply(session.last_op_version));
    }
    session.check_may_direct(caller)?;
    let Some(owner) = &session.owner else {
        // Queued already, and not by this caller's release: nothing to do, nobody to tell.
        return Ok(reply(0));
    };
    let version =
        ledger.record(session.key, session.gateway, Happening::Released { from: owner.key, profile: owner.profile });
    sessions::set_queued(connection, session.key).await?;
    sessions::set_last_op(connection, session.key, LastOp::Release, caller, Some(owner.key), version).await?;
    agents::drop_session(connection, owner.key).await?;
    Ok(reply(version))
}

/// Whether `caller` has released it and does so again. It may have been assigned to somebody else
/// in the meantime: the agent who repeats does not own it, an admin must look at the status.
fn is_repetition(session: &Session, caller: &Caller) -> bool {
    let has_it_again = match caller {
        Caller::Agent(agent) => session.is_owned_by(agent.key),
        _ => session.status == Status::Open,
    };
    session.status != Status::Closed && !has_it_again && session.repeats(LastOp::Release, caller, None)
}
