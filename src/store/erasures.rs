//! Erasing what was written. Content becomes blank in its place: versions, order, Ids and
//! acknowledgements stay, and no event is made. The customer's name and image go; ids stay, for
//! they are what everybody, the gateway too, knows a session and a customer by.
//!
//! **Safe to end early, and to repeat.** Each transaction blanks some messages of some sessions and
//! records how far it came, in `erasures`, so that a later run goes on from there. It holds the
//! append lock, which puts erasures and appends in one order, and is small, so that appends wait
//! for milliseconds.
//!
//! **Replicas** see the newest number of `erasures` with every look at the head
//! ([`events::store_state`](super::events::store_state)) and forget what they remember of the
//! sessions erased since; those who cannot look tell nothing from memory
//! ([`limits::IN_TOUCH_MS`]).

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection};

use super::{
    Result,
    appends::CHANNEL,
    barrier::{self, Barrier},
};
use crate::domain::{
    ids::{MessageId, SessionKey},
    limits,
    message::ContentType,
};

/// What is to be erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    Session(String),
    /// All sessions of a customer, or those that came through one gateway: two gateways may use one
    /// id for different people.
    Customer {
        id: String,
        gateway: Option<String>,
    },
}

impl Asked {
    /// As the database keeps it.
    fn columns(&self) -> (i16, &str) {
        match self {
            Self::Session(id) => (1, id),
            Self::Customer { id, .. } => (2, id),
        }
    }
}

/// A session that may be erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasable {
    session: SessionKey,
    pub gateway_id: Option<String>,
    /// Messages up to this version are blank already.
    erased_version: i64,
    /// Those of its other messages, rising.
    versions: Vec<i64>,
}

impl Erasable {
    /// How many of its messages are not blank.
    pub fn messages(&self) -> u64 {
        self.versions.len() as u64
    }
}

/// Some messages of one session: those of versions after the one and through the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    session: SessionKey,
    after_version: i64,
    through_version: i64,
}

/// The sessions that are asked for, as they are now.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(connection: &mut PgConnection, asked: &Asked) -> Result<Vec<Erasable>> {
    let (session, customer, gateway) = match asked {
        Asked::Session(id) => (Some(id), None, None),
        Asked::Customer { id, gateway } => (None, Some(id), gateway.as_ref()),
    };
    let rows: Vec<(i64, Option<String>, i64, Vec<i64>)> = sqlx::query_as(include_str!("sql/find_erasable.sql"))
        .bind(session)
        .bind(customer)
        .bind(gateway)
        .fetch_all(connection)
        .await?;
    Ok(rows
        .into_iter()
        .map(|(key, gateway_id, erased_version, versions)| Erasable {
            session: SessionKey(key),
            gateway_id,
            erased_version,
            versions,
        })
        .collect())
}

/// Divides the work into transactions. A session without messages is work, too: it has a name.
pub fn divide(erasable: &[Erasable]) -> Vec<Vec<Piece>> {
    let mut parts = vec![Vec::new()];
    let mut room = limits::ERASED_MESSAGES_PER_COMMIT;
    for session in erasable {
        let mut after_version = session.erased_version;
        let mut rest = session.versions.as_slice();
        loop {
            let full = parts.last().is_none_or(|part: &Vec<Piece>| part.len() == limits::ERASED_SESSIONS_PER_COMMIT);
            if room == 0 || full {
                parts.push(Vec::new());
                room = limits::ERASED_MESSAGES_PER_COMMIT;
            }
            let (now, later) = rest.split_at(rest.len().min(room));
            let through_version = now.last().copied().unwrap_or(after_version);
            if let Some(part) = parts.last_mut() {
                part.push(Piece { session: session.session, after_version, through_version });
            }
            room -= now.len();
            if later.is_empty() {
                break;
            }
            (after_version, rest) = (through_version, later);
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// Blanks one part of the work, in a transaction of its own. Gives how many messages that were.
///
/// # Errors
/// When the database refuses it; none of it happened then, or (a lost connection) it is not known.
pub async fn erase(connection: &mut PgConnection, asked: &Asked, part: &[Piece]) -> Result<i64> {
    let begin = format!(
        "/* erasures.erase */
         begin;
         set local statement_timeout = {};
         set local lock_timeout = {};
         set local idle_in_transaction_session_timeout = {};
         lock table append_lock in exclusive mode",
        limits::DB_STATEMENT_MS,
        limits::DB_LOCK_MS,
        limits::DB_IDLE_IN_TRANSACTION_MS
    );
    sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *connection).await?;
    let (asked, asked_id) = asked.columns();
    let messages = sqlx::query_scalar(include_str!("sql/erase.sql"))
        .bind(part.iter().map(|piece| piece.session.0).collect::<Vec<i64>>())
        .bind(part.iter().map(|piece| piece.after_version).collect::<Vec<i64>>())
        .bind(part.iter().map(|piece| piece.through_version).collect::<Vec<i64>>())
        .bind(asked)
        .bind(asked_id)
        .bind(ContentType::Image.erased())
        .fetch_one(&mut *connection)
        .await?;
    sqlx::query("/* erasures.erase */ select pg_notify($1, 'erased')").bind(CHANNEL).execute(&mut *connection).await?;
    barrier::committed(connection, Barrier::AfterWarning, async |connection| {
        sqlx::raw_sql("commit").execute(connection).await?;
        Ok(messages)
    })
    .await
}

/// The sessions that were erased after an erasure.
///
/// # Errors
/// When the database cannot be read.
pub async fn sessions_since(connection: &mut PgConnection, erasure: i64) -> Result<Vec<i64>> {
    Ok(sqlx::query_scalar("/* erasures.sessions_since */ select session_key from erasures where erasure > $1")
        .bind(erasure)
        .fetch_all(connection)
        .await?)
}

/// Those of `ids`, messages of `sessions`, that are erased.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_erased(
    connection: &mut PgConnection,
    sessions: &[i64],
    ids: &[&MessageId],
) -> Result<HashSet<MessageId>> {
    type Row = (Option<uuid::Uuid>, Option<String>, i64, DateTime<Utc>);
    let rows: Vec<Row> = sqlx::query_as(include_str!("sql/find_erased.sql"))
        .bind(sessions)
        .bind(ids.iter().filter_map(|id| id.columns().0).collect::<Vec<uuid::Uuid>>())
        .bind(ids.iter().filter_map(|id| id.columns().1).collect::<Vec<&str>>())
        .bind(ids.iter().filter_map(|id| id.version_made_of()).collect::<Vec<i64>>())
        .fetch_all(connection)
        .await?;
    Ok(rows.into_iter().map(|(id, text, version, at)| MessageId::from_columns(id, text, version, at)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(key: i64, erased_version: i64, messages: usize) -> Erasable {
        let versions = (1..).map(|n| erased_version + 7 * n).take(messages).collect();
        Erasable { session: SessionKey(key), gateway_id: None, erased_version, versions }
    }

    #[test]
    fn the_work_is_divided_and_nothing_is_left_out() {
        const MOST: usize = limits::ERASED_MESSAGES_PER_COMMIT;
        let few: Vec<Erasable> = (0..250).map(|key| session(key, 0, 1)).collect();
        let work = [vec![session(1000, 0, 0), session(1001, 7, 3 * MOST), session(1002, 5, 0)], few].concat();
        let parts = divide(&work);
        for part in &parts {
            let messages: i64 = part.iter().map(|piece| (piece.through_version - piece.after_version) / 7).sum();
            assert!((1..=limits::ERASED_SESSIONS_PER_COMMIT).contains(&part.len()), "{part:?}");
            assert!(usize::try_from(messages).is_ok_and(|messages| messages <= MOST), "{part:?}");
            let keys: HashSet<i64> = part.iter().map(|piece| piece.session.0).collect();
            assert_eq!(keys.len(), part.len(), "each session once");
        }
        for session in &work {
            let pieces: Vec<&Piece> = parts.iter().flatten().filter(|piece| piece.session == session.session).collect();
            let last = session.versions.last().copied().unwrap_or(session.erased_version);
            assert_eq!(pieces.first().map(|piece| piece.after_version), Some(session.erased_version));
            assert_eq!(pieces.last().map(|piece| piece.through_version), Some(last));
            assert!(pieces.windows(2).all(|pair| pair[0].through_version == pair[1].after_version), "without gaps");
        }
        assert_eq!(divide(&[]), Vec::<Vec<Piece>>::new());
    }
}
