//! `POST /session/open`: a gateway or admin brings a conversation in.

use super::{
    SessionReply, Verdict,
    facts::{Fact, Facts},
    ledger::Ledger,
};
use crate::{
    domain::{
        caller::Caller,
        event::SessionCard,
        fault::Fault,
        ids::FeedKey,
        session::{Session, Status},
    },
    store::sessions::Found,
};

/// A request to open a session.
#[derive(Debug, Clone)]
pub struct Open {
    pub card: SessionCard,
    pub to_id: Option<String>,
}

pub fn decide<'a>(
    facts: &Facts,
    fact: &Fact,
    ledger: &mut Ledger<'a>,
    caller: &Caller,
    open: &'a Open,
) -> Verdict<SessionReply, usize> {
    let gateway = match gateway(caller) {
        Ok(gateway) => gateway,
        Err(fault) => return Verdict::Answer(Err(fault)),
    };
    if let Some(Found { session, .. }) = &fact.found {
        return Verdict::answer(fact.is_fresh, repeat(session, gateway, caller));
    }
    let owner = match &open.to_id {
        None => None,
        Some(to_id) => match facts.agents.get(to_id) {
            None => return Verdict::answer(fact.is_fresh, Err(Fault::NoSuchAgent(to_id.clone()))),
            Some(agent) => Some(*agent),
        },
    };
    if !ledger.takes_open(&open.card.session_id) {
        return Verdict::Later;
    }
    Verdict::Write(ledger.open(&open.card, gateway, owner))
}

fn gateway(caller: &Caller) -> Result<Option<FeedKey>, Fault> {
    match caller {
        Caller::Gateway(gateway) => Ok(Some(gateway.key)),
        Caller::Admin => Ok(None),
        Caller::Agent(_) => Err(Fault::role_may_not("only a gateway or an admin may open sessions")),
    }
}

/// The answer if the session exists.
fn repeat(session: &Session, gateway: Option<FeedKey>, caller: &Caller) -> Result<SessionReply, Fault> {
    // A session belongs to the gateway that opened it. One that an admin opened belongs to the admins, who
    // may see the others too.
    if session.gateway != gateway && *caller != Caller::Admin {
        return Err(Fault::NotOwner(session.session_id.clone()));
    }
    if session.status == Status::Closed {
        return Err(Fault::SessionClosed(session.session_id.clone()));
    }
    Ok(SessionReply {
        session_id: session.session_id.clone(),
        status: session.status,
        to_id: session.owner.as_ref().map(|owner| owner.id.clone()),
        version: session.assigned_version,
    })
}
