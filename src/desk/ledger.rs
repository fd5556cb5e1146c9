//! What a batch appends, and what its readers are shown. Only records; the operations decide.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::facts::Fact;
use crate::{
    domain::{
        caller::Caller,
        event::{Event, EventType, Profile, SessionCard},
        ids::{FeedKey, MessageId, ProfileKey, SessionKey},
        limits,
        message::{Message, MessageType, NewMessage},
        session::{Happening, LastOp, NOBODY, Owner, ProfileSource, Session, Status},
    },
    store::{
        appends::{Appended, Batch, ChangeRow, EventRow, MessageContent, MessageRow, OpenOutcome, OpenRow, SessionRow},
        sessions::Found,
    },
};

/// A batch while it is being decided.
#[derive(Debug, Default)]
pub struct Ledger<'a> {
    pub batch: Batch<'a>,
    /// Positions of sessions in `batch.sessions`.
    positions: HashMap<SessionKey, usize>,
    /// For each row of `batch.sessions`.
    places: Vec<(Place, Found)>,
    /// For each row of `batch.opens`, what events show of its session.
    opened: Vec<&'a SessionCard>,
    /// Ids of messages in the batch, and of sessions that it opens.
    ids: HashSet<&'a MessageId>,
    session_ids: HashSet<&'a str>,
    /// Sessions with a deferred request; everything after it is deferred too.
    put_off: HashSet<&'a str>,
    cost: usize,
    bytes: usize,
}

/// What the batch does to a session.
#[derive(Debug, Clone, Copy)]
struct Place {
    messages: i32,
    is_changed: bool,
}

/// Sessions after an append.
#[derive(Debug, Default)]
pub struct Touched {
    /// As they are now.
    pub kept: Vec<Found>,
    /// Ids of those whose cached state is stale.
    pub changed: Vec<String>,
}

/// `sessions.revision` of a new session.
const FIRST_REVISION: i64 = 1;

/// A message in the ledger.
#[derive(Debug, Clone, Copy)]
pub struct MessageSlot {
    /// Positions of its session, and of the event that holds its content.
    pub session: usize,
    pub event: usize,
}

/// How a session changes.
#[derive(Debug, Clone, Copy)]
pub struct Change<'c> {
    pub happening: Happening,
    pub status: Status,
    pub owner: Option<FeedKey>,
    pub needs_room: bool,
    /// Identifies a repetition: the operation, its caller and its target.
    pub last_op: Option<(LastOp, &'c Caller, Option<FeedKey>)>,
}

impl<'a> Ledger<'a> {
    /// Whether something of this cost still fits. The first always fits.
    pub fn has_room(&self, cost: usize, bytes: usize) -> bool {
        self.cost == 0
            || (self.cost + cost <= limits::APPEND_COST_MAX && self.bytes + bytes <= limits::APPEND_BYTES_MAX)
    }

    /// Adds to the cost of the batch.
    pub fn charge(&mut self, cost: usize, bytes: usize) {
        self.cost += cost;
        self.bytes += bytes;
    }

    /// Defers everything else that concerns a session, to keep the order of its messages.
    pub fn put_off(&mut self, session_id: &'a str) {
        self.put_off.insert(session_id);
    }

    /// Whether the batch may touch this session (again): nothing may follow a change of it.
    pub fn takes(&self, session_id: &str, found: &Found) -> bool {
        !self.put_off.contains(session_id)
            && self.positions.get(&found.session.key).is_none_or(|position| !self.places[*position].0.is_changed)
    }

    /// Returns whether an Id is new to this batch, and records it.
    pub fn takes_id(&mut self, id: &'a MessageId) -> bool {
        self.ids.insert(id)
    }

    /// Returns whether this batch may open a session, and records it.
    pub fn takes_open(&mut self, session_id: &'a str) -> bool {
        !self.put_off.contains(session_id) && self.session_ids.insert(session_id)
    }

    fn place(&mut self, fact: &Fact, found: &Found) -> (usize, &mut Place) {
        let position = *self.positions.entry(found.session.key).or_insert_with(|| {
            self.batch.sessions.push(SessionRow {
                key: found.session.key,
                revision: found.session.revision,
                seq_version: fact.seq_version,
                seq: found.seq,
            });
            self.places.push((Place { messages: 0, is_changed: false }, found.clone()));
            self.places.len() - 1
        });
        (position, &mut self.places[position].0)
    }

    /// Records a message.
    pub fn message(
        &mut self,
        fact: &Fact,
        found: &Found,
        author: FeedKey,
        happening: Happening,
        new: &'a NewMessage,
    ) -> MessageSlot {
        let (session, place) = self.place(fact, found);
        place.messages += 1;
        let seq_step = place.messages;
        let r#type =
            if matches!(happening, Happening::Sent { .. }) { MessageType::Sent } else { MessageType::Received };
        let slot = MessageSlot { session, event: self.batch.events.len() };
        let mut content = Some(MessageContent { author, id: new.id.as_ref(), text: new.content.as_str() });
        for event in happening.events(found.session.gateway) {
            let message = Some(MessageRow { r#type, content_type: new.content_type, content: content.take() });
            self.batch.events.push(EventRow { session, event, seq_step, message });
        }
        slot
    }

    /// Records a change of a session and returns its position.
    pub fn change(&mut self, fact: &Fact, found: &Found, change: Change<'_>) -> usize {
        let (session, place) = self.place(fact, found);
        place.is_changed = true;
        let seq_step = place.messages;
        let before = self.batch.events.len();
        let events = change.happening.events(found.session.gateway);
        let added = events.iter().position(|event| event.r#type == EventType::AddSession);
        let first = (!events.is_empty()).then_some(before + 1);
        self.batch.events.extend(events.into_iter().map(|event| EventRow { session, event, seq_step, message: None }));
        self.batch.changes.push(ChangeRow {
            session: session + 1,
            status: change.status.number(),
            owner: change.owner.map(|owner| owner.0),
            needs_room: change.needs_room,
            last_op: change.last_op.map(|(op, ..)| op.number()),
            by: change.last_op.map_or(0, |(_, by, _)| by.trace_key()),
            to: change.last_op.and_then(|(.., to)| to).map(|to| to.0),
            first,
            added: added.map(|added| before + 1 + added),
        });
        self.batch.changes.len() - 1
    }

    /// Records a new session and returns its position.
    pub fn open(&mut self, card: &'a SessionCard, gateway: Option<FeedKey>, owner: Option<FeedKey>) -> usize {
        self.batch.opens.push(OpenRow {
            session_id: &card.session_id,
            session_type: card.session_type,
            from_id: &card.from_id,
            from_name: card.from_name.as_deref(),
            from_image: card.from_image.as_deref(),
            gateway: gateway.map(|gateway| gateway.0),
            owner: owner.map(|owner| owner.0),
        });
        self.batch.assign |= owner.is_none();
        self.opened.push(card);
        self.batch.opens.len() - 1
    }

    /// The sessions of an append, as it left them.
    pub fn touched(&self, appended: &Appended, profile: impl Fn(ProfileKey) -> Option<Arc<Profile>>) -> Touched {
        let mut touched = Touched::default();
        for ((place, found), outcome) in self.places.iter().zip(&appended.sessions) {
            if outcome.is_stale || place.is_changed {
                touched.changed.push(found.session.session_id.clone());
            } else {
                touched.kept.push(Found { seq: outcome.seq + place.messages, ..found.clone() });
            }
        }
        for ((row, card), outcome) in self.batch.opens.iter().zip(&self.opened).zip(&appended.opens) {
            let (key, owner, version) = match *outcome {
                OpenOutcome::Taken | OpenOutcome::Refused => continue,
                OpenOutcome::Queued(key) => (key, None, 0),
                OpenOutcome::Assigned { session, owner, profile: key, version } => match profile(key) {
                    Some(profile) => (session, Some(Owner { key: owner, id: profile.agent_id.clone() }), version),
                    None => continue,
                },
            };
            let session = Session {
                key,
                session_id: card.session_id.clone(),
                revision: FIRST_REVISION,
                status: if owner.is_some() { Status::Open } else { Status::Queued },
                owner,
                gateway: row.gateway.map(FeedKey),
                assigned_version: version,
                last_op: LastOp::None,
                last_op_by: None,
                last_op_to: None,
                last_op_version: 0,
            };
            touched.kept.push(Found { session: Arc::new(session), card: Arc::new((*card).clone()), seq: 0 });
        }
        touched
    }

    /// The profiles shown by the events of an append.
    pub fn profiles(appended: &Appended) -> Vec<ProfileKey> {
        let sessions = appended.sessions.iter().map(|session| session.profile);
        let changes = appended.changes.iter().map(|change| change.profile);
        let opens = appended.opens.iter().filter_map(|open| match open {
            OpenOutcome::Assigned { profile, .. } => Some(*profile),
            _ => None,
        });
        let distinct: HashSet<ProfileKey> =
            sessions.chain(changes).chain(opens).filter(|profile| *profile != ProfileKey(0)).collect();
        distinct.into_iter().collect()
    }

    /// The events of an append as readers are shown them. `None` if some show what only the database knows: sessions
    /// of the queue, and messages from before an AddSession.
    pub fn shown(
        &self,
        appended: &Appended,
        versions: &[Option<i64>],
        profile: impl Fn(ProfileKey) -> Option<Arc<Profile>>,
    ) -> Option<Vec<Event>> {
        if appended.assigned > 0 {
            return None;
        }
        let mut shown: Vec<Event> = Vec::with_capacity(self.batch.events.len());
        for (row, version) in self.batch.events.iter().zip(versions) {
            let Some(version) = *version else { continue };
            let session = appended.sessions.get(row.session)?;
            let agent = match row.event.profile {
                ProfileSource::Nobody => None,
                ProfileSource::Owner => Some(profile(session.profile)?),
                ProfileSource::NewOwner => Some(profile(self.new_profile(appended, row.session)?)?),
            };
            let messages = match row.message {
                None if row.event.is_numbered && session.seq + row.seq_step > 0 => return None,
                None => Vec::new(),
                Some(message) => match (message.content, shown.last()) {
                    // The second event of a message shares the first one's, which is just before it.
                    (None, Some(first)) => first.messages.clone(),
                    (None, None) => return None,
                    (Some(content), _) => vec![Arc::new(Message {
                        r#type: message.r#type,
                        id: content.id.cloned().unwrap_or_else(|| MessageId::made(version, appended.at)),
                        content_type: message.content_type,
                        content: content.text.to_owned(),
                        created_at: appended.at,
                    })],
                },
            };
            shown.push(Event {
                version,
                feed: row.event.feed,
                r#type: row.event.r#type,
                session: Arc::clone(&self.places.get(row.session)?.1.card),
                agent,
                reason: row.event.reason,
                messages,
            });
        }
        for ((row, card), outcome) in self.batch.opens.iter().zip(&self.opened).zip(&appended.opens) {
            let OpenOutcome::Assigned { owner, profile: key, version, .. } = *outcome else { continue };
            let (agent, session) = (profile(key)?, Arc::new((*card).clone()));
            let feeds = std::iter::once(owner).chain(row.gateway.map(FeedKey));
            shown.extend(feeds.zip(version..).map(|(feed, version)| Event {
                version,
                feed,
                r#type: EventType::AddSession,
                session: Arc::clone(&session),
                agent: Some(Arc::clone(&agent)),
                reason: None,
                messages: Vec::new(),
            }));
        }
        debug_assert!(shown.iter().all(|event| event.feed != NOBODY || event.r#type == EventType::Message));
        Some(shown)
    }

    fn new_profile(&self, appended: &Appended, session: usize) -> Option<ProfileKey> {
        let position = self.batch.changes.iter().position(|change| change.session == session + 1)?;
        appended.changes.get(position).map(|change| change.profile)
    }
}
