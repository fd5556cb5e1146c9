//! Sessions: found and changed under the append lock, listed by anybody.

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row, postgres::PgRow};

use super::{Error, Result, appends::Ledger, events::read_message};
use crate::domain::{
    caller::Caller,
    event::{Profile, SessionCard},
    ids::{FeedKey, ProfileKey, SessionKey},
    message::Message,
    session::{LastOp, Owner, Session, Status},
};

/// A session with what an append needs to know of it.
#[derive(Debug, Clone)]
pub struct Found {
    pub session: Arc<Session>,
    pub card: Arc<SessionCard>,
    /// Its owner as events show it, once somebody has looked.
    pub agent: Option<Arc<Profile>>,
    /// Number of its newest message; 0 for none.
    pub last_seq: i32,
}

/// What the store looked like under the append lock.
#[derive(Debug)]
pub struct Standing {
    /// The newest version.
    pub head: i64,
    /// The count of changes to sessions and agents.
    pub changes: i64,
    /// The time for what is appended now.
    pub appended_at: DateTime<Utc>,
    /// Those of the sessions asked for that exist.
    pub sessions: HashMap<String, Found>,
}

impl Standing {
    /// A ledger for what is appended under the same lock.
    pub fn ledger<'a>(&self) -> Ledger<'a> {
        Ledger::locked(self.head, self.appended_at)
    }
}

/// Finds sessions by id. The connection must hold the append lock.
///
/// # Errors
/// When the database cannot be read.
pub async fn for_append(connection: &mut PgConnection, session_ids: &[&str]) -> Result<Standing> {
    let rows = sqlx::query(include_str!("sql/sessions_for_append.sql")).bind(session_ids).fetch_all(connection).await?;
    let Some(first) = rows.first() else {
        return Err(Error::inconsistent("a statement gave not even the row that it always gives"));
    };
    let mut sessions = HashMap::with_capacity(rows.len());
    for row in &rows {
        if let Some(found) = read_found(row)? {
            sessions.insert(found.session.session_id.clone(), found);
        }
    }
    let (head, changes) = (first.try_get("head")?, first.try_get("changes")?);
    Ok(Standing { head, changes, appended_at: first.try_get("appended_at")?, sessions })
}

/// Finds one session for a reader.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_to_read(connection: &mut PgConnection, session_id: &str) -> Result<Option<Session>> {
    type Row = (i64, i16, Option<i32>, Option<String>, Option<i32>, Option<i32>);
    let row: Option<Row> = sqlx::query_as(
        "/* sessions.find_to_read */
         select s.session_key, s.status, s.owner_key, f.feed_id, a.profile_key, s.gateway_key
         from sessions s
         left join agents a on a.feed_key = s.owner_key
         left join feeds f on f.feed_key = s.owner_key
         where s.session_id = $1",
    )
    .bind(session_id)
    .fetch_optional(connection)
    .await?;
    let Some((key, status, owner, owner_id, profile, gateway)) = row else { return Ok(None) };
    Ok(Some(Session {
        key: SessionKey(key),
        session_id: session_id.to_owned(),
        status: Status::from_number(status).unwrap_or(Status::Closed),
        owner: match (owner, owner_id, profile) {
            (Some(owner), Some(id), Some(profile)) => {
                Some(Owner { key: FeedKey(owner), id, profile: ProfileKey(profile) })
            }
            _ => None,
        },
        gateway: gateway.map(FeedKey),
        assigned_version: 0,
        last_op: LastOp::None,
        last_op_by: None,
        last_op_to: None,
        last_op_version: 0,
    }))
}

/// Finds one session to change. The connection must hold the append lock.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(connection: &mut PgConnection, session_id: &str) -> Result<Option<Found>> {
    let rows =
        sqlx::query(include_str!("sql/sessions_for_append.sql")).bind([session_id]).fetch_all(connection).await?;
    rows.first().map_or(Ok(None), read_found)
}

fn read_found(row: &PgRow) -> Result<Option<Found>> {
    let Some(session_id) = row.try_get::<Option<String>, _>("session_id")? else { return Ok(None) };
    let owner = match row.try_get::<Option<i32>, _>("owner_key")? {
        Some(key) => Some(Owner {
            key: FeedKey(key),
            id: row.try_get("owner_id")?,
            profile: ProfileKey(row.try_get("profile_key")?),
        }),
        None => None,
    };
    let number: i16 = row.try_get("status")?;
    let status = Status::from_number(number)
        .ok_or_else(|| Error::inconsistent(format!("session {session_id:?} has the unknown status {number}")))?;
    Ok(Some(Found {
        session: Arc::new(Session {
            key: SessionKey(row.try_get("session_key")?),
            session_id: session_id.clone(),
            status,
            owner,
            gateway: row.try_get::<Option<i32>, _>("gateway_key")?.map(FeedKey),
            assigned_version: row.try_get("assigned_version")?,
            last_op: LastOp::from_number(row.try_get("last_op")?),
            last_op_by: row.try_get("last_op_by")?,
            last_op_to: row.try_get::<Option<i32>, _>("last_op_to")?.map(FeedKey),
            last_op_version: row.try_get("last_op_version")?,
        }),
        card: Arc::new(SessionCard {
            session_id,
            session_type: row.try_get("session_type")?,
            from_id: row.try_get("from_id")?,
            from_name: row.try_get("from_name")?,
            from_image: row.try_get("from_image")?,
        }),
        agent: None,
        last_seq: row.try_get("last_seq")?,
    }))
}

/// Adds a queued session and gives its key.
///
/// # Errors
/// When the database refuses it.
pub async fn insert(
    connection: &mut PgConnection,
    card: &SessionCard,
    gateway: Option<FeedKey>,
    opened_at: DateTime<Utc>,
) -> Result<SessionKey> {
    let key = sqlx::query_scalar(
        "/* sessions.insert */
         insert into sessions (opened_at, status, gateway_key, session_type, session_id, from_id, from_name, from_image)
         values ($1, $2, $3, $4, $5, $6, $7, $8) returning session_key",
    )
    .bind(opened_at)
    .bind(Status::Queued.number())
    .bind(gateway.map(|key| key.0))
    .bind(card.session_type)
    .bind(&card.session_id)
    .bind(&card.from_id)
    .bind(&card.from_name)
    .bind(&card.from_image)
    .fetch_one(connection)
    .await?;
    Ok(SessionKey(key))
}

/// Gives a session to an agent.
///
/// # Errors
/// When the database refuses it.
pub async fn set_owner(
    connection: &mut PgConnection,
    session: SessionKey,
    owner: FeedKey,
    assigned_version: i64,
) -> Result<()> {
    let done = sqlx::query("/* sessions.set_owner */ update sessions set status = $2, owner_key = $3, assigned_version = $4 where session_key = $1")
        .bind(session.0)
        .bind(Status::Open.number())
        .bind(owner.0)
        .bind(assigned_version)
        .execute(connection)
        .await?;
    exactly_one(done.rows_affected(), "sessions")
}

/// Takes a session from its owner, into the queue.
///
/// # Errors
/// When the database refuses it.
pub async fn set_queued(connection: &mut PgConnection, session: SessionKey) -> Result<()> {
    let done = sqlx::query("/* sessions.set_queued */ update sessions set status = $2, owner_key = null, assigned_version = 0 where session_key = $1")
        .bind(session.0)
        .bind(Status::Queued.number())
        .execute(connection)
        .await?;
    exactly_one(done.rows_affected(), "sessions")
}

/// Ends a session; its owner stays on record.
///
/// # Errors
/// When the database refuses it.
pub async fn set_closed(connection: &mut PgConnection, session: SessionKey, closed_at: DateTime<Utc>) -> Result<()> {
    let done =
        sqlx::query("/* sessions.set_closed */ update sessions set status = $2, closed_at = $3 where session_key = $1")
            .bind(session.0)
            .bind(Status::Closed.number())
            .bind(closed_at)
            .execute(connection)
            .await?;
    exactly_one(done.rows_affected(), "sessions")
}

/// Remembers a close, release or transfer, so that its repetition gets the same answer.
///
/// # Errors
/// When the database refuses it.
pub async fn set_last_op(
    connection: &mut PgConnection,
    session: SessionKey,
    op: LastOp,
    by: &Caller,
    to: Option<FeedKey>,
    version: i64,
) -> Result<()> {
    let done = sqlx::query(
        "/* sessions.set_last_op */ update sessions set last_op = $2, last_op_by = $3, last_op_to = $4, last_op_version = $5 where session_key = $1",
    )
    .bind(session.0)
    .bind(op.number())
    .bind(by.trace_key())
    .bind(to.map(|key| key.0))
    .bind(version)
    .execute(connection)
    .await?;
    exactly_one(done.rows_affected(), "sessions")
}

/// The oldest queued session that may go to somebody else than `except`: what an agent released
/// does not come straight back.
///
/// # Errors
/// When the database cannot be read.
pub async fn next_queued(connection: &mut PgConnection, except: Option<FeedKey>) -> Result<Option<QueuedSession>> {
    let row: Option<(i64, Option<i32>, Option<i32>, i32)> = sqlx::query_as(
        "/* sessions.next_queued */
         select s.session_key, s.gateway_key, case when s.last_op = 2 then s.last_op_to end,
                coalesce((select m.message_seq from events m where m.session_key = s.session_key and m.content is not null order by m.version desc limit 1), 0)
         from sessions s
         where s.status = 0 and ($1::int is null or s.last_op <> 2 or s.last_op_to is distinct from $1)
         order by s.session_key limit 1",
    )
    .bind(except.map(|key| key.0))
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|(key, gateway, released_by, last_seq)| QueuedSession {
        key: SessionKey(key),
        gateway: gateway.map(FeedKey),
        released_by: released_by.map(FeedKey),
        last_seq,
    }))
}

/// A session that waits for an agent.
#[derive(Debug)]
pub struct QueuedSession {
    pub key: SessionKey,
    pub gateway: Option<FeedKey>,
    /// The agent it was last taken from by a release.
    pub released_by: Option<FeedKey>,
    pub last_seq: i32,
}

/// Whether any session waits for an agent.
///
/// # Errors
/// When the database cannot be read.
pub async fn any_queued(connection: &mut PgConnection) -> Result<bool> {
    Ok(sqlx::query_scalar("/* sessions.any_queued */ select exists (select from sessions where status = 0)")
        .fetch_one(connection)
        .await?)
}

/// Lets an agent have what it released: it has said again that it is there.
///
/// # Errors
/// When the database refuses it.
pub async fn forget_releases(connection: &mut PgConnection, agent: FeedKey) -> Result<()> {
    sqlx::query("/* sessions.forget_releases */ update sessions set last_op_to = null where status = 0 and last_op = 2 and last_op_to = $1")
        .bind(agent.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Which sessions to list.
#[derive(Debug, Clone, Copy)]
pub struct Listed<'a> {
    /// Owned by this agent.
    pub owner: Option<FeedKey>,
    /// Opened by this gateway.
    pub gateway: Option<FeedKey>,
    pub status: Option<Status>,
    /// Opened before this one.
    pub before: Option<&'a str>,
    pub limit: i64,
}

/// A session as a list shows it.
#[derive(Debug)]
pub struct SessionLine {
    pub card: SessionCard,
    pub status: Status,
    pub owner_id: Option<String>,
    pub owner_name: Option<String>,
    pub opened_at: DateTime<Utc>,
    pub closed_at: Option<DateTime<Utc>>,
    pub last_message: Option<Message>,
}

/// Sessions, newest first. None when `before` names no session.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(connection: &mut PgConnection, listed: Listed<'_>) -> Result<Option<Vec<SessionLine>>> {
    let before: i64 = match listed.before {
        Some(session_id) => {
            let key: Option<i64> =
                sqlx::query_scalar("/* sessions.list */ select session_key from sessions where session_id = $1")
                    .bind(session_id)
                    .fetch_optional(&mut *connection)
                    .await?;
            let Some(key) = key else { return Ok(None) };
            key
        }
        None => i64::MAX,
    };
    let statuses: Vec<i16> = Status::ALL
        .into_iter()
        .filter(|status| listed.status.is_none_or(|wanted| wanted == *status))
        .map(Status::number)
        .collect();
    let statement = match (listed.owner, listed.gateway) {
        (Some(_), _) => include_str!("sql/list_by_owner.sql"),
        (None, Some(_)) => include_str!("sql/list_by_gateway.sql"),
        (None, None) => include_str!("sql/list_all.sql"),
    };
    let rows = sqlx::query(statement)
        .bind(before)
        .bind(listed.limit)
        .bind(statuses)
        .bind(listed.owner.or(listed.gateway).map_or(0, |key| key.0))
        .fetch_all(connection)
        .await?;
    rows.iter().map(read_line).collect::<Result<Vec<SessionLine>>>().map(Some)
}

fn read_line(row: &PgRow) -> Result<SessionLine> {
    let has_message = row.try_get::<Option<i16>, _>("message_type")?.is_some();
    Ok(SessionLine {
        card: SessionCard {
            session_id: row.try_get("session_id")?,
            session_type: row.try_get("session_type")?,
            from_id: row.try_get("from_id")?,
            from_name: row.try_get("from_name")?,
            from_image: row.try_get("from_image")?,
        },
        status: Status::from_number(row.try_get("status")?).unwrap_or(Status::Closed),
        owner_id: row.try_get("owner_id")?,
        owner_name: row.try_get("owner_name")?,
        opened_at: row.try_get("opened_at")?,
        closed_at: row.try_get("closed_at")?,
        last_message: if has_message { Some(read_message(row, "version")?) } else { None },
    })
}

/// A statement that must change one row changed another number: the data are not what we think.
pub(super) fn exactly_one(rows: u64, table: &str) -> Result<()> {
    if rows == 1 { Ok(()) } else { Err(Error::inconsistent(format!("a change of one row of {table} changed {rows}"))) }
}
