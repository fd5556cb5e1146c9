//! `POST /session/claim`: an agent takes a session from the queue, regardless of its presence and `MaxSessions`.

use super::{
    SessionReply, Verdict,
    facts::Fact,
    ledger::{Change, Ledger},
};
use crate::{
    domain::{
        caller::Caller,
        fault::Fault,
        session::{Happening, Status},
    },
    store::sessions::Found,
};

pub fn decide(fact: &Fact, found: &Found, ledger: &mut Ledger<'_>, caller: &Caller) -> Verdict<SessionReply, usize> {
    let session = &found.session;
    let agent = match caller.agent() {
        Ok(agent) => agent,
        Err(fault) => return Verdict::Answer(Err(fault)),
    };
    let session_id = session.session_id.clone();
    match session.status {
        Status::Queued => {}
        Status::Open if session.is_owned_by(agent.key) => {
            let again = reply(session_id, agent.id.to_string(), session.assigned_version);
            return Verdict::answer(fact.is_fresh, Ok(again));
        }
        Status::Open => return Verdict::answer(fact.is_fresh, Err(Fault::NotOwner(session_id))),
        Status::Closed => return Verdict::answer(fact.is_fresh, Err(Fault::NotQueued(session_id))),
    }
    Verdict::Write(ledger.change(
        fact,
        found,
        Change {
            happening: Happening::Claimed { by: agent.key },
            status: Status::Open,
            owner: Some(agent.key),
            needs_room: false,
            last_op: None,
        },
    ))
}

pub fn reply(session_id: String, to_id: String, version: i64) -> SessionReply {
    SessionReply { session_id, status: Status::Open, to_id: Some(to_id), version }
}
