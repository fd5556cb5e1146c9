//! Rows of the statements that read events, as far as they fit an answer.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::{Stream, TryStreamExt};
use sqlx::{PgConnection, Row, postgres::PgRow};

use crate::{
    domain::{
        event::{EventType, Reason},
        ids::{FeedKey, MessageId, ProfileKey, SessionKey},
        limits,
        message::{ContentType, Message, MessageType},
    },
    store::Result,
};

/// An event as the statements give it: their columns, by number, in this order.
pub(super) struct EventRow {
    pub version: i64,
    pub session: SessionKey,
    pub feed: FeedKey,
    pub message_seq: i32,
    pub profile: ProfileKey,
    pub r#type: EventType,
    pub reason: Option<Reason>,
    pub message: Held,
}

/// The message of an event.
pub(super) enum Held {
    /// It tells of none.
    None,
    Here(Arc<Message>),
    /// The event just before it holds it: the first of the two that an agent's message has.
    Before {
        r#type: MessageType,
        content_type: ContentType,
        created_at: DateTime<Utc>,
    },
}

impl EventRow {
    /// Columns are taken by number and without a check of their types: a page of a thousand events
    /// has thirteen thousand of them. The statements are ours, and tests read every column.
    fn read(row: &PgRow) -> Result<Self> {
        let version: i64 = row.try_get_unchecked(0)?;
        let number: i16 = row.try_get_unchecked(6)?;
        let r#type = EventType::from_number(number)
            .ok_or_else(|| sqlx::Error::Decode(format!("event {version} has the unknown type {number}").into()))?;
        let message = if r#type == EventType::Message {
            let created_at = row.try_get_unchecked(2)?;
            let content_type = ContentType::from_number(row.try_get_unchecked(9)?);
            let r#type = MessageType::from_number(row.try_get_unchecked(8)?);
            match row.try_get_unchecked(12)? {
                Some(content) => {
                    let (id, text) = (row.try_get_unchecked(10)?, row.try_get_unchecked(11)?);
                    let id = MessageId::from_columns(id, text, version, created_at);
                    Held::Here(Arc::new(Message { r#type, id, content_type, content, created_at }))
                }
                None => Held::Before { r#type, content_type, created_at },
            }
        } else {
            Held::None
        };
        Ok(Self {
            version,
            session: SessionKey(row.try_get_unchecked(1)?),
            feed: FeedKey(row.try_get_unchecked(3)?),
            message_seq: row.try_get_unchecked(4)?,
            profile: ProfileKey(row.try_get_unchecked(5)?),
            r#type,
            reason: Reason::from_number(row.try_get_unchecked(7)?),
            message,
        })
    }
}

/// What a statement gave.
pub(super) struct Rows {
    pub head: i64,
    pub oldest: i64,
    pub events: Vec<EventRow>,
    pub more: bool,
    pub below: bool,
    pub cut: bool,
}

/// How versions follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Rising,
    Falling,
}

/// Takes rows up to `limit`, and no more of them than fit an answer.
pub(super) async fn take_rows(
    mut stream: impl Stream<Item = Result<PgRow>> + Unpin,
    limit: i64,
    order: Order,
) -> Result<Rows> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let header = stream.try_next().await?.ok_or(sqlx::Error::RowNotFound)?;
    let (head, oldest) = (header.try_get(0)?, header.try_get(1)?);
    let mut rows = Rows { head, oldest, events: Vec::new(), more: false, below: false, cut: false };
    let mut bytes = 0;
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
        let event = EventRow::read(&row)?;
        // The statements order within and only join without; a plan that mixes them up must not pass.
        let follows = rows.events.last().is_none_or(|last| (event.version > last.version) == (order == Order::Rising));
        if !follows {
            return Err(sqlx::Error::Decode(format!("event {} comes out of order", event.version).into()));
        }
        if let Held::Here(message) = &event.message {
            bytes += message.content.len();
        }
        rows.events.push(event);
        if bytes >= limits::ANSWER_BYTES_MAX {
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
    for (position, event) in rows.events.iter_mut().enumerate() {
        let Held::Before { r#type, content_type, created_at } = event.message else { continue };
        let Some(row) = stream.try_next().await? else { return Ok(false) };
        let version: i64 = row.try_get(0)?;
        if version != event.version - 1 {
            return Ok(false);
        }
        let content: String = row.try_get(3)?;
        bytes += content.len();
        let id = MessageId::from_columns(row.try_get(1)?, row.try_get(2)?, version, created_at);
        event.message = Held::Here(Arc::new(Message { r#type, id, content_type, content, created_at }));
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
