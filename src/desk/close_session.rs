//! `POST /session/close`: the owner ends a session.

use super::{
    SessionReply, Verdict,
    facts::Fact,
    ledger::{Change, Ledger},
};
use crate::{
    domain::{
        caller::Caller,
        session::{Happening, LastOp, Status},
    },
    store::sessions::Found,
};

pub fn decide(fact: &Fact, found: &Found, ledger: &mut Ledger<'_>, caller: &Caller) -> Verdict<SessionReply, usize> {
    let session = &found.session;
    if session.status == Status::Closed && session.repeats(LastOp::Close, caller, None) {
        return Verdict::answer(fact.is_fresh, Ok(reply(session.session_id.clone(), session.last_op_version)));
    }
    if let Err(fault) = session.check_may_direct(caller) {
        return Verdict::answer(fact.is_fresh, Err(fault));
    }
    // Its owner has room for another one now.
    ledger.batch.assign = true;
    Verdict::Write(ledger.change(
        fact,
        found,
        Change {
            happening: Happening::Closed { owner: session.open_owner() },
            status: Status::Closed,
            owner: None,
            needs_room: false,
            last_op: Some((LastOp::Close, caller, None)),
        },
    ))
}

pub fn reply(session_id: String, version: i64) -> SessionReply {
    SessionReply { session_id, status: Status::Closed, to_id: None, version }
}
