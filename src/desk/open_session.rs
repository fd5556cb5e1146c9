//! `POST /session/open`: a gateway or admin brings a conversation in.

use sqlx::PgConnection;

use super::{Failure, SessionReply, assign_queued};
use crate::{
    domain::{
        caller::Caller,
        event::SessionCard,
        fault::Fault,
        limits,
        session::{Happening, Status},
    },
    store::{agents, appends::Ledger, sessions},
};

/// A session as its gateway wants it opened.
#[derive(Debug, Clone)]
pub struct Open {
    pub card: SessionCard,
    pub to_id: Option<String>,
}

pub async fn apply(
    connection: &mut PgConnection,
    ledger: &mut Ledger<'_>,
    caller: &Caller,
    open: &Open,
) -> Result<SessionReply, Failure> {
    let gateway = match caller {
        Caller::Gateway(gateway) => Some(gateway.key),
        Caller::Admin => None,
        Caller::Agent(_) => return Err(Fault::role_may_not("only a gateway or an admin may open sessions").into()),
    };
    let session_id = &open.card.session_id;
    if let Some(found) = sessions::find(connection, session_id).await? {
        let session = found.session;
        // A session belongs to the gateway that opened it; what an admin opened, to the admins, who
        // may see the others' too.
        if session.gateway != gateway && *caller != Caller::Admin {
            return Err(Fault::NotOwner(session.session_id.clone()).into());
        }
        if session.status == Status::Closed {
            return Err(Fault::SessionClosed(session.session_id.clone()).into());
        }
        return Ok(SessionReply {
            session_id: session.session_id.clone(),
            status: session.status,
            to_id: session.owner.as_ref().map(|owner| owner.id.clone()),
            version: session.assigned_version,
        });
    }
    let agent = match &open.to_id {
        Some(id) => {
            let agent = agents::find(connection, id).await?.ok_or_else(|| Fault::NoSuchAgent(id.clone()))?;
            if !agent.takes_sessions() {
                return Err(Fault::AgentUnavailable(agent.id).into());
            }
            Some(agent)
        }
        None => {
            // Those who wait already come first; whoever is free after them takes this one. If more
            // wait than one transaction assigns, this one waits behind them.
            let assigned = if sessions::any_queued(connection).await? {
                assign_queued::apply(connection, ledger).await?
            } else {
                0
            };
            if assigned < limits::ASSIGNMENTS_PER_BATCH_MAX {
                agents::pick_available(connection).await?.into_iter().next()
            } else {
                None
            }
        }
    };
    let session = sessions::insert(connection, &open.card, gateway, ledger.appended_at()?).await?;
    let Some(agent) = agent else {
        return Ok(SessionReply { session_id: session_id.clone(), status: Status::Queued, to_id: None, version: 0 });
    };
    let version =
        ledger.record(session, gateway, Happening::Assigned { to: agent.key, profile: agent.profile, last_seq: 0 });
    sessions::set_owner(connection, session, agent.key, version).await?;
    agents::add_session(connection, agent.key, ledger.appended_at()?).await?;
    Ok(SessionReply { session_id: session_id.clone(), status: Status::Open, to_id: Some(agent.id), version })
}
