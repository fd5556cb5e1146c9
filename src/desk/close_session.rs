//! `POST /session/close`: the owner ends a session.

use sqlx::PgConnection;

use super::{Failure, SessionReply, find_session};
use crate::{
    domain::{
        caller::Caller,
        session::{Happening, LastOp, Status},
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
        |version| SessionReply { session_id: session_id.to_owned(), status: Status::Closed, to_id: None, version };
    if session.status == Status::Closed && session.repeats(LastOp::Close, caller, None) {
        return Ok(reply(session.last_op_version));
    }
    session.check_may_direct(caller)?;

    let owner = session.owner.as_ref().map(|owner| (owner.key, owner.profile));
    let version = ledger.record(session.key, session.gateway, Happening::Closed { owner });
    sessions::set_closed(connection, session.key, ledger.appended_at()?).await?;
    sessions::set_last_op(connection, session.key, LastOp::Close, caller, None, version).await?;
    if let Some((owner, _)) = owner {
        agents::drop_session(connection, owner).await?;
    }
    Ok(reply(version))
}
