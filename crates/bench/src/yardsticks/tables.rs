//! All SQL of the benchmark: the yardsticks' minimal tables in a separate database, and queries to the service's
//! database.

use std::{
    str::FromStr,
    time::{Duration, Instant},
};

use futures_util::TryStreamExt;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, PgPool, Row,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};

/// Result of a statement.
pub type Result<T> = std::result::Result<T, sqlx::Error>;

/// Channel of [`insert_and_notify`].
const CHANNEL: &str = "yardstick";
/// Channel of the naive long poll; the payload is a feed.
const FEEDS: &str = "yardstick_feeds";
/// How long a request may wait for a connection.
const ACQUIRE: Duration = Duration::from_secs(60);

/// Creates the naive server's pool.
///
/// # Errors
/// When `url` is malformed.
pub fn pool(url: &str, connections: u32) -> Result<PgPool> {
    let options = PgConnectOptions::from_str(url)?.disable_statement_logging();
    // Testing a connection before its use would cost a round trip per message.
    let pool = PgPoolOptions::new().max_connections(connections).acquire_timeout(ACQUIRE).test_before_acquire(false);
    Ok(pool.connect_lazy_with(options))
}

/// Opens a connection with PostgreSQL's default settings.
///
/// # Errors
/// When the server cannot be reached.
pub async fn connect(url: &str) -> Result<PgConnection> {
    PgConnection::connect_with(&PgConnectOptions::from_str(url)?.disable_statement_logging()).await
}

/// Opens a connection that receives the notifications of [`insert_and_notify`].
///
/// # Errors
/// When the server cannot be reached.
pub async fn listen(url: &str) -> Result<PgListener> {
    let mut listener = PgListener::connect(url).await?;
    listener.listen(CHANNEL).await?;
    Ok(listener)
}

/// Creates a database on the server of `url`.
///
/// # Errors
/// When the server refuses it.
pub async fn create_database(url: &str, name: &str) -> Result<()> {
    let mut connection = connect(url).await?;
    let statement = format!("create database {name} encoding 'UTF8' locale 'C' template template0");
    connection.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await?;
    connection.close().await
}

/// Drops a database on the server of `url`.
///
/// # Errors
/// When the server refuses it.
pub async fn drop_database(url: &str, name: &str) -> Result<()> {
    let mut connection = connect(url).await?;
    connection.execute(sqlx::raw_sql(AssertSqlSafe(format!("drop database {name} with (force)")))).await?;
    connection.close().await
}

/// Creates the tables.
///
/// # Errors
/// When the database refuses it.
pub async fn prepare(connection: &mut PgConnection) -> Result<()> {
    let statements = "
        create table if not exists single (
            version bigint generated always as identity primary key, feed integer not null, body text not null);
        create table if not exists many (
            version bigint primary key, feed integer not null, body text not null);
        create table if not exists scanned (
            version bigint primary key, feed integer not null, body text not null);
        create index if not exists scanned_by_feed on scanned (feed, version);
        create table if not exists feeds (
            version bigint generated always as identity primary key, feed text not null, body text not null);
        create index if not exists feeds_by_feed on feeds (feed, version)";
    connection.execute(sqlx::raw_sql(statements)).await?;
    Ok(())
}

/// Stores one message in a transaction with a NOTIFY. Returns its version.
///
/// # Errors
/// When the database refuses it.
pub async fn insert_and_notify(connection: &mut PgConnection, body: &str) -> Result<i64> {
    let mut transaction = connection.begin().await?;
    let version = insert(&mut transaction, body).await?;
    sqlx::query("select pg_notify($1, $2)").bind(CHANNEL).bind(version.to_string()).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(version)
}

/// Stores one message in its own transaction. Returns its version.
///
/// # Errors
/// When the database refuses it.
pub async fn insert(connection: &mut PgConnection, body: &str) -> Result<i64> {
    sqlx::query_scalar("insert into single (feed, body) values (1, $1) returning version")
        .bind(body)
        .fetch_one(connection)
        .await
}

/// Opens a connection that receives the notifications of [`insert_into_feed`].
///
/// # Errors
/// When the server cannot be reached.
pub async fn listen_to_feeds(url: &str) -> Result<PgListener> {
    let mut listener = PgListener::connect(url).await?;
    listener.listen(FEEDS).await?;
    Ok(listener)
}

/// Stores one message of a feed in a transaction with a NOTIFY. Returns its version.
///
/// # Errors
/// When the database refuses it.
pub async fn insert_into_feed(connection: &mut PgConnection, feed: &str, body: &str) -> Result<i64> {
    let mut transaction = connection.begin().await?;
    let version = sqlx::query_scalar("insert into feeds (feed, body) values ($1, $2) returning version")
        .bind(feed)
        .bind(body)
        .fetch_one(&mut *transaction)
        .await?;
    sqlx::query("select pg_notify($1, $2)").bind(FEEDS).bind(feed).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(version)
}

/// Reads the messages of a feed after a version.
///
/// # Errors
/// When the database cannot be read.
pub async fn read_feed(connection: &mut PgConnection, feed: &str, after: i64) -> Result<Vec<(i64, String)>> {
    sqlx::query_as("select version, body from feeds where feed = $1 and version > $2 order by version limit 1000")
        .bind(feed)
        .bind(after)
        .fetch_all(connection)
        .await
}

/// Reads the newest version of all feeds.
///
/// # Errors
/// When the database cannot be read.
pub async fn newest_of_feeds(connection: &mut PgConnection) -> Result<i64> {
    sqlx::query_scalar("select coalesce(max(version), 0) from feeds").fetch_one(connection).await
}

/// Inserts rows in one statement and one transaction, numbered from `first`.
///
/// # Errors
/// When the database refuses it.
pub async fn insert_many(connection: &mut PgConnection, first: i64, bodies: &[String]) -> Result<()> {
    let versions: Vec<i64> = (first..).take(bodies.len()).collect();
    let feeds: Vec<i32> = versions.iter().map(|version| i32::try_from(version % 100).unwrap_or(0)).collect();
    sqlx::query("insert into many (version, feed, body) select * from unnest($1::bigint[], $2::integer[], $3::text[])")
        .bind(versions)
        .bind(feeds)
        .bind(bodies)
        .execute(connection)
        .await?;
    Ok(())
}

/// Counts the rows that [`insert_many`] has inserted.
///
/// # Errors
/// When the database cannot be read.
pub async fn count_many(connection: &mut PgConnection) -> Result<i64> {
    sqlx::query_scalar("select count(*) from many").fetch_one(connection).await
}

/// Empties the table of [`insert_many`], so that its rate is that of a fresh table.
///
/// # Errors
/// When the database refuses it.
pub async fn empty_many(connection: &mut PgConnection) -> Result<()> {
    connection.execute("truncate many").await?;
    Ok(())
}

/// Fills the table of [`scan`] up to `rows` rows of `bytes` bytes, in turn in feeds 0 to `feeds - 1`.
///
/// # Errors
/// When the database refuses it.
pub async fn fill(connection: &mut PgConnection, rows: i64, feeds: i32, bytes: i32) -> Result<()> {
    let statement = "
        insert into scanned (version, feed, body)
        select version, version % $2, rpad(version::text, $3, 'x')
        from generate_series((select coalesce(max(version), 0) + 1 from scanned), $1) version";
    sqlx::query(statement).bind(rows).bind(feeds).bind(bytes).execute(&mut *connection).await?;
    connection.execute("vacuum (analyze) scanned").await?;
    Ok(())
}

/// Empties the table of [`scan`].
///
/// # Errors
/// When the database refuses it.
pub async fn empty_scanned(connection: &mut PgConnection) -> Result<()> {
    connection.execute("truncate scanned").await?;
    Ok(())
}

/// Configures a connection to read by index, as the service's do.
///
/// # Errors
/// When the database refuses it.
pub async fn prepare_scan(connection: &mut PgConnection) -> Result<()> {
    let settings = "set plan_cache_mode = force_generic_plan; set enable_seqscan = off; set enable_bitmapscan = off; \
                    set enable_sort = off";
    connection.execute(sqlx::raw_sql(settings)).await?;
    Ok(())
}

/// Reads the rows of a feed after a version, by index. Returns the last version and how many.
///
/// # Errors
/// When the database cannot be read.
pub async fn scan(connection: &mut PgConnection, feed: i32, after: i64, limit: i64) -> Result<(i64, u64)> {
    let mut rows =
        sqlx::query("select version, body from scanned where feed = $1 and version > $2 order by version limit $3")
            .bind(feed)
            .bind(after)
            .bind(limit)
            .fetch(connection);
    let (mut last, mut count) = (after, 0);
    while let Some(row) = rows.try_next().await? {
        last = row.try_get_unchecked(0)?;
        std::hint::black_box(row.try_get_unchecked::<&str, _>(1)?);
        count += 1;
    }
    Ok((last, count))
}

/// Runs now what autovacuum and the checkpointer would run in the next minutes.
///
/// # Errors
/// When the database refuses it.
pub async fn settle(url: &str) -> Result<()> {
    let mut connection = connect(url).await?;
    connection.execute("vacuum (analyze)").await?;
    connection.execute("checkpoint").await?;
    connection.close().await
}

/// Leaves the server with WAL segments to recycle, as a server has that has worked for a while. A new segment is
/// filled with zeros while every commit waits.
///
/// # Errors
/// When the server refuses it: it needs a superuser.
pub async fn make_wal(url: &str, segments: u32) -> Result<()> {
    let mut connection = connect(url).await?;
    let statement = format!(
        "do $$ begin
            for i in 1..{segments} loop
                -- A segment in which nothing was written is not left.
                perform pg_logical_emit_message(false, 'bench', '');
                perform pg_switch_wal();
            end loop;
         end $$"
    );
    connection.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await?;
    connection.execute("checkpoint").await?;
    connection.close().await
}

/// Turns synchronous replication to the standby `bench` on or off; returns once that is in force.
///
/// # Errors
/// When the server refuses it, or the standby does not stream within a minute.
pub async fn set_synchronous(url: &str, is_synchronous: bool) -> Result<()> {
    const CHANGED: &str = "
        select current_setting('synchronous_standby_names') = $1
           and ($1 = '' or exists (select from pg_stat_replication
                                   where application_name = $1 and state = 'streaming' and sync_state = 'sync'))";
    let names = if is_synchronous { "bench" } else { "" };
    let mut connection = connect(url).await?;
    let statement = format!("alter system set synchronous_standby_names = '{names}'");
    // Separate statements: ALTER SYSTEM cannot run in a transaction block.
    connection.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await?;
    connection.execute("select pg_reload_conf()").await?;
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let is_changed: bool = sqlx::query_scalar(CHANGED).bind(names).fetch_one(&mut connection).await?;
        if is_changed {
            return connection.close().await;
        }
        if Instant::now() > until {
            return Err(sqlx::Error::Protocol("the standby does not stream".to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Makes one round trip, with the simple protocol.
///
/// # Errors
/// When the connection is lost.
pub async fn select_one(connection: &mut PgConnection) -> Result<()> {
    connection.execute(sqlx::raw_sql("select 1")).await?;
    Ok(())
}

/// Returns the bytes on disk of all tables of the service, including indexes.
///
/// # Errors
/// When the database cannot be read.
pub async fn disk_bytes(connection: &mut PgConnection) -> Result<i64> {
    sqlx::query_scalar(
        "select sum(pg_total_relation_size(oid))::bigint from pg_class
         where relkind = 'r' and relnamespace = 'public'::regnamespace",
    )
    .fetch_one(connection)
    .await
}

/// Returns the bytes on disk of all databases of the server.
///
/// # Errors
/// When the database cannot be read.
pub async fn server_bytes(connection: &mut PgConnection) -> Result<i64> {
    sqlx::query_scalar("select sum(pg_database_size(oid))::bigint from pg_database").fetch_one(connection).await
}

/// Returns `shared_buffers` in bytes.
///
/// # Errors
/// When the database cannot be read.
pub async fn shared_buffers_bytes(connection: &mut PgConnection) -> Result<i64> {
    sqlx::query_scalar("select pg_size_bytes(current_setting('shared_buffers'))").fetch_one(connection).await
}

/// Counts the transactions of the database so far: nearly every statement of the service is one.
///
/// # Errors
/// When the database cannot be read.
pub async fn transactions(connection: &mut PgConnection) -> Result<i64> {
    sqlx::query_scalar("select xact_commit + xact_rollback from pg_stat_database where datname = current_database()")
        .fetch_one(connection)
        .await
}

/// Reads the server settings that figures depend on, as (name, value).
///
/// # Errors
/// When the database cannot be read.
pub async fn settings(connection: &mut PgConnection) -> Result<Vec<(String, String)>> {
    sqlx::query_as(
        "select name, current_setting(name) from unnest(array['server_version', 'fsync', 'synchronous_commit',
            'full_page_writes', 'wal_sync_method', 'shared_buffers', 'max_wal_size', 'checkpoint_timeout',
            'max_connections', 'autovacuum']) name",
    )
    .fetch_all(connection)
    .await
}
