//! Calls `append()` and its companions (`migrations/0008_append.sql`). Plain rows go in and their outcomes come out;
//! `desk` decides what they mean.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::{Error, Result};
use crate::domain::{
    event::{EventType, Reason},
    ids::{FeedKey, MessageId, ProfileKey, SessionKey},
    message::{ContentType, MessageType},
    session::{Outgoing, Status},
};

/// NOTIFY channel for new events and revocations. A notification is only a hint: the tables are authoritative.
pub const CHANNEL: &str = "deskfeed";

/// Rows of one append. Positions count from 0 here, and from 1 in the database.
#[derive(Debug, Default)]
pub struct Batch<'a> {
    pub sessions: Vec<SessionRow>,
    pub events: Vec<EventRow<'a>>,
    pub agents: Vec<AgentRow<'a>>,
    pub presence: Vec<PresenceRow>,
    pub changes: Vec<ChangeRow>,
    pub opens: Vec<OpenRow<'a>>,
    /// Whether queued sessions are assigned as well.
    pub assign: bool,
}

/// A session that a batch touches, with the state that was assumed.
#[derive(Debug, Clone, Copy)]
pub struct SessionRow {
    pub key: SessionKey,
    pub revision: i64,
    /// The head at which `seq` was the number of its newest message.
    pub seq_version: i64,
    pub seq: i32,
}

/// An event of one of these sessions.
#[derive(Debug, Clone, Copy)]
pub struct EventRow<'a> {
    /// Position of its session in the batch.
    pub session: usize,
    pub event: Outgoing,
    /// Number of messages of the session in the batch, up to and including this event.
    pub seq_step: i32,
    pub message: Option<MessageRow<'a>>,
}

/// The message of an event.
#[derive(Debug, Clone, Copy)]
pub struct MessageRow<'a> {
    pub r#type: MessageType,
    pub content_type: ContentType,
    /// `None` in the second event of an agent's message.
    pub content: Option<MessageContent<'a>>,
}

/// The part of a message that only its first event holds.
#[derive(Debug, Clone, Copy)]
pub struct MessageContent<'a> {
    pub author: FeedKey,
    /// `None` if the client gave none.
    pub id: Option<&'a MessageId>,
    pub text: &'a str,
}

/// A change of a session's owner or status; at most one per session.
#[derive(Debug, Serialize)]
pub struct ChangeRow {
    /// Position of its session, from 1.
    pub session: usize,
    pub status: i16,
    pub owner: Option<i32>,
    /// Whether the new owner must be available.
    pub needs_room: bool,
    pub last_op: Option<i16>,
    pub by: i32,
    pub to: Option<i32>,
    /// Positions from 1 of the change's first event and of the new owner's AddSession.
    pub first: Option<usize>,
    pub added: Option<usize>,
}

impl ChangeRow {
    pub fn status(&self) -> Status {
        Status::from_number(self.status).unwrap_or(Status::Closed)
    }
}

/// A new session.
#[derive(Debug, Serialize)]
pub struct OpenRow<'a> {
    pub session_id: &'a str,
    pub session_type: i32,
    pub from_id: &'a str,
    pub from_name: Option<&'a str>,
    pub from_image: Option<&'a str>,
    pub gateway: Option<i32>,
    /// `None`: any available agent, else the queue.
    pub owner: Option<i32>,
}

/// Whether new sessions are routed to an agent.
#[derive(Debug, Serialize)]
pub struct PresenceRow {
    pub agent: i32,
    pub online: bool,
}

/// An agent to create or change. Fields that are `None` or not set keep their value.
#[derive(Debug, Serialize)]
pub struct AgentRow<'a> {
    pub id: &'a str,
    pub name: Option<&'a str>,
    pub sets_name: bool,
    pub image: Option<&'a str>,
    pub sets_image: bool,
    pub max_sessions: Option<i32>,
    pub default_max_sessions: i32,
    pub online: Option<bool>,
}

/// The parts that most batches do not have.
#[derive(Serialize)]
struct Rare<'r, 'a> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    agents: &'r [AgentRow<'a>],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    presence: &'r [PresenceRow],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    changes: &'r [ChangeRow],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    opens: &'r [OpenRow<'a>],
    assign: bool,
}

/// The outcome of an append. `sessions`, `changes` and `opens` have one element per row of the batch.
#[derive(Debug)]
pub struct Appended {
    /// The newest version before it.
    pub head: i64,
    /// The newest version after it.
    pub last: i64,
    pub at: DateTime<Utc>,
    pub sessions: Vec<SessionOutcome>,
    pub changes: Vec<ChangeOutcome>,
    pub opens: Vec<OpenOutcome>,
    /// Positions of agents whose id belongs to a gateway.
    pub taken_agents: Vec<usize>,
    /// Number of queued sessions that were assigned.
    pub assigned: i32,
}

/// The outcome for a session.
#[derive(Debug, Clone, Copy)]
pub struct SessionOutcome {
    /// Nothing of it was written: the session had changed, an Id is taken, or a change was refused.
    pub is_stale: bool,
    /// The number of its newest message before the append.
    pub seq: i32,
    /// The owner's profile; 0 without an owner.
    pub profile: ProfileKey,
}

/// The outcome of a change.
#[derive(Debug, Clone, Copy)]
pub struct ChangeOutcome {
    /// The new owner is not available.
    pub is_refused: bool,
    /// The new owner's profile; 0 without one.
    pub profile: ProfileKey,
}

/// The outcome of an open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenOutcome {
    Queued(SessionKey),
    Assigned {
        session: SessionKey,
        owner: FeedKey,
        profile: ProfileKey,
        /// Version of its AddSession.
        version: i64,
    },
    /// The SessionId exists already.
    Taken,
    /// The agent that it names is not available.
    Refused,
}

impl Batch<'_> {
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && !self.has_rare()
    }

    fn has_rare(&self) -> bool {
        self.assign
            || !(self.agents.is_empty() && self.presence.is_empty() && self.changes.is_empty() && self.opens.is_empty())
    }

    fn rare_as_json(&self) -> Result<String> {
        let Self { agents, presence, changes, opens, assign, .. } = self;
        serde_json::to_string(&Rare { agents, presence, changes, opens, assign: *assign })
            .map_err(|error| Error::inconsistent(format!("a request cannot be written as JSON: {error}")))
    }

    /// The version of each event; `None` for those of stale sessions.
    pub fn versions(&self, head: i64, sessions: &[SessionOutcome]) -> Vec<Option<i64>> {
        let mut version = head;
        self.events
            .iter()
            .map(|event| {
                let is_stale = sessions.get(event.session).is_none_or(|session| session.is_stale);
                (!is_stale).then(|| {
                    version += 1;
                    version
                })
            })
            .collect()
    }
}

/// Identifies an append, and the history that it expects.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    pub history: Uuid,
    pub evidence: i64,
    /// The newest known version of this history. It exists.
    pub known_head: i64,
}

/// Appends a batch, in one round trip and a transaction of its own. `None` if nothing was done because the history is
/// another one or the evidence was settled.
///
/// # Errors
/// If [`rules_out_commit`] is false for the error, the batch may have been committed.
pub async fn append(connection: &mut PgConnection, terms: Terms, batch: &Batch<'_>) -> Result<Option<Appended>> {
    let (sessions, events) = (&batch.sessions, &batch.events);
    fn content<'a>(event: &EventRow<'a>) -> Option<MessageContent<'a>> {
        event.message.and_then(|message| message.content)
    }
    // Most messages have no client's Id; trailing nulls need not be sent.
    let ids: Vec<(Option<Uuid>, Option<&str>)> = events
        .iter()
        .map(|event| match content(event).and_then(|content| content.id) {
            Some(id) => id.columns(),
            None => (None, None),
        })
        .collect();
    let uuids = ids.iter().rposition(|id| id.0.is_some()).map_or(0, |last| last + 1);
    let texts = ids.iter().rposition(|id| id.1.is_some()).map_or(0, |last| last + 1);
    let rare = if batch.has_rare() { Some(batch.rare_as_json()?) } else { None };
    let row = sqlx::query(
        "/* appends.append */ select * from append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20::text::jsonb)",
    )
    .bind(terms.history)
    .bind(terms.evidence)
    .bind(terms.known_head)
    .bind(sessions.iter().map(|s| s.key.0).collect::<Vec<i64>>())
    .bind(sessions.iter().map(|s| s.revision).collect::<Vec<i64>>())
    .bind(sessions.iter().map(|s| s.seq_version).collect::<Vec<i64>>())
    .bind(sessions.iter().map(|s| s.seq).collect::<Vec<i32>>())
    .bind(events.iter().map(|e| from_1(e.session)).collect::<Vec<i32>>())
    .bind(events.iter().map(|e| e.event.feed.0).collect::<Vec<i32>>())
    .bind(events.iter().map(|e| e.event.profile.number()).collect::<Vec<i16>>())
    .bind(events.iter().map(|e| content(e).map_or(0, |content| content.author.0)).collect::<Vec<i32>>())
    .bind(events.iter().map(|e| e.event.is_numbered.then_some(e.seq_step)).collect::<Vec<Option<i32>>>())
    .bind(events.iter().map(|e| e.event.r#type.number()).collect::<Vec<i16>>())
    .bind(events.iter().map(|e| e.event.reason.map_or(0, Reason::number)).collect::<Vec<i16>>())
    .bind(events.iter().map(|e| e.message.map_or(0, |message| message.r#type.number())).collect::<Vec<i16>>())
    .bind(events.iter().map(|e| e.message.map_or(0, |message| message.content_type.number())).collect::<Vec<i16>>())
    .bind(ids[..uuids].iter().map(|id| id.0).collect::<Vec<Option<Uuid>>>())
    .bind(ids[..texts].iter().map(|id| id.1).collect::<Vec<Option<&str>>>())
    .bind(events.iter().map(|e| content(e).map(|content| content.text)).collect::<Vec<Option<&str>>>())
    .bind(rare)
    .fetch_one(connection)
    .await?;
    read_appended(&row, batch)
}

/// Whether an error proves that nothing was appended. After any other error, the append may have been committed.
pub fn rules_out_commit(error: &Error) -> bool {
    // Data, constraints, read-only or invalid transaction, rolled back, syntax and access, resources, limits, object
    // state (lock_timeout), raised by a function, statement cancelled. (Cancelling a commit that waits for a standby
    // does not give this error: by then the statement is over.)
    const CODES: [&str; 10] = ["22", "23", "25", "40", "42", "53", "54", "55", "P0", "57014"];
    error.sqlstate().is_some_and(|code| CODES.iter().any(|start| code.starts_with(start)))
}

fn from_1(position: usize) -> i32 {
    i32::try_from(position + 1).unwrap_or(i32::MAX)
}

fn read_appended(row: &PgRow, batch: &Batch<'_>) -> Result<Option<Appended>> {
    let Some(head) = row.try_get::<Option<i64>, _>("head")? else { return Ok(None) };
    let list = |name: &str| row.try_get::<Option<Vec<Option<i32>>>, _>(name).map(Option::unwrap_or_default);
    let positions = |name: &str| {
        let given = list(name)?;
        Ok::<Vec<usize>, Error>(given.into_iter().flatten().filter_map(|n| usize::try_from(n - 1).ok()).collect())
    };
    let at = |values: &[Option<i32>], position: usize| values.get(position).copied().flatten().unwrap_or(0);
    let stale: Vec<bool> = row.try_get::<Option<Vec<bool>>, _>("stale")?.unwrap_or_default();
    if stale.len() != batch.sessions.len() {
        return Err(Error::inconsistent("append() did not say what became of each session"));
    }
    let (seqs, profiles) = (list("last_seqs")?, list("owner_profiles")?);
    let sessions = (0..stale.len()).map(|position| SessionOutcome {
        is_stale: stale[position],
        seq: at(&seqs, position),
        profile: ProfileKey(at(&profiles, position)),
    });
    let (refused, profiles) = (positions("refused_changes")?, list("change_profiles")?);
    let changes = (0..batch.changes.len()).map(|position| ChangeOutcome {
        is_refused: refused.contains(&position),
        profile: ProfileKey(at(&profiles, position)),
    });
    let (taken, refused) = (positions("taken_opens")?, positions("refused_opens")?);
    let keys: Vec<Option<i64>> = row.try_get::<Option<_>, _>("open_keys")?.unwrap_or_default();
    let versions: Vec<Option<i64>> = row.try_get::<Option<_>, _>("open_versions")?.unwrap_or_default();
    let (owners, profiles) = (list("open_owners")?, list("open_profiles")?);
    let opens = (0..batch.opens.len()).map(|position| {
        if taken.contains(&position) {
            return Ok(OpenOutcome::Taken);
        }
        if refused.contains(&position) {
            return Ok(OpenOutcome::Refused);
        }
        let Some(key) = keys.get(position).copied().flatten() else {
            return Err(Error::inconsistent("append() did not say what became of each open"));
        };
        let session = SessionKey(key);
        Ok(match at(&owners, position) {
            0 => OpenOutcome::Queued(session),
            owner => OpenOutcome::Assigned {
                session,
                owner: FeedKey(owner),
                profile: ProfileKey(at(&profiles, position)),
                version: versions.get(position).copied().flatten().unwrap_or(0),
            },
        })
    });
    Ok(Some(Appended {
        head,
        last: row.try_get("last")?,
        at: row.try_get("appended_at")?,
        sessions: sessions.collect(),
        changes: changes.collect(),
        opens: opens.collect::<Result<_>>()?,
        taken_agents: positions("taken_agents")?,
        assigned: row.try_get::<Option<i32>, _>("assigned")?.unwrap_or(0),
    }))
}

/// An event of an append that was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundEvent {
    pub version: i64,
    pub session: SessionKey,
    pub session_id: String,
    pub feed: FeedKey,
    pub r#type: EventType,
}

/// An append that was not answered and was committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub at: DateTime<Utc>,
    /// Ascending.
    pub events: Vec<FoundEvent>,
}

/// Finds an append whose commit was not answered, or ensures that it never happens (`None`). Once this returns, the
/// append is replicated as far as the server's settings ask for.
///
/// # Errors
/// [`Error::is_outage`] if the outcome is still unknown, for example because the append waits for a standby.
pub async fn settle(connection: &mut PgConnection, terms: Terms) -> Result<Option<Found>> {
    let (version, at): (Option<i64>, Option<DateTime<Utc>>) =
        sqlx::query_as("/* appends.settle */ select found_version, found_at from settle_append($1, $2)")
            .bind(terms.evidence)
            .bind(terms.known_head)
            .fetch_one(&mut *connection)
            .await?;
    let (Some(version), Some(at)) = (version, at) else { return Ok(None) };
    type FoundRow = (i64, i64, String, i32, i16);
    // An append ends where the next one begins.
    let rows: Vec<FoundRow> = sqlx::query_as(
        "/* appends.settle */
         select e.version, e.session_key, s.session_id, e.feed_key, e.type
         from events e join sessions s on s.session_key = e.session_key
         where e.version >= $1
           and e.version < coalesce((select n.version from events n where n.version > $1 and n.append is not null order by n.version limit 1),
                                    9223372036854775807)
         order by e.version",
    )
    .bind(version)
    .fetch_all(connection)
    .await?;
    let events = rows.into_iter().map(|(version, session, session_id, feed, number)| {
        let r#type = EventType::from_number(number)
            .ok_or_else(|| Error::inconsistent(format!("event {version} has the unknown type {number}")))?;
        Ok(FoundEvent { version, session: SessionKey(session), session_id, feed: FeedKey(feed), r#type })
    });
    Ok(Some(Found { at, events: events.collect::<Result<_>>()? }))
}

/// Returns the name of the present history, after beginning a new one if there was a failover or a restore. Called once
/// per connection that appends.
///
/// # Errors
/// When the database refuses it.
pub async fn begin_history(connection: &mut PgConnection) -> Result<Uuid> {
    Ok(sqlx::query_scalar("/* appends.begin_history */ select begin_history()").fetch_one(connection).await?)
}

/// Notifies every process of new events up to `head`. `sender` identifies this process.
///
/// # Errors
/// When the server cannot be reached.
pub async fn notify(connection: &mut PgConnection, head: i64, sender: u64) -> Result<()> {
    sqlx::query("/* notifier.notify */ select pg_notify($1, $2)")
        .bind(CHANNEL)
        .bind(format!("{head} {sender:x}"))
        .execute(connection)
        .await?;
    Ok(())
}
