//! Appending: the only place that gives versions and sends NOTIFY of events.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{Result, cards::Cards};
use crate::domain::{
    event::{Event, EventType, Reason},
    ids::{FeedKey, SessionKey},
    message::Message,
    session::{Happening, Told},
};

/// Channel that tells other processes of new events and revocations. A hint: the tables are the truth.
pub const CHANNEL: &str = "deskfeed";

/// What a transaction under the append lock is about to append.
#[derive(Debug)]
pub struct Ledger {
    /// The newest version, given or about to be.
    head: i64,
    pub appended_at: DateTime<Utc>,
    /// The transaction's number, for [`outcome`].
    pub transaction_id: String,
    messages: Vec<MessageRow>,
    events: Vec<EventRow>,
}

#[derive(Debug)]
struct MessageRow {
    session: SessionKey,
    version: i64,
    seq: i32,
    author: FeedKey,
    message: Arc<Message>,
}

#[derive(Debug)]
struct EventRow {
    version: i64,
    session: SessionKey,
    told: Told,
    message: Option<Arc<Message>>,
}

/// Starts a transaction and takes the append lock. The caller's next statement sees everything
/// that was appended before.
///
/// # Errors
/// When the database cannot be reached or the lock is not had within lock_timeout.
pub async fn begin(connection: &mut PgConnection) -> Result<()> {
    // One round trip, two statements: the lock's own snapshot is not used for anything.
    sqlx::raw_sql("begin; lock table append_lock in exclusive mode").execute(connection).await?;
    Ok(())
}

/// Commits.
///
/// # Errors
/// Whatever the error, the transaction may have been committed: ask [`outcome`].
pub async fn commit(connection: &mut PgConnection) -> Result<()> {
    sqlx::raw_sql("commit").execute(connection).await?;
    Ok(())
}

/// Gives the transaction up.
///
/// # Errors
/// When the database cannot be reached; the transaction is then given up all the same.
pub async fn roll_back(connection: &mut PgConnection) -> Result<()> {
    sqlx::raw_sql("rollback").execute(connection).await?;
    Ok(())
}

/// What became of a transaction whose commit was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Committed,
    Aborted,
    /// Still going on, or too long ago to know.
    Unknown,
}

/// Asks what became of a transaction of this history.
///
/// # Errors
/// When the database cannot be read.
pub async fn outcome(connection: &mut PgConnection, transaction_id: &str) -> Result<Outcome> {
    let status: Option<String> = sqlx::query_scalar("/* appends.outcome */ select pg_xact_status($1::text::xid8)")
        .bind(transaction_id)
        .fetch_one(connection)
        .await?;
    Ok(match status.as_deref() {
        Some("committed") => Outcome::Committed,
        Some("aborted") => Outcome::Aborted,
        _ => Outcome::Unknown,
    })
}

impl Ledger {
    pub(super) fn new(head: i64, appended_at: DateTime<Utc>, transaction_id: String) -> Self {
        Self { head, appended_at, transaction_id, messages: Vec::new(), events: Vec::new() }
    }

    /// Notes the events that `happening` tells. Gives the version of the first: the owner's, where
    /// there is an owner; 0 when nobody is told.
    pub fn record(&mut self, session: SessionKey, gateway: Option<FeedKey>, happening: Happening) -> i64 {
        self.push(session, gateway, happening, None)
    }

    /// Notes a message and the events that tell of it.
    pub fn record_message(
        &mut self,
        session: SessionKey,
        gateway: Option<FeedKey>,
        author: FeedKey,
        seq: i32,
        happening: Happening,
        message: Arc<Message>,
    ) -> i64 {
        let version = self.push(session, gateway, happening, Some(&message));
        self.messages.push(MessageRow { session, version, seq, author, message });
        version
    }

    fn push(
        &mut self,
        session: SessionKey,
        gateway: Option<FeedKey>,
        happening: Happening,
        message: Option<&Arc<Message>>,
    ) -> i64 {
        let tells = happening.tells(gateway);
        let first = if tells.is_empty() { 0 } else { self.head + 1 };
        for told in tells {
            self.head += 1;
            self.events.push(EventRow { version: self.head, session, told, message: message.cloned() });
        }
        first
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.messages.is_empty()
    }

    /// (first, last) version of what is appended, if anything is.
    pub fn versions(&self) -> Option<(i64, i64)> {
        Some((self.events.first()?.version, self.events.last()?.version))
    }

    /// Writes everything noted.
    ///
    /// # Errors
    /// When the database refuses it; the transaction is then to be given up.
    pub async fn write(&self, connection: &mut PgConnection) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let (messages, events) = (&self.messages, &self.events);
        sqlx::query(include_str!("sql/append.sql"))
            .bind(messages.iter().map(|m| m.session.0).collect::<Vec<i64>>())
            .bind(messages.iter().map(|m| m.version).collect::<Vec<i64>>())
            .bind(messages.iter().map(|m| m.seq).collect::<Vec<i32>>())
            .bind(messages.iter().map(|m| m.author.0).collect::<Vec<i32>>())
            .bind(messages.iter().map(|m| m.message.r#type.number()).collect::<Vec<i16>>())
            .bind(messages.iter().map(|m| m.message.content_type.number()).collect::<Vec<i16>>())
            .bind(messages.iter().map(|m| m.message.id.columns().0).collect::<Vec<Option<uuid::Uuid>>>())
            .bind(messages.iter().map(|m| m.message.id.columns().1).collect::<Vec<Option<&str>>>())
            .bind(messages.iter().map(|m| m.message.content.as_str()).collect::<Vec<&str>>())
            .bind(self.appended_at)
            .bind(events.iter().map(|e| e.version).collect::<Vec<i64>>())
            .bind(events.iter().map(|e| e.session.0).collect::<Vec<i64>>())
            .bind(events.iter().map(|e| e.told.feed.0).collect::<Vec<i32>>())
            .bind(events.iter().map(|e| e.told.message_seq).collect::<Vec<i32>>())
            .bind(events.iter().map(|e| e.told.profile.0).collect::<Vec<i32>>())
            .bind(events.iter().map(|e| e.told.r#type.number()).collect::<Vec<i16>>())
            .bind(events.iter().map(|e| e.told.reason.map_or(0, Reason::number)).collect::<Vec<i16>>())
            .bind(self.head.to_string())
            .execute(connection)
            .await?;
        Ok(())
    }

    /// The events as readers are shown them, without a look into the database; none when they hold
    /// something that only the database knows.
    pub fn shown(&self, cards: &Cards) -> Option<Vec<Event>> {
        self.events
            .iter()
            .map(|row| {
                let message = row.message.as_ref().filter(|_| row.told.r#type == EventType::Message)?;
                Some(Event {
                    version: row.version,
                    feed: row.told.feed,
                    r#type: row.told.r#type,
                    session: cards.session(row.session)?,
                    agent: Some(cards.profile(row.told.profile)?),
                    reason: row.told.reason,
                    messages: vec![Arc::clone(message)],
                })
            })
            .collect()
    }
}
