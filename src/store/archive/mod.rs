//! The whole store as lines, out and in again, at the speed of COPY.
//!
//! **Out** is one read-only transaction of isolation repeatable read: one moment of the whole store,
//! while the service goes on. It takes no lock that anybody waits for. Events never change, so a
//! later transaction may go on where an earlier one stopped; what else there is comes after them,
//! from the last transaction's moment.
//!
//! **In** is one transaction too, into a store with nothing in it: until its commit nobody sees any
//! of it, and whatever ends it early leaves the store as empty as it was. It holds the append lock,
//! and locks the other tables against writers, so that nothing is written beside it.
//!
//! Histories are not copied. What is put into another database is a history of its own, which shares nothing with
//! any other: the store that was exported may go on, and give the versions that come next to other events. So its
//! readers, who come with a `Feed-Epoch` that is unknown here, are answered 41001.

pub mod lines;
pub mod tables;

use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use serde::Deserialize;
use sqlx::{AssertSqlSafe, PgConnection, postgres::PgCopyIn};

use self::tables::{EVENTS, STORE, TABLES, Table};
use super::{
    Error, Result,
    events::{self, StoreState},
};

/// How long an import waits for those who write to the store, in milliseconds.
const LOCK_MS: u64 = 5_000;

/// The row of `store`, as a line has it. It is not copied in: it is there already, and says more
/// than what comes from another database.
#[derive(Debug, Deserialize)]
pub struct StoreRow {
    oldest_version: i64,
    revocations: i64,
}

/// Begins a transaction that sees the store as it is now, and says how it is.
///
/// # Errors
/// When the database cannot be read, or is a standby.
pub async fn begin_reading(connection: &mut PgConnection) -> Result<StoreState> {
    // A role may have time-outs that suit short statements. Sorting would wait for the last row
    // before it gives the first.
    sqlx::raw_sql(
        "/* archive.begin_reading */
         begin transaction isolation level repeatable read, read only;
         set local statement_timeout = 0;
         set local idle_in_transaction_session_timeout = 0;
         set local enable_sort = off;
         set local jit = off",
    )
    .execute(&mut *connection)
    .await?;
    events::store_state(connection).await
}

/// All rows of a table in their order, as binary COPY data.
///
/// # Errors
/// When the database cannot be read.
pub async fn copy_out<'c>(
    connection: &'c mut PgConnection,
    table: &Table,
) -> Result<BoxStream<'c, Result<bytes::Bytes>>> {
    copy_out_where(connection, table, "true").await
}

/// The events after a version.
///
/// # Errors
/// When the database cannot be read.
pub async fn copy_events_out(connection: &mut PgConnection, after: i64) -> Result<BoxStream<'_, Result<bytes::Bytes>>> {
    copy_out_where(connection, EVENTS, &format!("version > {after}")).await
}

async fn copy_out_where<'c>(
    connection: &'c mut PgConnection,
    table: &Table,
    condition: &str,
) -> Result<BoxStream<'c, Result<bytes::Bytes>>> {
    let statement = format!(
        "/* archive.copy_out */ copy (select {} from {} where {condition} order by {}) to stdout (format binary)",
        table.column_list(),
        table.name,
        table.order
    );
    Ok(connection.copy_out_raw(&statement).await?.map_err(Error::from).boxed())
}

/// Begins the transaction of an import, and keeps all others from writing. What is imported is a new history from
/// its first version on.
///
/// # Errors
/// When somebody goes on writing to the store, or the role does not own it.
pub async fn begin_writing(connection: &mut PgConnection) -> Result<()> {
    let tables: Vec<&str> = TABLES.iter().map(|table| table.name).filter(|name| *name != EVENTS.name).collect();
    // `events` is only ever written to under append_lock; a lock on it would be one on each of its parts.
    let statement = format!(
        "/* archive.begin_writing */
         begin;
         set local statement_timeout = 0;
         set local idle_in_transaction_session_timeout = 0;
         set local lock_timeout = {LOCK_MS};
         lock table append_lock in exclusive mode;
         lock table {} in share row exclusive mode;
         set local lock_timeout = 0;
         select next_history(true)",
        tables.join(", ")
    );
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await?;
    Ok(())
}

/// The tables that hold anything, but for `store`, which always does.
///
/// # Errors
/// When the database cannot be read.
pub async fn tables_in_use(connection: &mut PgConnection) -> Result<Vec<&'static str>> {
    let mut used = Vec::new();
    for table in TABLES.iter().filter(|table| table.name != STORE.name) {
        let statement = format!("/* archive.tables_in_use */ select exists (select from {})", table.name);
        if sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&mut *connection).await? {
            used.push(table.name);
        }
    }
    Ok(used)
}

/// Ready to take a table's rows as binary COPY data.
///
/// # Errors
/// When the database refuses it.
pub async fn copy_in<'c>(connection: &'c mut PgConnection, table: &Table) -> Result<PgCopyIn<&'c mut PgConnection>> {
    let statement =
        format!("/* archive.copy_in */ copy {} ({}) from stdin (format binary)", table.name, table.column_list());
    Ok(connection.copy_in_raw(&statement).await?)
}

/// Puts what was exported of the row of `store` into the one that is there. The history stays that of the new store.
///
/// # Errors
/// When the database refuses it.
pub async fn put_store(connection: &mut PgConnection, row: &StoreRow) -> Result<()> {
    sqlx::query("/* archive.put_store */ update store set oldest_version = $1, revocations = $2")
        .bind(row.oldest_version)
        .bind(row.revocations)
        .execute(connection)
        .await?;
    Ok(())
}

/// What is there after an import, before its commit: the versions of the oldest and newest event
/// (0 when there is none), and how the store stands. The next keys follow those that came.
///
/// # Errors
/// When the database refuses it.
pub async fn finish_writing(connection: &mut PgConnection) -> Result<(i64, i64, StoreState)> {
    sqlx::raw_sql(
        "/* archive.finish_writing */
         select setval(pg_get_serial_sequence('feeds', 'feed_key'), max(feed_key)) from feeds having max(feed_key) > 0;
         select setval(pg_get_serial_sequence('profiles', 'profile_key'), max(profile_key)) from profiles having max(profile_key) > 0;
         select setval(pg_get_serial_sequence('sessions', 'session_key'), max(session_key)) from sessions having max(session_key) > 0",
    )
    .execute(&mut *connection)
    .await?;
    let (oldest, newest) = sqlx::query_as(
        "/* archive.finish_writing */ select coalesce(min(version), 0), coalesce(max(version), 0) from events",
    )
    .fetch_one(&mut *connection)
    .await?;
    Ok((oldest, newest, events::store_state(connection).await?))
}

/// Commits what an import has written.
///
/// # Errors
/// Whatever the error, the transaction may have been committed.
pub async fn commit(connection: &mut PgConnection) -> Result<()> {
    sqlx::raw_sql("commit").execute(connection).await?;
    Ok(())
}
