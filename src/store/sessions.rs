//! Finds and lists sessions. They change only through [`super::appends`].

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row, postgres::PgRow};

use super::{Error, Result, events::read_message};
use crate::domain::{
    event::SessionCard,
    ids::{FeedKey, SessionKey},
    message::Message,
    session::{LastOp, Owner, Session, Status},
};

/// A session with everything that decisions about it need.
#[derive(Debug, Clone)]
pub struct Found {
    pub session: Arc<Session>,
    pub card: Arc<SessionCard>,
    /// The number of its newest message; 0 for none.
    pub seq: i32,
}

/// Sessions in one snapshot.
#[derive(Debug)]
pub struct Snapshot {
    /// The newest version.
    pub head: i64,
    /// Those requested sessions that exist, by id.
    pub sessions: HashMap<String, Found>,
}

/// Finds sessions by id.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(connection: &mut PgConnection, session_ids: &[&str]) -> Result<Snapshot> {
    let rows = sqlx::query(include_str!("sql/find_sessions.sql")).bind(session_ids).fetch_all(connection).await?;
    let Some(first) = rows.first() else { return Err(sqlx::Error::RowNotFound.into()) };
    let mut sessions = HashMap::with_capacity(rows.len());
    for row in &rows {
        if let Some(found) = read_found(row)? {
            sessions.insert(found.session.session_id.clone(), found);
        }
    }
    Ok(Snapshot { head: first.try_get("head")?, sessions })
}

/// Finds one session for a reader.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_to_read(connection: &mut PgConnection, session_id: &str) -> Result<Option<Session>> {
    type Row = (i64, i64, i16, Option<i32>, Option<String>, Option<i32>);
    let row: Option<Row> = sqlx::query_as(
        "/* sessions.find_to_read */
         select s.session_key, s.revision, s.status, s.owner_key, f.feed_id, s.gateway_key
         from sessions s
         left join feeds f on f.feed_key = s.owner_key
         where s.session_id = $1",
    )
    .bind(session_id)
    .fetch_optional(connection)
    .await?;
    let Some((key, revision, status, owner, owner_id, gateway)) = row else { return Ok(None) };
    Ok(Some(Session {
        key: SessionKey(key),
        session_id: session_id.to_owned(),
        revision,
        status: Status::from_number(status).unwrap_or(Status::Closed),
        owner: owner.zip(owner_id).map(|(key, id)| Owner { key: FeedKey(key), id }),
        gateway: gateway.map(FeedKey),
        assigned_version: 0,
        last_op: LastOp::None,
        last_op_by: None,
        last_op_to: None,
        last_op_version: 0,
    }))
}

fn read_found(row: &PgRow) -> Result<Option<Found>> {
    let Some(session_id) = row.try_get::<Option<String>, _>("session_id")? else { return Ok(None) };
    let owner = match row.try_get::<Option<i32>, _>("owner_key")? {
        Some(key) => Some(Owner { key: FeedKey(key), id: row.try_get("owner_id")? }),
        None => None,
    };
    let number: i16 = row.try_get("status")?;
    let status = Status::from_number(number)
        .ok_or_else(|| Error::inconsistent(format!("session {session_id:?} has the unknown status {number}")))?;
    Ok(Some(Found {
        session: Arc::new(Session {
            key: SessionKey(row.try_get("session_key")?),
            session_id: session_id.clone(),
            revision: row.try_get("revision")?,
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
        seq: row.try_get("seq")?,
    }))
}

/// Whether any session is queued.
///
/// # Errors
/// When the database cannot be read.
pub async fn any_queued(connection: &mut PgConnection) -> Result<bool> {
    Ok(sqlx::query_scalar("/* sessions.any_queued */ select exists (select from sessions where status = 0)")
        .fetch_one(connection)
        .await?)
}

/// The filter of a list of sessions.
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

/// A session in a list.
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

/// Lists sessions, newest first. `None` if `before` names no session.
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
