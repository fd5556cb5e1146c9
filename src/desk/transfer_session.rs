//! `POST /session/transfer`: the owner hands a session on.

use super::{
    SessionReply, Verdict,
    facts::{Fact, Facts},
    ledger::{Change, Ledger},
};
use crate::{
    domain::{
        caller::Caller,
        fault::Fault,
        session::{Happening, LastOp, Status},
    },
    store::sessions::Found,
};

pub fn decide(
    facts: &Facts,
    fact: &Fact,
    found: &Found,
    ledger: &mut Ledger<'_>,
    caller: &Caller,
    to_id: &str,
) -> Verdict<SessionReply, usize> {
    let session = &found.session;
    let refuse = |fault| Verdict::answer(fact.is_fresh, Err(fault));
    let target = facts.agents.get(to_id).copied();
    if session.status == Status::Open
        && target.is_some_and(|target| session.is_owned_by(target))
        && session.repeats(LastOp::Transfer, caller, target)
    {
        let repeated = reply(session.session_id.clone(), to_id.to_owned(), session.last_op_version);
        return Verdict::answer(fact.is_fresh, Ok(repeated));
    }
    if let Err(fault) = session.check_may_direct(caller) {
        return refuse(fault);
    }
    let Some(target) = target else { return refuse(Fault::NoSuchAgent(to_id.to_owned())) };
    if session.is_owned_by(target) {
        return refuse(Fault::TransferToOwner(to_id.to_owned()));
    }
    ledger.batch.assign |= session.open_owner().is_some();
    Verdict::Write(ledger.change(
        fact,
        found,
        Change {
            happening: Happening::Transferred { from: session.open_owner(), to: target },
            status: Status::Open,
            owner: Some(target),
            needs_room: true,
            last_op: Some((LastOp::Transfer, caller, Some(target))),
        },
    ))
}

pub fn reply(session_id: String, to_id: String, version: i64) -> SessionReply {
    SessionReply { session_id, status: Status::Open, to_id: Some(to_id), version }
}
