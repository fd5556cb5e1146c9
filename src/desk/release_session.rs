//! `POST /session/release`: the owner hands a session back to the queue.

use super::{
    SessionReply, Verdict,
    facts::Fact,
    ledger::{Change, Ledger},
};
use crate::{
    domain::{
        caller::Caller,
        session::{Happening, LastOp, Session, Status},
    },
    store::sessions::Found,
};

pub fn decide(fact: &Fact, found: &Found, ledger: &mut Ledger<'_>, caller: &Caller) -> Verdict<SessionReply, usize> {
    let session = &found.session;
    let answer = |version| Verdict::answer(fact.is_fresh, Ok(reply(session.session_id.clone(), version)));
    if is_repetition(session, caller) {
        return answer(session.last_op_version);
    }
    if let Err(fault) = session.check_may_direct(caller) {
        return Verdict::answer(fact.is_fresh, Err(fault));
    }
    // Already queued, and not by this caller's release: nothing to do, and no event.
    let Some(owner) = session.open_owner() else { return answer(0) };
    ledger.batch.assign = true;
    Verdict::Write(ledger.change(
        fact,
        found,
        Change {
            happening: Happening::Released { from: owner },
            status: Status::Queued,
            owner: None,
            needs_room: false,
            last_op: Some((LastOp::Release, caller, Some(owner))),
        },
    ))
}

/// Whether `caller` released it before and is repeating the request. It may have been assigned to another agent
/// since. So an agent repeats if it does not own the session; an admin, if the session is not open.
fn is_repetition(session: &Session, caller: &Caller) -> bool {
    let has_it_again = match caller {
        Caller::Agent(agent) => session.is_owned_by(agent.key),
        _ => session.status == Status::Open,
    };
    session.status != Status::Closed && !has_it_again && session.repeats(LastOp::Release, caller, None)
}

pub fn reply(session_id: String, version: i64) -> SessionReply {
    SessionReply { session_id, status: Status::Queued, to_id: None, version }
}
