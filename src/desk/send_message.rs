//! `POST /message/send`: the hot path. The messages of many requests are decided together, on two
//! reads for all of them, and written with the batch's one append.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::{
    domain::{
        caller::Caller,
        fault::Fault,
        ids::{FeedKey, MessageId, ProfileKey},
        message::{MessageType, NewMessage},
        session::{Happening, Status},
    },
    store::{
        self,
        appends::{Ledger, Recorded},
        cards::Cards,
        erasures,
        messages::{self, Kept},
        sessions::Found,
    },
};

/// The messages of one request.
#[derive(Debug)]
pub struct Send {
    pub caller: Caller,
    pub messages: Vec<NewMessage>,
}

/// What became of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub id: MessageId,
    pub session_id: String,
    pub version: i64,
    pub created_at: DateTime<Utc>,
}

/// The distinct sessions of `sends`.
pub fn session_ids<'a>(sends: impl Iterator<Item = &'a Send>) -> Vec<&'a str> {
    let distinct: HashSet<&str> =
        sends.flat_map(|send| send.messages.iter().map(|message| message.session_id.as_str())).collect();
    distinct.into_iter().collect()
}

/// What was decided about one message.
#[derive(Debug)]
pub struct Decided {
    /// None: it was given none, and is made when its time is known.
    id: Option<MessageId>,
    session_id: String,
    version: i64,
    /// Version of the event that holds it, whoever is told of it.
    kept_as: i64,
    /// None: it is appended now.
    created_at: Option<DateTime<Utc>>,
}

impl Decided {
    /// As the sender is answered, after the commit.
    pub fn at(self, appended_at: DateTime<Utc>) -> Sent {
        let Self { id, session_id, version, kept_as, created_at } = self;
        let created_at = created_at.unwrap_or(appended_at);
        let id = id.unwrap_or_else(|| MessageId::made(kept_as, created_at));
        Sent { id, session_id, version, created_at }
    }
}

/// The Ids that clients gave.
pub fn given_ids<'a>(sends: &[&'a Send]) -> Vec<&'a MessageId> {
    sends.iter().flat_map(|send| &send.messages).filter_map(|message| message.id.as_ref()).collect()
}

/// What was kept earlier under the Ids that clients gave.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_kept(
    connection: &mut PgConnection,
    sends: &[&Send],
) -> Result<HashMap<MessageId, Kept>, store::Error> {
    let given = given_ids(sends);
    if given.is_empty() { Ok(HashMap::new()) } else { messages::find_kept(connection, &given).await }
}

/// Decides about every message of `sends` and notes those to keep. `found` holds their sessions, `kept` what
/// has their Ids already.
///
/// # Errors
/// When the database cannot be read. A message that is refused is no error: its neighbours are kept.
pub async fn apply<'a>(
    connection: &mut PgConnection,
    cards: &Cards,
    ledger: &mut Ledger<'a>,
    found: &mut HashMap<String, Found>,
    sends: &[&'a Send],
    mut kept: HashMap<MessageId, Kept>,
) -> Result<Vec<Vec<Result<Decided, Fault>>>, store::Error> {
    show_agents(connection, cards, found).await?;
    let erased = find_erased(connection, &kept).await?;

    let mut answers = Vec::with_capacity(sends.len());
    for send in sends {
        let mut decided = Vec::with_capacity(send.messages.len());
        for message in &send.messages {
            let Some(found) = found.get_mut(&message.session_id) else {
                decided.push(Err(Fault::NoSuchSession(message.session_id.clone())));
                continue;
            };
            decided.push(match message.id.as_ref().and_then(|id| kept.get_key_value(id)) {
                Some((id, earlier)) => repeat(found, &send.caller, message, (id, earlier), erased.contains(id)),
                None => keep(ledger, found, &send.caller, message, &mut kept),
            });
        }
        answers.push(decided);
    }
    Ok(answers)
}

/// Sees to it that the owners of sessions can be shown.
async fn show_agents(
    connection: &mut PgConnection,
    cards: &Cards,
    found: &mut HashMap<String, Found>,
) -> Result<(), store::Error> {
    let profile_of = |found: &Found| found.session.owner.as_ref().map(|owner| owner.profile);
    let unseen: HashSet<ProfileKey> =
        found.values().filter(|found| found.agent.is_none()).filter_map(profile_of).collect();
    if unseen.is_empty() {
        return Ok(());
    }
    cards.load(connection, &[], &unseen.into_iter().collect::<Vec<_>>()).await?;
    for found in found.values_mut().filter(|found| found.agent.is_none()) {
        found.agent = profile_of(found).and_then(|key| cards.profile(key));
    }
    Ok(())
}

/// Which of the kept messages were erased: a look into the database only where one is blank.
async fn find_erased(
    connection: &mut PgConnection,
    kept: &HashMap<MessageId, Kept>,
) -> Result<HashSet<MessageId>, store::Error> {
    let blank = kept.iter().filter(|(_, message)| message.content == message.content_type.erased());
    let (ids, sessions): (Vec<&MessageId>, HashSet<i64>) = blank.map(|(id, message)| (id, message.session.0)).unzip();
    if ids.is_empty() {
        return Ok(HashSet::new());
    }
    erasures::find_erased(connection, &sessions.into_iter().collect::<Vec<i64>>(), &ids).await
}

/// The answer to an Id that was kept before: the first answer's values, if it is the same message. Of
/// an erased one nobody knows the content any more; whoever repeats it is believed. To refuse it would
/// only make its sender try again under another Id, and bring back what was erased.
fn repeat(
    found: &Found,
    caller: &Caller,
    message: &NewMessage,
    (id, earlier): (&MessageId, &Kept),
    erased: bool,
) -> Result<Decided, Fault> {
    let session = &found.session;
    let Some(subject) = caller.subject() else {
        return Err(Fault::role_may_not("only a gateway or the session's owner may send"));
    };
    // The author may repeat itself after the session has gone to somebody else or was closed.
    if earlier.author != subject.key && session.check_may_read(caller).is_err() {
        return Err(Fault::NotOwner(session.session_id.clone()));
    }
    let same = earlier.session == session.key
        && (erased || earlier.content == message.content)
        && earlier.content_type == message.content_type
        && earlier.r#type == message_type(caller);
    if !same {
        return Err(Fault::IdTaken(id.to_string()));
    }
    Ok(Decided {
        id: Some(id.clone()),
        session_id: session.session_id.clone(),
        version: earlier.version,
        kept_as: earlier.version,
        created_at: earlier.created_at,
    })
}

fn keep<'a>(
    ledger: &mut Ledger<'a>,
    found: &mut Found,
    caller: &Caller,
    message: &'a NewMessage,
    kept: &mut HashMap<MessageId, Kept>,
) -> Result<Decided, Fault> {
    let session = &found.session;
    session.check_may_send(caller)?;
    let author = caller.subject().map_or(FeedKey(0), |subject| subject.key);
    let r#type = message_type(caller);
    found.last_seq += 1;
    let seq = found.last_seq;
    let owner = session.owner.as_ref().filter(|_| session.status == Status::Open);
    let happening = match (r#type, owner) {
        (MessageType::Sent, Some(owner)) => Happening::Sent { owner: owner.key, profile: owner.profile, seq },
        (_, owner) => Happening::Received { owner: owner.map(|owner| (owner.key, owner.profile)), seq },
    };
    let Recorded { version, kept_as, id } = ledger.record_message(found, author, happening, message);
    if let Some(id) = &message.id {
        // The same Id may come again in this very batch.
        let as_kept = Kept {
            session: session.key,
            author,
            r#type,
            content_type: message.content_type,
            content: message.content.clone(),
            version,
            created_at: None,
        };
        kept.insert(id.clone(), as_kept);
    }
    Ok(Decided { id, session_id: session.session_id.clone(), version, kept_as, created_at: None })
}

fn message_type(caller: &Caller) -> MessageType {
    match caller {
        Caller::Agent(_) => MessageType::Sent,
        _ => MessageType::Received,
    }
}
