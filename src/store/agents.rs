//! Finds and lists agents and gateways. Agents change only through [`super::appends`]: routing relies on them.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::Result;
use crate::domain::{
    caller::Role,
    ids::{FeedId, FeedKey},
};

const AGENT: i16 = 1;

/// Finds the feed with this id, and its owner's role.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_feed(connection: &mut PgConnection, id: &str) -> Result<Option<(FeedKey, Role)>> {
    let row: Option<(i32, i16)> =
        sqlx::query_as("/* agents.find_feed */ select feed_key, kind from feeds where feed_id = $1")
            .bind(id)
            .fetch_optional(connection)
            .await?;
    Ok(row.map(|(key, kind)| (FeedKey(key), if kind == AGENT { Role::Agent } else { Role::Gateway })))
}

/// Returns those of the ids that are agents.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_agents(connection: &mut PgConnection, ids: &[&str]) -> Result<HashMap<String, FeedKey>> {
    let rows: Vec<(String, i32)> = sqlx::query_as(
        "/* agents.find_agents */ select feed_id, feed_key from feeds where feed_id = any ($1) and kind = $2",
    )
    .bind(ids)
    .bind(AGENT)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(id, key)| (id, FeedKey(key))).collect())
}

/// A change of an agent by an admin. Absent fields keep their value, or get their default in a new agent.
#[derive(Debug, Clone)]
pub struct AgentChange {
    pub id: FeedId,
    pub name: Option<String>,
    pub image: Option<String>,
    pub max_sessions: Option<i32>,
    pub online: Option<bool>,
}

/// Creates or changes a gateway and returns its name; `None` if the id belongs to an agent.
///
/// # Errors
/// When the database refuses it.
pub async fn put_gateway(
    connection: &mut PgConnection,
    id: &FeedId,
    name: Option<&str>,
) -> Result<Option<Option<String>>> {
    let (is_gateway, name): (bool, Option<String>) =
        sqlx::query_as("/* agents.put_gateway */ select is_gateway, present_name from put_gateway($1, $2, $3)")
            .bind(id.as_str())
            .bind(name)
            .bind(name.is_some())
            .fetch_one(connection)
            .await?;
    Ok(is_gateway.then_some(name))
}

/// An agent as an admin sees it.
#[derive(Debug)]
pub struct AgentLine {
    pub id: String,
    pub name: Option<String>,
    pub image: Option<String>,
    pub max_sessions: i32,
    pub online: bool,
    pub open_sessions: i32,
    pub last_seen: Option<DateTime<Utc>>,
}

/// Lists all agents, ordered by id.
///
/// # Errors
/// When the database cannot be read.
pub async fn list_agents(connection: &mut PgConnection) -> Result<Vec<AgentLine>> {
    agent_lines(connection, None).await
}

/// Finds one agent.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_line(connection: &mut PgConnection, id: &str) -> Result<Option<AgentLine>> {
    Ok(agent_lines(connection, Some(id)).await?.pop())
}

async fn agent_lines(connection: &mut PgConnection, id: Option<&str>) -> Result<Vec<AgentLine>> {
    type Row = (String, Option<String>, Option<String>, i32, i16, i32, Option<DateTime<Utc>>);
    let rows: Vec<Row> = sqlx::query_as(
        "/* agents.list_agents */
         select f.feed_id, p.name, p.image, a.max_sessions, a.status, a.open_sessions, s.seen_at
         from agents a
         join feeds f on f.feed_key = a.feed_key
         join profiles p on p.profile_key = a.profile_key
         left join polls_seen s on s.feed_key = a.feed_key
         where $1::text is null or f.feed_id = $1
         order by f.feed_id",
    )
    .bind(id)
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(id, name, image, max_sessions, status, open_sessions, last_seen)| AgentLine {
            id,
            name,
            image,
            max_sessions,
            online: status == 1,
            open_sessions,
            last_seen,
        })
        .collect())
}

/// Lists all gateways, ordered by id: (id, name).
///
/// # Errors
/// When the database cannot be read.
pub async fn list_gateways(connection: &mut PgConnection) -> Result<Vec<(String, Option<String>)>> {
    let rows = sqlx::query_as("/* agents.list_gateways */ select f.feed_id, g.name from gateways g join feeds f on f.feed_key = g.feed_key order by f.feed_id")
        .fetch_all(connection)
        .await?;
    Ok(rows)
}

/// Records when agents last polled: (feed, seconds ago).
///
/// # Errors
/// When the database refuses it.
pub async fn note_polls(connection: &mut PgConnection, polls: &[(FeedKey, f64)]) -> Result<()> {
    let keys: Vec<i32> = polls.iter().map(|(key, _)| key.0).collect();
    let ago: Vec<f64> = polls.iter().map(|(_, ago)| *ago).collect();
    // Ordered by key, so that two replicas never deadlock.
    sqlx::query(
        "/* agents.note_polls */
         insert into polls_seen (seen_at, feed_key)
         select clock_timestamp() - make_interval(secs => ago), feed_key
         from unnest($1::int[], $2::float8[]) p (feed_key, ago)
         order by feed_key
         on conflict on constraint polls_seen_pkey do update set seen_at = greatest(polls_seen.seen_at, excluded.seen_at)",
    )
    .bind(keys)
    .bind(ago)
    .execute(connection)
    .await?;
    Ok(())
}
