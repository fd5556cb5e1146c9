//! `POST /message/send`: the hot path.

use chrono::{DateTime, Utc};

use super::{
    Verdict,
    facts::{Fact, Facts},
    ledger::{Ledger, MessageSlot},
};
use crate::{
    domain::{
        caller::Caller,
        fault::Fault,
        ids::{FeedKey, MessageId},
        limits,
        message::{MessageType, NewMessage},
        session::{Happening, NOBODY},
    },
    store::{messages::Kept, sessions::Found},
};

/// The answer to one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub id: MessageId,
    pub session_id: String,
    /// Version of the event in the owner's feed; 0 while the session is queued.
    pub version: i64,
    pub created_at: DateTime<Utc>,
}

/// Decides about one message.
pub fn decide<'a>(
    facts: &Facts,
    ledger: &mut Ledger<'a>,
    caller: &Caller,
    message: &'a NewMessage,
) -> Verdict<Sent, MessageSlot> {
    let session_id = message.session_id.as_str();
    let Some(fact) = facts.sessions.get(session_id) else { return Verdict::AskAgain };
    let verdict = decide_on(facts, fact, ledger, caller, message);
    if matches!(verdict, Verdict::AskAgain | Verdict::Later) {
        ledger.put_off(session_id);
    }
    verdict
}

fn decide_on<'a>(
    facts: &Facts,
    fact: &Fact,
    ledger: &mut Ledger<'a>,
    caller: &Caller,
    message: &'a NewMessage,
) -> Verdict<Sent, MessageSlot> {
    let Some(found) = &fact.found else {
        return Verdict::answer(fact.is_fresh, Err(Fault::NoSuchSession(message.session_id.clone())));
    };
    if !ledger.takes(&message.session_id, found) {
        return Verdict::Later;
    }
    if let Some(id) = &message.id {
        if let Some(kept) = facts.kept.get(id) {
            return Verdict::answer(fact.is_fresh, repeat(found, caller, message, id, kept, facts.erased.contains(id)));
        }
        // A message without a client's Id may have this derived one; ask the database.
        let may_be_made = id.version_made_of().is_some_and(|version| version < limits::VERSION_END);
        if may_be_made && !facts.looked_for.contains(id) {
            return Verdict::AskAgain;
        }
        if may_be_made && id.is_reserved(facts.head, facts.now) {
            return Verdict::Answer(Err(Fault::malformed(
                "Id looks like one that this store may generate later; use a random UUID, or any other text",
            )));
        }
    }
    if let Err(fault) = found.session.check_may_send(caller) {
        // A repetition gets its answer regardless of what has happened to the session since.
        let is_known_new = message.id.as_ref().is_none_or(|id| facts.looked_for.contains(id));
        return Verdict::answer(fact.is_fresh && is_known_new, Err(fault));
    }
    if !ledger.has_room(1, message.content.len()) || message.id.as_ref().is_some_and(|id| !ledger.takes_id(id)) {
        return Verdict::Later;
    }
    ledger.charge(1, message.content.len());
    let author = caller.subject().map_or(NOBODY, |subject| subject.key);
    Verdict::Write(ledger.message(fact, found, author, happening(found, caller), message))
}

fn happening(found: &Found, caller: &Caller) -> Happening {
    match (message_type(caller), found.session.open_owner()) {
        (MessageType::Sent, Some(owner)) => Happening::Sent { owner },
        (_, owner) => Happening::Received { owner },
    }
}

/// The answer to an Id that exists: the first answer's values, if it is the same message. If the message was erased,
/// its content cannot be compared, and the sender is trusted: a refusal would only make it retry with another Id
/// and bring back what was erased.
fn repeat(
    found: &Found,
    caller: &Caller,
    message: &NewMessage,
    id: &MessageId,
    kept: &Kept,
    is_erased: bool,
) -> Result<Sent, Fault> {
    let session = &found.session;
    let Some(subject) = caller.subject() else {
        return Err(Fault::role_may_not("only a gateway or the session's owner may send"));
    };
    // The author may repeat a message after the session was transferred or closed.
    if kept.author != subject.key && session.check_may_read(caller).is_err() {
        return Err(Fault::NotOwner(session.session_id.clone()));
    }
    let is_same = kept.session == session.key
        && (is_erased || kept.content == message.content)
        && kept.content_type == message.content_type
        && kept.r#type == message_type(caller);
    if !is_same {
        return Err(Fault::IdTaken(id.to_string()));
    }
    Ok(Sent {
        id: id.clone(),
        session_id: session.session_id.clone(),
        version: kept.version,
        created_at: kept.created_at,
    })
}

fn message_type(caller: &Caller) -> MessageType {
    match caller {
        Caller::Agent(_) => MessageType::Sent,
        _ => MessageType::Received,
    }
}

/// The answer to a message that was appended.
pub fn sent(message: &NewMessage, feed: FeedKey, version: i64, at: DateTime<Utc>) -> Sent {
    Sent {
        id: message.id.clone().unwrap_or_else(|| MessageId::made(version, at)),
        session_id: message.session_id.clone(),
        version: if feed == NOBODY { 0 } else { version },
        created_at: at,
    }
}
