//! Reading events. Each function is one statement, so what it gives and the head it names come
//! from one snapshot: everything up to that head was there to be read.

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row, postgres::PgRow};

use super::{Result, cards::Cards};
use crate::domain::{
    event::{Event, EventType, Reason, TypeSet},
    ids::{FeedKey, MessageId, ProfileKey, SessionKey},
    limits,
    message::{ContentType, Message, MessageType},
};

/// What one read found.
#[derive(Debug)]
pub struct Page {
    /// In the order of the read: ascending, but for [`read_before`].
    pub events: Vec<Event>,
    /// Whether there was more than `limit` or than fits an answer.
    pub more: bool,
    /// The newest version there was.
    pub head: i64,
    /// The oldest version still kept.
    pub oldest: i64,
}

/// Whose events, which and how many.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub feed: FeedKey,
    pub types: TypeSet,
    pub limit: i64,
}

/// The store as a whole, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreState {
    /// The newest version; 0 when there is none.
    pub head: i64,
    pub oldest: i64,
    pub epoch: String,
    pub revocations: i64,
}

/// Events of a feed after a version, oldest first.
///
/// # Errors
/// When the database cannot be read.
pub async fn read_after(connection: &mut PgConnection, cards: &Cards, wanted: Wanted, after: i64) -> Result<Page> {
    read(connection, cards, include_str!("sql/read_after.sql"), wanted, after).await
}

/// Events of a feed before a version, newest first.
///
/// # Errors
/// When the database cannot be read.
pub async fn read_before(connection: &mut PgConnection, cards: &Cards, wanted: Wanted, before: i64) -> Result<Page> {
    read(connection, cards, include_str!("sql/read_before.sql"), wanted, before).await
}

/// Events of a feed that are not acknowledged, oldest first.
///
/// # Errors
/// When the database cannot be read.
pub async fn read_unacked(connection: &mut PgConnection, cards: &Cards, wanted: Wanted) -> Result<Page> {
    read(connection, cards, include_str!("sql/read_unacked.sql"), wanted, 0).await
}

/// Events of all feeds after a version, oldest first.
///
/// # Errors
/// When the database cannot be read.
pub async fn read_all(connection: &mut PgConnection, cards: &Cards, after: i64, limit: i64) -> Result<Page> {
    let rows = sqlx::query(include_str!("sql/read_all.sql"))
        .bind(after)
        .bind(limit + 1)
        .bind(limits::ANSWER_BYTES_MAX_SQL)
        .fetch_all(&mut *connection)
        .await?;
    assemble(connection, cards, rows, limit).await
}

async fn read(
    connection: &mut PgConnection,
    cards: &Cards,
    statement: &'static str,
    wanted: Wanted,
    version: i64,
) -> Result<Page> {
    let rows = sqlx::query(statement)
        .bind(wanted.feed.0)
        .bind(version)
        .bind(wanted.limit + 1)
        .bind(wanted.types.has(EventType::AddSession))
        .bind(wanted.types.has(EventType::Message))
        .bind(wanted.types.has(EventType::DelSession))
        .bind(limits::ANSWER_BYTES_MAX_SQL)
        .fetch_all(&mut *connection)
        .await?;
    assemble(connection, cards, rows, wanted.limit).await
}

/// An event as the statements give it.
struct EventRow {
    version: i64,
    session: SessionKey,
    feed: FeedKey,
    message_seq: i32,
    profile: ProfileKey,
    r#type: EventType,
    reason: Option<Reason>,
    message: Option<Arc<Message>>,
}

impl EventRow {
    /// None for the row that only names the head.
    fn read(row: &PgRow) -> Result<Option<Self>> {
        let Some(version) = row.try_get::<Option<i64>, _>("version")? else { return Ok(None) };
        let number: i16 = row.try_get("type")?;
        let r#type = EventType::from_number(number)
            .ok_or_else(|| sqlx::Error::Decode(format!("event {version} has the unknown type {number}").into()))?;
        let message =
            if r#type == EventType::Message { Some(Arc::new(read_message(row, "message_type")?)) } else { None };
        Ok(Some(Self {
            version,
            session: SessionKey(row.try_get("session_key")?),
            feed: FeedKey(row.try_get("feed_key")?),
            message_seq: row.try_get("message_seq")?,
            profile: ProfileKey(row.try_get("profile_key")?),
            r#type,
            reason: Reason::from_number(row.try_get("reason")?),
            message,
        }))
    }
}

/// The message of a row that holds one; `type_column` names its type.
pub(super) fn read_message(row: &PgRow, type_column: &str) -> Result<Message> {
    Ok(Message {
        r#type: MessageType::from_number(row.try_get(type_column)?),
        id: MessageId::from_columns(row.try_get("id")?, row.try_get("id_text")?),
        content_type: ContentType::from_number(row.try_get("content_type")?),
        content: row.try_get("content")?,
        created_at: row.try_get("created_at")?,
    })
}

async fn assemble(connection: &mut PgConnection, cards: &Cards, rows: Vec<PgRow>, limit: i64) -> Result<Page> {
    let (head, oldest) = match rows.first() {
        Some(row) => (row.try_get("head")?, row.try_get("oldest")?),
        None => return Err(sqlx::Error::RowNotFound),
    };
    // Fewer than asked for, yet more than nothing, may also mean that the content grew too large.
    let asked = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut events: Vec<EventRow> = Vec::with_capacity(rows.len());
    for row in &rows {
        events.extend(EventRow::read(row)?);
    }
    let bytes: usize =
        events.iter().filter_map(|event| event.message.as_ref()).map(|message| message.content.len()).sum();
    let mut more = events.len() > asked || bytes >= limits::ANSWER_BYTES_MAX;
    events.truncate(asked);

    let brought = last_messages(connection, &events).await?;
    if let Some(complete) = brought.complete_events {
        more |= complete < events.len();
        events.truncate(complete);
    }
    let mut brought = brought.messages;

    let sessions: Vec<i64> = events.iter().map(|event| event.session.0).collect();
    let profiles: Vec<i32> = events.iter().map(|event| event.profile.0).collect();
    cards.load(connection, &sessions, &profiles).await?;
    let events = events
        .into_iter()
        .map(|event| {
            let session = cards.session(event.session).ok_or_else(|| {
                sqlx::Error::Decode(
                    format!("event {} refers to session {}, which does not exist", event.version, event.session.0)
                        .into(),
                )
            })?;
            Ok(Event {
                version: event.version,
                feed: event.feed,
                r#type: event.r#type,
                session,
                agent: cards.profile(event.profile),
                reason: event.reason,
                messages: match event.message {
                    Some(message) => vec![message],
                    None => brought.remove(&event.version).unwrap_or_default(),
                },
            })
        })
        .collect::<Result<Vec<Event>>>()?;
    Ok(Page { events, more, head, oldest })
}

/// The messages that AddSession events brought.
#[derive(Default)]
struct Brought {
    messages: HashMap<i64, Vec<Arc<Message>>>,
    /// How many of the events can be shown, when the content of all was too much.
    complete_events: Option<usize>,
}

async fn last_messages(connection: &mut PgConnection, events: &[EventRow]) -> Result<Brought> {
    let adding: Vec<(usize, &EventRow)> = events
        .iter()
        .enumerate()
        .filter(|(_, event)| event.r#type == EventType::AddSession && event.message_seq > 0)
        .collect();
    if adding.is_empty() {
        return Ok(Brought::default());
    }
    let positions: Vec<i32> = (0..adding.len()).map(|position| i32::try_from(position).unwrap_or(i32::MAX)).collect();
    let sessions: Vec<i64> = adding.iter().map(|(_, event)| event.session.0).collect();
    let last: Vec<i32> = adding.iter().map(|(_, event)| event.message_seq).collect();
    let rows = sqlx::query(include_str!("sql/last_messages.sql"))
        .bind(&positions)
        .bind(&sessions)
        .bind(&last)
        .bind(limits::ADD_SESSION_MESSAGES_MAX)
        .bind(limits::ANSWER_BYTES_MAX_SQL)
        .fetch_all(connection)
        .await?;
    let mut brought = Brought::default();
    for row in &rows {
        let position: i32 = row.try_get("position")?;
        let Some((_, event)) = usize::try_from(position).ok().and_then(|position| adding.get(position)) else {
            continue;
        };
        brought.messages.entry(event.version).or_default().push(Arc::new(read_message(row, "type")?));
    }
    // The statement stops when it has given enough bytes. The first event always has all its messages.
    for (index, event) in adding.iter().skip(1) {
        let expected = event.message_seq.min(limits::ADD_SESSION_MESSAGES_MAX);
        let given = brought.messages.get(&event.version).map_or(0, Vec::len);
        if usize::try_from(expected).is_ok_and(|expected| given < expected) {
            brought.complete_events = Some(*index);
            break;
        }
    }
    Ok(brought)
}

/// The store's head, oldest version, epoch and revocations.
///
/// # Errors
/// When the database cannot be read, or is a standby (which has no timeline of its own).
pub async fn store_state(connection: &mut PgConnection) -> Result<StoreState> {
    let (head, oldest, epoch, revocations): (i64, i64, String, i64) = sqlx::query_as(
        "/* events.store_state */
         select greatest(coalesce((select max(version) from events), 0), oldest_version - 1),
                oldest_version,
                left(md5(history::text || system_identifier::text || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)), 16),
                revocations
         from store, pg_control_system()",
    )
    .fetch_one(connection)
    .await?;
    Ok(StoreState { head, oldest, epoch, revocations })
}

/// The version after which every event was appended at or after `time`.
///
/// # Errors
/// When the database cannot be read.
pub async fn version_before(connection: &mut PgConnection, time: DateTime<Utc>) -> Result<i64> {
    sqlx::query_scalar(include_str!("sql/version_before.sql")).bind(time).fetch_one(connection).await
}

/// How many events of a feed are not acknowledged, and for how many seconds the oldest has been so.
///
/// # Errors
/// When the database cannot be read.
pub async fn unacked(connection: &mut PgConnection, feed: FeedKey) -> Result<(i64, Option<i64>)> {
    sqlx::query_as(include_str!("sql/count_unacked.sql")).bind(feed.0).fetch_one(connection).await
}
