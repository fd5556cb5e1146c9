//! Rows of the statements that read events, as far as they fit an answer.

use std::{collections::HashMap, hash::Hash, ops::Range};

use chrono::{DateTime, Utc};
use futures_util::{Stream, TryStreamExt};
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use crate::{
    domain::{
        event::{EventType, Reason},
        ids::{FeedKey, MessageId, ProfileKey, SessionKey},
        limits,
        message::{ContentType, MessageType, MessageView},
    },
    store::{Error, Result},
};

/// What a statement gave.
pub(super) struct Rows {
    pub head: i64,
    pub oldest: i64,
    /// The name of the history that it was read of.
    pub history: Uuid,
    pub events: Vec<EventRow>,
    /// The content of all messages, one behind the other.
    pub contents: String,
    /// The sessions and agents of all events, each once.
    pub sessions: Distinct<SessionKey>,
    pub profiles: Distinct<ProfileKey>,
    pub more: bool,
    pub below: bool,
    pub cut: bool,
}

/// An event as a statement gives it.
pub(super) struct EventRow {
    pub version: i64,
    /// Where they are among the distinct ones.
    pub session: usize,
    pub profile: usize,
    pub feed: FeedKey,
    pub message_seq: i32,
    pub r#type: EventType,
    pub reason: Option<Reason>,
    pub message: Held,
}

/// The message of an event.
pub(super) enum Held {
    /// It tells of none.
    None,
    Here(Kept),
    /// The event just before it holds it: the first of the two that an agent's message has.
    Before {
        says: Says,
        created_at: DateTime<Utc>,
    },
}

/// Who says what, as `says` of the statements has it.
#[derive(Clone, Copy)]
pub(super) struct Says {
    pub r#type: MessageType,
    pub content_type: ContentType,
}

impl Says {
    fn from_number(number: i16) -> Self {
        Self { r#type: MessageType::from_number(number >> 1), content_type: ContentType::from_number(number & 1) }
    }
}

/// A message whose content is in [`Rows::contents`].
pub(super) struct Kept {
    pub says: Says,
    pub id: MessageId,
    pub created_at: DateTime<Utc>,
    pub content: Range<usize>,
}

impl Kept {
    pub fn view<'a>(&'a self, contents: &'a str) -> MessageView<'a> {
        MessageView {
            r#type: self.says.r#type,
            id: &self.id,
            content_type: self.says.content_type,
            content: contents.get(self.content.clone()).unwrap_or_default(),
            created_at: self.created_at,
        }
    }
}

/// Keys that come many times, and where each has its place.
pub(super) struct Distinct<K> {
    pub keys: Vec<K>,
    places: HashMap<K, usize>,
    last: Option<(K, usize)>,
}

impl<K: Copy + Eq + Hash> Distinct<K> {
    fn new() -> Self {
        Self { keys: Vec::new(), places: HashMap::new(), last: None }
    }

    fn place(&mut self, key: K) -> usize {
        match self.last {
            Some((last, place)) if last == key => place,
            _ => {
                let place = *self.places.entry(key).or_insert_with(|| {
                    self.keys.push(key);
                    self.keys.len() - 1
                });
                self.last = Some((key, place));
                place
            }
        }
    }
}

impl Rows {
    /// Columns are taken by number and without a check of their types: a page of a thousand events
    /// has twelve thousand of them. The statements are ours, and tests read every column. What a page has most
    /// of is sent as null, which costs both sides next to nothing.
    fn read(&mut self, row: &PgRow) -> Result<EventRow> {
        let version: i64 = row.try_get_unchecked(0)?;
        let number: Option<i16> = row.try_get_unchecked(6)?;
        let r#type = number
            .map_or(Some(EventType::Message), EventType::from_number)
            .ok_or_else(|| Error::inconsistent(format!("event {version} has the unknown type {number:?}")))?;
        let message = if r#type == EventType::Message {
            let created_at = row.try_get_unchecked(2)?;
            let says = Says::from_number(row.try_get_unchecked(8)?);
            match row.try_get_unchecked::<Option<&str>, _>(11)? {
                Some(content) => {
                    let (id, text) = (row.try_get_unchecked(9)?, row.try_get_unchecked(10)?);
                    let id = MessageId::from_columns(id, text, version, created_at);
                    Held::Here(self.keep(says, id, created_at, content))
                }
                None => Held::Before { says, created_at },
            }
        } else {
            Held::None
        };
        let reason: Option<i16> = row.try_get_unchecked(7)?;
        Ok(EventRow {
            version,
            session: self.sessions.place(SessionKey(row.try_get_unchecked(1)?)),
            profile: self.profiles.place(ProfileKey(row.try_get_unchecked(5)?)),
            feed: FeedKey(row.try_get_unchecked::<Option<i32>, _>(3)?.unwrap_or_default()),
            message_seq: row.try_get_unchecked::<Option<i32>, _>(4)?.unwrap_or_default(),
            r#type,
            reason: reason.and_then(Reason::from_number),
            message,
        })
    }

    fn keep(&mut self, says: Says, id: MessageId, created_at: DateTime<Utc>, content: &str) -> Kept {
        let start = self.contents.len();
        self.contents.push_str(content);
        Kept { says, id, created_at, content: start..self.contents.len() }
    }
}

/// How versions follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Rising,
    Falling,
}

/// Takes rows up to `limit`, and no more of them than fit an answer.
pub(super) async fn take_rows(
    mut stream: impl Stream<Item = sqlx::Result<PgRow>> + Unpin,
    limit: i64,
    order: Order,
) -> Result<Rows> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let header = stream
        .try_next()
        .await?
        .ok_or_else(|| Error::inconsistent("a statement gave not even the row that it always gives"))?;
    let (head, oldest) = (header.try_get::<Option<i64>, _>(0)?.unwrap_or(0), header.try_get(1)?);
    let mut rows = Rows {
        head,
        oldest,
        history: header.try_get(9)?,
        events: Vec::new(),
        contents: String::new(),
        sessions: Distinct::new(),
        profiles: Distinct::new(),
        more: false,
        below: false,
        cut: false,
    };
    while let Some(row) = stream.try_next().await? {
        if row.try_get_unchecked::<i64, _>(0)? < oldest {
            rows.below = true;
            continue;
        }
        if rows.events.len() == limit {
            rows.more = true;
            // It was the last.
            continue;
        }
        let event = rows.read(&row)?;
        // The statements order within and only join without; a plan that mixes them up must not pass.
        let follows = rows.events.last().is_none_or(|last| (event.version > last.version) == (order == Order::Rising));
        if !follows {
            return Err(Error::inconsistent(format!("event {} comes out of order", event.version)));
        }
        rows.events.push(event);
        if rows.contents.len() >= limits::ANSWER_BYTES_MAX {
            (rows.more, rows.cut) = (true, true);
            break;
        }
    }
    Ok(rows)
}

/// Finds what second events tell. Mostly there are none; to look for it in the statements themselves
/// would cost every row. False when one is not kept any more, and so neither is its second: read anew.
pub(super) async fn complete(connection: &mut PgConnection, rows: &mut Rows) -> Result<bool> {
    let firsts: Vec<i64> = rows
        .events
        .iter()
        .filter(|event| matches!(event.message, Held::Before { .. }))
        .map(|event| event.version - 1)
        .collect();
    if firsts.is_empty() {
        return Ok(true);
    }
    let mut stream = sqlx::query(include_str!("../sql/first_events.sql")).bind(firsts).fetch(connection);
    let (mut bytes, mut complete) = (0, rows.events.len());
    for position in 0..rows.events.len() {
        let EventRow { version: second, message: Held::Before { says, created_at }, .. } = rows.events[position] else {
            continue;
        };
        let Some(row) = stream.try_next().await? else { return Ok(false) };
        let version: i64 = row.try_get(0)?;
        if version != second - 1 {
            return Ok(false);
        }
        let content: &str = row.try_get(3)?;
        bytes += content.len();
        let id = MessageId::from_columns(row.try_get(1)?, row.try_get(2)?, version, created_at);
        rows.events[position].message = Held::Here(rows.keep(says, id, created_at, content));
        if bytes >= limits::ANSWER_BYTES_MAX {
            complete = position + 1;
            break;
        }
    }
    if complete < rows.events.len() {
        rows.events.truncate(complete);
        (rows.more, rows.cut) = (true, true);
    }
    Ok(true)
}
