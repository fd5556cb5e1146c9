//! Reading events. Each function is one statement, so what it gives and the head it names come
//! from one snapshot: everything up to that head was there to be read.

mod rows;

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, Utc};
use sqlx::{
    PgConnection, Postgres, Row,
    postgres::{PgArguments, PgRow},
    query::Query,
};

use uuid::Uuid;

use self::rows::{EventRow, Held, Order, Rows, complete, take_rows};
use super::{Error, Result, cards::Cards, history};
use crate::domain::{
    event::{EventType, Messages, Profile, SessionCard, Shown, TypeSet},
    ids::{FeedKey, MessageId, SessionKey},
    limits,
    message::{ContentType, Message, MessageType},
};

/// What one read found.
pub struct Page {
    /// In the order of the read: ascending, but for [`read_before`].
    rows: Vec<EventRow>,
    contents: String,
    /// Each once; an event says which is its.
    sessions: Vec<Arc<SessionCard>>,
    profiles: Vec<Option<Arc<Profile>>>,
    /// The messages that AddSession events brought.
    brought: HashMap<i64, Vec<Arc<Message>>>,
    /// Whether there was more than `limit` or than fits an answer.
    pub more: bool,
    /// The newest version there was; [`read_before`] does not look.
    pub head: i64,
    /// The oldest version still kept.
    pub oldest: i64,
    /// The history that it was read of (`Feed-Epoch`).
    pub epoch: String,
    /// Whether older events are still there, which were left out.
    below: bool,
    /// Whether the statement had more to give than was taken: its connection is better closed than
    /// read to the end.
    pub cut: bool,
}

impl Page {
    /// In the order of the read.
    pub fn versions(&self) -> impl ExactSizeIterator<Item = i64> {
        self.rows.iter().map(|row| row.version)
    }

    /// Whose the events are; only [`read_all`] asks.
    pub fn feeds(&self) -> impl Iterator<Item = FeedKey> {
        self.rows.iter().map(|row| row.feed)
    }

    /// In the order of the read.
    pub fn events(&self) -> impl DoubleEndedIterator<Item = Shown<'_>> + ExactSizeIterator + Clone {
        self.rows.iter().map(|row| Shown {
            version: row.version,
            r#type: row.r#type,
            session: &self.sessions[row.session],
            agent: self.profiles[row.profile].as_deref(),
            reason: row.reason,
            messages: match &row.message {
                Held::Here(message) => Messages::One(message.view(&self.contents)),
                _ => Messages::Many(self.brought.get(&row.version).map_or(&[], Vec::as_slice)),
            },
        })
    }
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
    /// Names the present history (`Feed-Epoch`).
    pub epoch: String,
    /// Its first version that it does not share with the history before.
    pub begins_at: i64,
    pub revocations: i64,
    /// The newest erasure; 0 when there is none.
    pub erasures: i64,
}

/// Events of a feed after a version, oldest first.
///
/// # Errors
/// When the database cannot be read.
pub async fn read_after(connection: &mut PgConnection, cards: &Cards, wanted: Wanted, after: i64) -> Result<Page> {
    let page = read(connection, cards, include_str!("sql/read_after.sql"), wanted, after, Order::Rising).await?;
    if !page.below {
        return Ok(page);
    }
    // What took room in the page is not kept: its partition is about to be detached.
    let after = page.oldest - 1;
    read(connection, cards, include_str!("sql/read_after.sql"), wanted, after, Order::Rising).await
}

/// Events of a feed before a version, newest first.
///
/// # Errors
/// When the database cannot be read.
pub async fn read_before(connection: &mut PgConnection, cards: &Cards, wanted: Wanted, before: i64) -> Result<Page> {
    read(connection, cards, include_str!("sql/read_before.sql"), wanted, before, Order::Falling).await
}

/// Events of a feed that are not acknowledged, oldest first.
///
/// # Errors
/// When the database cannot be read.
pub async fn read_unacked(connection: &mut PgConnection, cards: &Cards, wanted: Wanted) -> Result<Page> {
    read(connection, cards, include_str!("sql/read_unacked.sql"), wanted, 0, Order::Rising).await
}

/// Events of all feeds after a version, oldest first.
///
/// # Errors
/// When the database cannot be read.
pub async fn read_all(connection: &mut PgConnection, cards: &Cards, after: i64, limit: i64) -> Result<Page> {
    let statement = || sqlx::query(include_str!("sql/read_all.sql")).bind(after).bind(limit + 1);
    page(connection, cards, limit, Order::Rising, statement).await
}

async fn read(
    connection: &mut PgConnection,
    cards: &Cards,
    statement: &'static str,
    wanted: Wanted,
    version: i64,
    order: Order,
) -> Result<Page> {
    let lane = |r#type: EventType| wanted.types.has(r#type).then(|| r#type.number());
    let statement = || {
        sqlx::query(statement)
            .bind(wanted.feed.0)
            .bind(version)
            .bind(wanted.limit + 1)
            .bind(lane(EventType::AddSession))
            .bind(lane(EventType::Message))
            .bind(lane(EventType::DelSession))
    };
    page(connection, cards, wanted.limit, order, statement).await
}

/// Whoever reads while old events go may have to read once more; each time more of them is gone for good.
const READS_MAX: usize = 5;

async fn page(
    connection: &mut PgConnection,
    cards: &Cards,
    limit: i64,
    order: Order,
    statement: impl Fn() -> Query<'static, Postgres, PgArguments>,
) -> Result<Page> {
    for _ in 0..READS_MAX {
        let mut rows = take_rows(statement().fetch(&mut *connection), limit, order).await?;
        if complete(connection, &mut rows).await? {
            return assemble(connection, cards, rows).await;
        }
    }
    Err(Error::inconsistent(
        "an agent's message has a second event but no first; was the events table changed by hand?",
    ))
}

/// The message of a row that holds one; `version_column` names the version of its event.
pub(super) fn read_message(row: &PgRow, version_column: &str) -> Result<Message> {
    let created_at = row.try_get("created_at")?;
    let (id, text, version) = (row.try_get("id")?, row.try_get("id_text")?, row.try_get(version_column)?);
    Ok(Message {
        r#type: MessageType::from_number(row.try_get("message_type")?),
        id: MessageId::from_columns(id, text, version, created_at),
        content_type: ContentType::from_number(row.try_get("content_type")?),
        content: row.try_get("content")?,
        created_at,
    })
}

async fn assemble(connection: &mut PgConnection, cards: &Cards, rows: Rows) -> Result<Page> {
    let Rows { head, oldest, history: name, mut events, contents, sessions, profiles, mut more, below, cut } = rows;
    let (session_keys, profile_keys) = (sessions.keys, profiles.keys);
    let brought = last_messages(connection, &events, &session_keys).await?;
    if let Some(complete) = brought.complete_events {
        more |= complete < events.len();
        events.truncate(complete);
    }
    cards.load(connection, &session_keys, &profile_keys).await?;
    let sessions = session_keys.iter().map(|key| {
        let missing = || format!("there are events of session {}, which does not exist", key.0);
        cards.session(*key).ok_or_else(|| Error::inconsistent(missing()))
    });
    Ok(Page {
        rows: events,
        contents,
        sessions: sessions.collect::<Result<_>>()?,
        profiles: profile_keys.iter().map(|key| cards.profile(*key)).collect(),
        brought: brought.messages,
        more,
        head,
        oldest,
        epoch: history::epoch(name),
        below,
        cut,
    })
}

/// The messages that AddSession events brought.
#[derive(Default)]
struct Brought {
    messages: HashMap<i64, Vec<Arc<Message>>>,
    /// How many of the events can be shown, when the content of all was too much.
    complete_events: Option<usize>,
}

/// `sessions` are the keys that the events refer to.
async fn last_messages(connection: &mut PgConnection, events: &[EventRow], sessions: &[SessionKey]) -> Result<Brought> {
    let adding: Vec<(usize, &EventRow)> = events
        .iter()
        .enumerate()
        .filter(|(_, event)| event.r#type == EventType::AddSession && event.message_seq > 0)
        .collect();
    if adding.is_empty() {
        return Ok(Brought::default());
    }
    let positions: Vec<i32> = (0..adding.len()).map(|position| i32::try_from(position).unwrap_or(i32::MAX)).collect();
    let sessions: Vec<i64> = adding.iter().map(|(_, event)| sessions[event.session].0).collect();
    let versions: Vec<i64> = adding.iter().map(|(_, event)| event.version).collect();
    let rows = sqlx::query(include_str!("sql/last_messages.sql"))
        .bind(&positions)
        .bind(&sessions)
        .bind(&versions)
        .bind(limits::ADD_SESSION_MESSAGES_MAX)
        .bind(limits::ANSWER_BYTES_MAX_SQL)
        .fetch_all(connection)
        .await?;
    let (mut brought, mut bytes) = (Brought::default(), 0);
    for row in &rows {
        let position: i32 = row.try_get("position")?;
        let Some((_, event)) = usize::try_from(position).ok().and_then(|position| adding.get(position)) else {
            continue;
        };
        let message = read_message(row, "version")?;
        bytes += message.content.len();
        brought.messages.entry(event.version).or_default().push(Arc::new(message));
    }
    // The statement stops when it has given enough bytes. Before that, what is missing is not kept.
    if bytes < limits::ANSWER_BYTES_MAX {
        return Ok(brought);
    }
    // The first event always has all its messages.
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
/// When the database cannot be read.
pub async fn store_state(connection: &mut PgConnection) -> Result<StoreState> {
    let (head, oldest, history, begins_at, revocations, erasures): (i64, i64, Uuid, i64, i64, i64) = sqlx::query_as(
        "/* events.store_state */
         select greatest(coalesce((select max(version) from events), 0), oldest_version - 1), oldest_version,
                history, (select first_version from histories where name = history),
                revocations, coalesce((select max(erasure) from erasures), 0)
         from store",
    )
    .fetch_one(connection)
    .await?;
    Ok(StoreState { head, oldest, epoch: history::epoch(history), begins_at, revocations, erasures })
}

/// The version after which every event was appended at or after `time`.
///
/// # Errors
/// When the database cannot be read.
pub async fn version_before(connection: &mut PgConnection, time: DateTime<Utc>) -> Result<i64> {
    Ok(sqlx::query_scalar(include_str!("sql/version_before.sql")).bind(time).fetch_one(connection).await?)
}

/// How many events of a feed are not acknowledged, and for how many seconds the oldest has been so.
///
/// # Errors
/// When the database cannot be read.
pub async fn unacked(connection: &mut PgConnection, feed: FeedKey) -> Result<(i64, Option<i64>)> {
    Ok(sqlx::query_as(include_str!("sql/count_unacked.sql")).bind(feed.0).fetch_one(connection).await?)
}
