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
    /// Still going on.
    Unknown,
}

/// A row that is there if, and only if, its transaction was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    appended_at: DateTime<Utc>,
    /// Of an event that was appended; of none, when none was.
    version: Option<i64>,
    /// Of a message that was appended; of none, when none was.
    message: Option<(SessionKey, i32)>,
}

/// Asks what became of a transaction of this history.
///
/// The transaction's number only tells whether it still goes on. After a crash of PostgreSQL a
/// number that never reached the disk is given again, so a number that was committed may be
/// somebody else's: what was written decides.
///
/// # Errors
/// When the database cannot be read.
pub async fn outcome(connection: &mut PgConnection, transaction_id: &str, proof: Proof) -> Result<Outcome> {
    let status: Result<Option<String>> =
        sqlx::query_scalar("/* appends.outcome */ select pg_xact_status($1::text::xid8)")
            .bind(transaction_id)
            .fetch_one(&mut *connection)
            .await;
    match status {
        Ok(status) if status.as_deref() == Some("in progress") => return Ok(Outcome::Unknown),
        Ok(_) => {}
        // "is in the future": the number was lost in a crash and has not been given again.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("22023") => {}
        Err(error) => return Err(error),
    }
    // A statement of its own: its snapshot is newer than the end of the transaction.
    let written: bool = sqlx::query_scalar(
        "/* appends.outcome */
         select exists (select from events where version = $2 and created_at = $1)
             or exists (select from messages where session_key = $3 and seq = $4 and created_at = $1)",
    )
    .bind(proof.appended_at)
    .bind(proof.version)
    .bind(proof.message.map(|(session, _)| session.0))
    .bind(proof.message.map(|(_, seq)| seq))
    .fetch_one(connection)
    .await?;
    Ok(if written { Outcome::Committed } else { Outcome::Aborted })
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

    /// What will show that this was committed; none when nothing is appended.
    pub fn proof(&self) -> Option<Proof> {
        let version = self.versions().map(|(first, _)| first);
        let message = self.messages.first().map(|row| (row.session, row.seq));
        (version.is_some() || message.is_some()).then_some(Proof { appended_at: self.appended_at, version, message })
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
