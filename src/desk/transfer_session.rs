//! `POST /session/transfer`: the owner hands a session on.

use sqlx::PgConnection;

use super::{Failure, SessionReply, find_session};
use crate::{
    domain::{
        caller::Caller,
        fault::Fault,
        session::{Happening, LastOp, Status},
    },
    store::{agents, appends::Ledger, sessions},
};

pub async fn apply(
    connection: &mut PgConnection,
    ledger: &mut Ledger<'_>,
    caller: &Caller,
    session_id: &str,
    to_id: &str,
) -> Result<SessionReply, Failure> {
    let found = find_session(connection, session_id).await?;
    let session = found.session;
    let target = agents::find(connection, to_id).await?;
    let reply = |version| SessionReply {
        session_id: session_id.to_owned(),
        status: Status::Open,
        to_id: Some(to_id.to_owned()),
        version,
    };
    let target_key = target.as_ref().map(|target| target.key);
    if session.status == Status::Open
        && target_key.is_some_and(|target| session.is_owned_by(target))
        && session.repeats(LastOp::Transfer, caller, target_key)
    {
        return Ok(reply(session.last_op_version));
    }
    session.check_may_direct(caller)?;
    let target = target.ok_or_else(|| Fault::NoSuchAgent(to_id.to_owned()))?;
    if session.is_owned_by(target.key) {
        return Err(Fault::TransferToOwner(target.id).into());
    }
    if !target.takes_sessions() {
        return Err(Fault::AgentUnavailable(target.id).into());
    }

    let from = session.owner.as_ref().map(|owner| (owner.key, owner.profile));
    let first = ledger.record(
        session.key,
        session.gateway,
        Happening::Transferred { from, to: target.key, profile: target.profile, last_seq: found.last_seq },
    );
    // The old owner's DelSession comes first, if there is an old owner; then the AddSession.
    let added = if from.is_some() { first + 1 } else { first };
    sessions::set_owner(connection, session.key, target.key, added).await?;
    sessions::set_last_op(connection, session.key, LastOp::Transfer, caller, Some(target.key), first).await?;
    if let Some((owner, _)) = from {
        agents::drop_session(connection, owner).await?;
    }
    agents::add_session(connection, target.key, ledger.appended_at()?).await?;
    Ok(reply(first))
}
