//! Finds messages by Id and lists them by session.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};

use super::{Result, events::read_message};
use crate::domain::{
    ids::{FeedKey, MessageId, SessionKey},
    message::{ContentType, Message, MessageType},
};

/// An existing message.
#[derive(Debug, Clone)]
pub struct Kept {
    pub session: SessionKey,
    pub author: FeedKey,
    pub r#type: MessageType,
    pub content_type: ContentType,
    pub content: String,
    pub version: i64,
    pub created_at: DateTime<Utc>,
}

/// Finds messages by Id.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_kept(connection: &mut PgConnection, ids: &[&MessageId]) -> Result<HashMap<MessageId, Kept>> {
    let uuids: Vec<uuid::Uuid> = ids.iter().filter_map(|id| id.columns().0).collect();
    let texts: Vec<&str> = ids.iter().filter_map(|id| id.columns().1).collect();
    let versions: Vec<i64> = ids.iter().filter_map(|id| id.version_made_of()).collect();
    let rows = sqlx::query(include_str!("sql/find_kept.sql"))
        .bind(uuids)
        .bind(texts)
        .bind(versions)
        .fetch_all(connection)
        .await?;
    // A row found by version may have another Id than the requested one; callers look up by the Id returned here.
    rows.iter()
        .map(|row| {
            let message = read_message(row, "kept_as")?;
            let kept = Kept {
                session: SessionKey(row.try_get("session_key")?),
                author: FeedKey(row.try_get("author_key")?),
                r#type: message.r#type,
                content_type: message.content_type,
                content: message.content,
                version: row.try_get("version")?,
                created_at: message.created_at,
            };
            Ok((message.id, kept))
        })
        .collect()
}

/// Where a page of a session's history ends (exclusive).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Before {
    /// At the newest message.
    Newest,
    /// Before a message, given by its Id, or (all digits) by the version of an event.
    Message(String),
}

/// Lists a session's messages, newest first. `None` if `before` is neither a message of this session nor a number.
///
/// # Errors
/// When the database cannot be read.
pub async fn history(
    connection: &mut PgConnection,
    session: SessionKey,
    before: &Before,
    limit: i64,
) -> Result<Option<Vec<Message>>> {
    let before_version = match before {
        Before::Newest => i64::MAX,
        Before::Message(text) => match version_of(connection, session, text).await? {
            Some(version) => version,
            None => return Ok(None),
        },
    };
    // Ordered by version (the same order as message_seq), so that newer partitions are read first.
    let rows = sqlx::query(
        "/* messages.history */
         select version, message_type, created_at, content_type, id, id_text, content from events
         where session_key = $1 and content is not null and version < $2 order by version desc limit $3",
    )
    .bind(session.0)
    .bind(before_version)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| read_message(row, "version")).collect::<Result<Vec<Message>>>().map(Some)
}

/// Resolves a message Id to the version of the event that holds it, or parses a version.
async fn version_of(connection: &mut PgConnection, session: SessionKey, text: &str) -> Result<Option<i64>> {
    let id = MessageId::from_text(text.to_owned());
    let (uuid, id_text) = id.columns();
    let version: Option<i64> = sqlx::query_scalar(
        "/* messages.history */
         select version from events where id = $1 and session_key = $3
         union all
         select version from events where id_text = $2 and session_key = $3
         union all
         select version from events
         where version = $4 and session_key = $3 and id is null and id_text is null and content is not null
           and made_message_id(version, created_at) = $1",
    )
    .bind(uuid)
    .bind(id_text)
    .bind(session.0)
    .bind(id.version_made_of())
    .fetch_optional(connection)
    .await?;
    Ok(version.or_else(|| text.parse().ok()))
}
