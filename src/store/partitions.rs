//! The partitions of `events` that are to come. What makes them is in the database
//! (`make_partitions_ahead` and `make_partitions` of `migrations/0005_events.sql`).

use sqlx::{AssertSqlSafe, PgConnection};

use super::Result;
use crate::domain::limits;

/// Sees to it that partitions lie ahead of the newest event, and gives how many it made. Waits for
/// nobody longer than [`limits::PARTITIONS_LOCK_MS`].
///
/// # Errors
/// When the database refuses it, or somebody holds a lock on `events`; the connection is then better
/// closed.
pub async fn make_ahead(connection: &mut PgConnection) -> Result<i32> {
    let begin = format!("begin; set local lock_timeout = {}", limits::PARTITIONS_LOCK_MS);
    sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *connection).await?;
    let made = sqlx::query_scalar("/* partitions.make_ahead */ select make_partitions_ahead()")
        .fetch_one(&mut *connection)
        .await?;
    sqlx::raw_sql("commit").execute(connection).await?;
    Ok(made)
}

/// Makes the partitions that are missing for these versions, as the owner of the tables, and gives how many.
///
/// # Errors
/// When the database refuses it.
pub async fn make(connection: &mut PgConnection, first_version: i64, last_version: i64) -> Result<i32> {
    Ok(sqlx::query_scalar("/* partitions.make */ select make_partitions($1, $2)")
        .bind(first_version)
        .bind(last_version)
        .fetch_one(connection)
        .await?)
}
