//! Appending: the only place that gives versions and sends NOTIFY of events.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{Error, Result, sessions::Found};
use crate::domain::{
    event::{Event, Profile, Reason, SessionCard},
    ids::{FeedKey, MessageId, ProfileKey, SessionKey},
    message::{Message, MessageType, NewMessage},
    session::{Happening, Told},
};

/// Channel that tells other processes of new events and revocations. A hint: the tables are the truth.
pub const CHANNEL: &str = "deskfeed";

/// What is about to be appended, decided on what is known of the store.
#[derive(Debug)]
pub struct Ledger<'a> {
    /// The newest version before it.
    base: i64,
    /// The newest version, given or about to be.
    head: i64,
    /// What the count of changes to sessions and agents must still be; none when the append lock is held.
    changes: Option<i64>,
    /// The time it is appended at; none until the database says, unless the append lock is held.
    appended_at: Option<DateTime<Utc>>,
    /// Whether somebody has looked whether the Ids were kept before; else the append does.
    ids_are_new: bool,
    events: Vec<EventRow<'a>>,
}

#[derive(Debug)]
struct EventRow<'a> {
    session: SessionKey,
    told: Told,
    message: Option<MessageRow<'a>>,
}

/// The message that an event tells of.
#[derive(Debug)]
struct MessageRow<'a> {
    new: &'a NewMessage,
    /// The client's, or ours where it is to be kept.
    id: Option<MessageId>,
    r#type: MessageType,
    /// None for its second event, which holds no content.
    author: Option<FeedKey>,
    /// What its readers are shown besides.
    card: Arc<SessionCard>,
    agent: Option<Arc<Profile>>,
}

/// A message that is noted.
#[derive(Debug)]
pub struct Recorded {
    /// Version of the owner's event; 0 when there is no owner.
    pub version: i64,
    /// Version of the event that holds it.
    pub kept_as: i64,
    /// None: it will have the Id that is made of `kept_as` and of when it is appended.
    pub id: Option<MessageId>,
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

/// The server's process behind a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    pub pid: i32,
    /// Process numbers come again.
    started: DateTime<Utc>,
}

/// The server's process behind this connection, for [`outcome`].
///
/// # Errors
/// When the database cannot be read.
pub async fn backend(connection: &mut PgConnection) -> Result<Backend> {
    let (pid, started) = sqlx::query_as(
        "/* appends.backend */ select pid, backend_start from pg_stat_activity where pid = pg_backend_pid()",
    )
    .fetch_one(connection)
    .await?;
    Ok(Backend { pid, started })
}

/// What became of a transaction whose commit was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With the time it was appended at.
    Committed(DateTime<Utc>),
    Aborted,
    /// Still going on.
    Unknown,
}

/// An event that is there if, and only if, its transaction was committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    version: i64,
    /// One of the two tells it from another transaction's event of that version.
    appended_at: Option<DateTime<Utc>>,
    message: Option<MessageId>,
}

/// Asks what became of a transaction of this history, after its connection was given up. Ends the
/// server's process that ran it, which may know nothing yet of the connection's end: while it
/// lives, the transaction may still begin. When it is gone, what was written decides; a
/// transaction's number would not, for after a crash it may have been given again.
///
/// # Errors
/// When the database cannot be read.
pub async fn outcome(connection: &mut PgConnection, backend: Backend, proof: &Proof) -> Result<Outcome> {
    let lives: bool = sqlx::query_scalar(
        "/* appends.outcome */
         select count(pg_terminate_backend(pid)) > 0 from pg_stat_activity where pid = $1 and backend_start = $2",
    )
    .bind(backend.pid)
    .bind(backend.started)
    .fetch_one(&mut *connection)
    .await?;
    if lives {
        return Ok(Outcome::Unknown);
    }
    // A statement of its own: its snapshot is newer than the end of the transaction.
    let (id, id_text) = proof.message.as_ref().map_or((None, None), MessageId::columns);
    let written: Option<DateTime<Utc>> = sqlx::query_scalar(
        "/* appends.outcome */
         select created_at from events
         where version = $1 and ($2::timestamptz is null or created_at = $2)
           and ($3::uuid is null or id = $3) and ($4::text is null or id_text = $4)",
    )
    .bind(proof.version)
    .bind(proof.appended_at)
    .bind(id)
    .bind(id_text)
    .fetch_optional(connection)
    .await?;
    Ok(written.map_or(Outcome::Aborted, Outcome::Committed))
}

/// Whether an error that the server answered an append with says that nothing was appended. Any
/// other may have come after the commit.
pub fn is_refusal(error: &Error) -> bool {
    // Data, constraints, rolled back, syntax and access, object state (lock_timeout), raised by a function.
    const CLASSES: [&str; 6] = ["22", "23", "40", "42", "55", "P0"];
    error.sqlstate().is_some_and(|code| CLASSES.iter().any(|class| code.starts_with(class)))
}

impl<'a> Ledger<'a> {
    /// For a transaction that holds the append lock.
    pub(super) fn locked(head: i64, appended_at: DateTime<Utc>) -> Self {
        Self { base: head, head, changes: None, appended_at: Some(appended_at), ids_are_new: true, events: Vec::new() }
    }

    /// For an append on the assumption that nothing has happened since `head` was the newest version
    /// and `changes` the count of changes to sessions and agents; and, unless `ids_are_new`, that no Id
    /// was kept before.
    pub fn assuming(head: i64, changes: i64, ids_are_new: bool) -> Self {
        Self { base: head, head, changes: Some(changes), appended_at: None, ids_are_new, events: Vec::new() }
    }

    /// The time it is appended at.
    ///
    /// # Errors
    /// When only the database can tell: the append lock is not held.
    pub fn appended_at(&self) -> Result<DateTime<Utc>> {
        self.appended_at.ok_or_else(|| Error::inconsistent("an append without the lock has no time yet"))
    }

    /// Notes the events that `happening` tells. Gives the version of the first: the owner's, where
    /// there is an owner; 0 when nobody is told.
    pub fn record(&mut self, session: SessionKey, gateway: Option<FeedKey>, happening: Happening) -> i64 {
        let first = self.head + 1;
        for told in happening.tells(gateway) {
            self.push(session, told, None);
        }
        if self.head < first { 0 } else { first }
    }

    /// Notes a message and the events that tell of it. Without an owner it is kept all the same.
    pub fn record_message(
        &mut self,
        found: &Found,
        author: FeedKey,
        happening: Happening,
        new: &'a NewMessage,
    ) -> Recorded {
        let session = &found.session;
        let r#type =
            if matches!(happening, Happening::Sent { .. }) { MessageType::Sent } else { MessageType::Received };
        let kept_as = self.head + 1;
        // The first of what is appended at a time that only the database knows: its Id is what will
        // tell it from another's event of that version.
        let is_proof = self.appended_at.is_none() && self.events.is_empty();
        let id = new.id.clone().or_else(|| is_proof.then(MessageId::random));
        let mut author = Some(author);
        let mut row = || {
            let (card, agent) = (Arc::clone(&found.card), found.agent.clone());
            Some(MessageRow { new, id: id.clone(), r#type, author: author.take(), card, agent })
        };
        for told in happening.tells(session.gateway) {
            self.push(session.key, told, row());
        }
        if let Happening::Received { owner: None, seq } = happening {
            self.push(session.key, Told::nobody(seq), row());
            return Recorded { version: 0, kept_as, id };
        }
        Recorded { version: kept_as, kept_as, id }
    }

    fn push(&mut self, session: SessionKey, told: Told, message: Option<MessageRow<'a>>) {
        self.head += 1;
        self.events.push(EventRow { session, told, message });
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// (first, last) version of what is appended, if anything is.
    pub fn versions(&self) -> Option<(i64, i64)> {
        (self.head > self.base).then_some((self.base + 1, self.head))
    }

    /// The newest version when it is appended.
    pub fn head(&self) -> i64 {
        self.head
    }

    /// What will show that this was committed; none when nothing is appended, or nothing tells it from another's.
    pub fn proof(&self) -> Option<Proof> {
        let first = self.events.first()?;
        let message = first.message.as_ref().and_then(|message| message.id.clone());
        if self.appended_at.is_none() && message.is_none() {
            return None;
        }
        Some(Proof { version: self.base + 1, appended_at: self.appended_at, message })
    }

    /// Appends everything noted and gives its time; none, and nothing is appended, when the
    /// assumptions do not hold. Where the append lock is not held, it is one transaction of its own.
    ///
    /// # Errors
    /// When the database refuses it; a transaction is then to be given up. Where the lock is not
    /// held it may have been done, unless [`is_refusal`] says otherwise.
    pub async fn write(&self, connection: &mut PgConnection, notify: bool) -> Result<Option<DateTime<Utc>>> {
        let events = &self.events;
        // The content and what goes with it; the second event of an agent's message has none.
        fn kept<'r, 'a>(row: &'r EventRow<'a>) -> Option<&'r MessageRow<'a>> {
            row.message.as_ref().filter(|message| message.author.is_some())
        }
        // Mostly there are none, and what is not there need not be sent.
        let ids: Vec<(Option<uuid::Uuid>, Option<&str>)> = events
            .iter()
            .map(|row| kept(row).and_then(|message| message.id.as_ref()).map_or((None, None), MessageId::columns))
            .collect();
        let uuids = ids.iter().rposition(|id| id.0.is_some()).map_or(0, |last| last + 1);
        let texts = ids.iter().rposition(|id| id.1.is_some()).map_or(0, |last| last + 1);
        Ok(sqlx::query_scalar(
            "/* appends.write */ select append_events($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
        )
        .bind(self.base)
        .bind(self.changes)
        .bind(self.appended_at)
        .bind(notify)
        .bind(self.ids_are_new)
        .bind(events.iter().map(|e| e.session.0).collect::<Vec<i64>>())
        .bind(events.iter().map(|e| e.told.feed.0).collect::<Vec<i32>>())
        .bind(events.iter().map(|e| e.told.profile.0).collect::<Vec<i32>>())
        .bind(events.iter().map(|e| e.message.as_ref().and_then(|m| m.author).map_or(0, |key| key.0)).collect::<Vec<i32>>())
        .bind(events.iter().map(|e| e.told.message_seq).collect::<Vec<i32>>())
        .bind(events.iter().map(|e| e.told.r#type.number()).collect::<Vec<i16>>())
        .bind(events.iter().map(|e| e.told.reason.map_or(0, Reason::number)).collect::<Vec<i16>>())
        .bind(events.iter().map(|e| e.message.as_ref().map_or(0, |m| m.r#type.number())).collect::<Vec<i16>>())
        .bind(events.iter().map(|e| e.message.as_ref().map_or(0, |m| m.new.content_type.number())).collect::<Vec<i16>>())
        .bind(ids[..uuids].iter().map(|id| id.0).collect::<Vec<Option<uuid::Uuid>>>())
        .bind(ids[..texts].iter().map(|id| id.1).collect::<Vec<Option<&str>>>())
        .bind(events.iter().map(|e| kept(e).map(|message| message.new.content.as_str())).collect::<Vec<Option<&str>>>())
        .fetch_one(connection)
        .await?)
    }

    /// The events as readers are shown them, without a look into the database; none when they show
    /// something that only the database knows.
    pub fn shown(&self, appended_at: DateTime<Utc>) -> Option<Vec<Event>> {
        let mut shown: Vec<Event> = Vec::with_capacity(self.events.len());
        for (row, version) in self.events.iter().zip(self.base + 1..) {
            let message = row.message.as_ref()?;
            let (session, agent) = (Arc::clone(&message.card), message.agent.clone());
            let (feed, r#type, reason) = (row.told.feed, row.told.r#type, row.told.reason);
            let agent = agent.filter(|_| row.told.profile != ProfileKey(0));
            if agent.is_none() && row.told.profile != ProfileKey(0) {
                return None;
            }
            // The second event of a message shares what the first one, just before it, made.
            let messages = match (message.author, shown.last()) {
                (None, Some(first)) => first.messages.clone(),
                _ => vec![Arc::new(Message {
                    r#type: message.r#type,
                    id: message.id.clone().unwrap_or_else(|| MessageId::made(version, appended_at)),
                    content_type: message.new.content_type,
                    content: message.new.content.clone(),
                    created_at: appended_at,
                })],
            };
            shown.push(Event { version, feed, r#type, session, agent, reason, messages });
        }
        Some(shown)
    }
}
