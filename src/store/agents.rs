//! Agents and gateways. Agents are changed only under the append lock: routing relies on them.

use chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection};

use super::{Result, sessions::exactly_one};
use crate::domain::{
    caller::Role,
    ids::{FeedId, FeedKey, ProfileKey},
    limits,
};

const AGENT: i16 = 1;
const GATEWAY: i16 = 2;

/// An agent as routing sees it.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub key: FeedKey,
    pub id: String,
    pub profile: ProfileKey,
    pub online: bool,
    pub open_sessions: i32,
    pub max_sessions: i32,
}

impl Candidate {
    /// Whether a session may be transferred or opened to it.
    pub fn takes_sessions(&self) -> bool {
        self.online && self.open_sessions < self.max_sessions
    }
}

type CandidateRow = (i32, String, i32, i16, i32, i32);

fn candidate((key, id, profile, status, open_sessions, max_sessions): CandidateRow) -> Candidate {
    Candidate { key: FeedKey(key), id, profile: ProfileKey(profile), online: status == 1, open_sessions, max_sessions }
}

/// Whose id it is.
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

/// An agent by id.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(connection: &mut PgConnection, id: &str) -> Result<Option<Candidate>> {
    let row: Option<CandidateRow> = sqlx::query_as(
        "/* agents.find */
         select a.feed_key, f.feed_id, a.profile_key, a.status, a.open_sessions, a.max_sessions
         from feeds f join agents a on a.feed_key = f.feed_key where f.feed_id = $1",
    )
    .bind(id)
    .fetch_optional(connection)
    .await?;
    Ok(row.map(candidate))
}

/// The two best agents for a new session, best first: online, below MaxSessions, not silent, with the
/// fewest open sessions; of equals, the one whose last assignment is longest ago.
///
/// # Errors
/// When the database cannot be read.
pub async fn pick_available(connection: &mut PgConnection) -> Result<Vec<Candidate>> {
    let rows: Vec<CandidateRow> = sqlx::query_as(
        "/* agents.pick_available */
         select a.feed_key, f.feed_id, a.profile_key, a.status, a.open_sessions, a.max_sessions
         from agents a
         join feeds f on f.feed_key = a.feed_key
         left join polls_seen p on p.feed_key = a.feed_key
         where a.status = 1 and a.open_sessions < a.max_sessions
           and (p.seen_at is null or p.seen_at > clock_timestamp() - make_interval(secs => $1))
         order by a.open_sessions, a.assigned_at nulls first, a.feed_key
         limit 2",
    )
    .bind(limits::AGENT_SILENT_S as f64)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(candidate).collect())
}

/// Notes that an agent was given a session.
///
/// # Errors
/// When the database refuses it.
pub async fn add_session(connection: &mut PgConnection, agent: FeedKey, at: DateTime<Utc>) -> Result<()> {
    let done = sqlx::query("/* agents.add_session */ update agents set open_sessions = open_sessions + 1, assigned_at = $2 where feed_key = $1")
        .bind(agent.0)
        .bind(at)
        .execute(connection)
        .await?;
    exactly_one(done.rows_affected(), "agents")
}

/// Notes that a session left an agent.
///
/// # Errors
/// When the database refuses it.
pub async fn drop_session(connection: &mut PgConnection, agent: FeedKey) -> Result<()> {
    let done = sqlx::query(
        "/* agents.drop_session */ update agents set open_sessions = open_sessions - 1 where feed_key = $1",
    )
    .bind(agent.0)
    .execute(connection)
    .await?;
    exactly_one(done.rows_affected(), "agents")
}

/// Sets whether new sessions are routed to an agent.
///
/// # Errors
/// When the database refuses it.
pub async fn set_presence(connection: &mut PgConnection, agent: FeedKey, online: bool) -> Result<()> {
    let done = sqlx::query("/* agents.set_presence */ update agents set status = $2 where feed_key = $1")
        .bind(agent.0)
        .bind(i16::from(online))
        .execute(connection)
        .await?;
    exactly_one(done.rows_affected(), "agents")
}

/// What an admin says of an agent. What is absent keeps its value, or takes its default in a new one.
#[derive(Debug, Clone)]
pub struct AgentChange {
    pub id: FeedId,
    pub name: Option<String>,
    pub image: Option<String>,
    pub max_sessions: Option<i32>,
    pub online: Option<bool>,
}

/// Creates or changes an agent; false when the id is a gateway's. Needs the append lock.
///
/// # Errors
/// When the database refuses it.
pub async fn put_agent(connection: &mut PgConnection, change: &AgentChange) -> Result<bool> {
    let Some(key) = feed_of_kind(connection, &change.id, AGENT).await? else { return Ok(false) };
    let profile: Option<(i32, Option<String>, Option<String>)> = sqlx::query_as(
        "/* agents.put_agent */ select p.profile_key, p.name, p.image from agents a join profiles p on p.profile_key = a.profile_key where a.feed_key = $1",
    )
    .bind(key)
    .fetch_optional(&mut *connection)
    .await?;
    let (present, name, image) = match profile {
        Some((key, name, image)) => (Some(key), name, image),
        None => (None, None, None),
    };
    let wanted = (change.name.clone().or_else(|| name.clone()), change.image.clone().or_else(|| image.clone()));
    let profile = match present {
        Some(present) if wanted == (name, image) => present,
        // A new row, because events of the past go on showing the old one.
        _ => {
            sqlx::query_scalar("/* agents.put_agent */ insert into profiles (feed_key, name, image) values ($1, $2, $3) returning profile_key")
                .bind(key)
                .bind(wanted.0)
                .bind(wanted.1)
                .fetch_one(&mut *connection)
                .await?
        }
    };
    sqlx::query(
        "/* agents.put_agent */
         insert into agents (feed_key, profile_key, max_sessions, status) values ($1, $2, coalesce($3, $5), coalesce($4, 1::smallint))
         on conflict (feed_key) do update
         set profile_key = excluded.profile_key, max_sessions = coalesce($3, agents.max_sessions), status = coalesce($4, agents.status)",
    )
    .bind(key)
    .bind(profile)
    .bind(change.max_sessions)
    .bind(change.online.map(i16::from))
    .bind(limits::MAX_SESSIONS_DEFAULT)
    .execute(connection)
    .await?;
    Ok(true)
}

/// Creates or changes a gateway and gives its name; none when the id is an agent's.
///
/// # Errors
/// When the database refuses it.
pub async fn put_gateway(
    connection: &mut PgConnection,
    id: &FeedId,
    name: Option<&str>,
) -> Result<Option<Option<String>>> {
    // As a whole or not at all: a feed without its gateway would be given tokens.
    let mut transaction = connection.begin().await?;
    let Some(key) = feed_of_kind(&mut transaction, id, GATEWAY).await? else { return Ok(None) };
    let kept = sqlx::query_scalar(
        "/* agents.put_gateway */
         insert into gateways (feed_key, name) values ($1, $2)
         on conflict (feed_key) do update set name = coalesce(excluded.name, gateways.name)
         returning name",
    )
    .bind(key)
    .bind(name)
    .fetch_one(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Some(kept))
}

/// The feed with this id, made if there is none; none when it is of the other kind.
async fn feed_of_kind(connection: &mut PgConnection, id: &FeedId, kind: i16) -> Result<Option<i32>> {
    sqlx::query("/* agents.put */ insert into feeds (kind, feed_id) values ($1, $2) on conflict on constraint feed_id_is_unique do nothing")
        .bind(kind)
        .bind(id.as_str())
        .execute(&mut *connection)
        .await?;
    let (key, found): (i32, i16) =
        sqlx::query_as("/* agents.put */ select feed_key, kind from feeds where feed_id = $1")
            .bind(id.as_str())
            .fetch_one(&mut *connection)
            .await?;
    if found != kind {
        return Ok(None);
    }
    // Each feed starts with one acknowledged range per event type, before any event.
    sqlx::query(
        "/* agents.put */
         insert into acks (first_version, last_version, feed_key, type)
         select 0, 0, $1, type from (values (0::smallint), (1::smallint), (2::smallint)) types (type)
         on conflict on constraint acks_pkey do nothing",
    )
    .bind(key)
    .execute(connection)
    .await?;
    Ok(Some(key))
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

/// All agents, by id.
///
/// # Errors
/// When the database cannot be read.
pub async fn list_agents(connection: &mut PgConnection) -> Result<Vec<AgentLine>> {
    agent_lines(connection, None).await
}

/// One agent.
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

/// All gateways, by id: (id, name).
///
/// # Errors
/// When the database cannot be read.
pub async fn list_gateways(connection: &mut PgConnection) -> Result<Vec<(String, Option<String>)>> {
    Ok(sqlx::query_as("/* agents.list_gateways */ select f.feed_id, g.name from gateways g join feeds f on f.feed_key = g.feed_key order by f.feed_id")
        .fetch_all(connection)
        .await?)
}

/// Notes when agents last polled: (feed, seconds ago).
///
/// # Errors
/// When the database refuses it.
pub async fn note_polls(connection: &mut PgConnection, polls: &[(FeedKey, f64)]) -> Result<()> {
    let keys: Vec<i32> = polls.iter().map(|(key, _)| key.0).collect();
    let ago: Vec<f64> = polls.iter().map(|(_, ago)| *ago).collect();
    // In the order of the keys, so that two replicas never wait for each other.
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
