//! Tokens, by hash.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Error, Result, appends::CHANNEL};
use crate::domain::{
    caller::{Caller, Role, Subject},
    ids::{FeedId, FeedKey},
};

/// SHA-256 of a token's secret.
pub type TokenHash = [u8; 32];

/// A token that was valid when it was read.
#[derive(Debug, Clone)]
pub struct ValidToken {
    pub token_id: Uuid,
    pub caller: Caller,
    pub expires_at: Option<DateTime<Utc>>,
}

/// A token as an admin sees it.
#[derive(Debug)]
pub struct TokenLine {
    pub token_id: Uuid,
    pub role: Role,
    pub subject: Option<String>,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub last_used_at: Option<DateTime<Utc>>,
    pub revoked: bool,
}

fn role_number(role: Role) -> i16 {
    match role {
        Role::Agent => 1,
        Role::Gateway => 2,
        Role::Admin => 3,
    }
}

fn role(number: i16) -> Role {
    match number {
        1 => Role::Agent,
        2 => Role::Gateway,
        _ => Role::Admin,
    }
}

/// Stores a new token.
///
/// # Errors
/// When the database refuses it.
pub async fn insert(
    connection: &mut PgConnection,
    token_id: Uuid,
    hash: &TokenHash,
    of: Role,
    feed: Option<FeedKey>,
    expires_in_s: Option<i64>,
) -> Result<()> {
    sqlx::query(
        "/* tokens.insert */ insert into tokens (token_id, token_hash, role, feed_key, expires_at)
         values ($1, $2, $3, $4, clock_timestamp() + make_interval(secs => $5))",
    )
    .bind(token_id)
    .bind(hash.as_slice())
    .bind(role_number(of))
    .bind(feed.map(|key| key.0))
    .bind(expires_in_s.map(|seconds| seconds as f64))
    .execute(connection)
    .await?;
    Ok(())
}

/// The valid token with this hash.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(connection: &mut PgConnection, hash: &TokenHash) -> Result<Option<ValidToken>> {
    let row: Option<Row> = sqlx::query_as(
        "/* tokens.find */
         select t.token_id, t.role, t.feed_key, f.feed_id, t.expires_at
         from tokens t left join feeds f on f.feed_key = t.feed_key
         where t.token_hash = $1 and t.revocation is null and (t.expires_at is null or t.expires_at > clock_timestamp())",
    )
    .bind(hash.as_slice())
    .fetch_optional(connection)
    .await?;
    row.map(valid_token).transpose()
}

/// Those of `token_ids` that are valid.
///
/// # Errors
/// When the database cannot be read.
pub async fn valid_among(connection: &mut PgConnection, token_ids: &[Uuid]) -> Result<Vec<Uuid>> {
    Ok(sqlx::query_scalar(
        "/* tokens.valid_among */
         select token_id from tokens
         where token_id = any ($1) and revocation is null and (expires_at is null or expires_at > clock_timestamp())",
    )
    .bind(token_ids)
    .fetch_all(connection)
    .await?)
}

/// The valid tokens that were used in the last hour, with their hashes.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_recent(connection: &mut PgConnection, limit: i64) -> Result<Vec<(TokenHash, ValidToken)>> {
    type RowWithHash = (Vec<u8>, Uuid, i16, Option<i32>, Option<String>, Option<DateTime<Utc>>);
    let rows: Vec<RowWithHash> = sqlx::query_as(
        "/* tokens.find_recent */
         select t.token_hash, t.token_id, t.role, t.feed_key, f.feed_id, t.expires_at
         from tokens t left join feeds f on f.feed_key = t.feed_key
         where t.last_used_at > clock_timestamp() - interval '1 hour'
           and t.revocation is null and (t.expires_at is null or t.expires_at > clock_timestamp())
         limit $1",
    )
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let tokens = rows.into_iter().filter_map(|(hash, token_id, role, key, id, expires_at)| {
        let hash = TokenHash::try_from(hash.as_slice()).ok()?;
        Some(valid_token((token_id, role, key, id, expires_at)).map(|token| (hash, token)))
    });
    tokens.collect()
}

/// A row: id, role, key and id of the subject, expiry.
type Row = (Uuid, i16, Option<i32>, Option<String>, Option<DateTime<Utc>>);

fn valid_token((token_id, number, key, id, expires_at): Row) -> Result<ValidToken> {
    let subject = match (key, id) {
        (Some(key), Some(id)) => FeedId::parse(&id, "Subject").ok().map(|id| Subject { key: FeedKey(key), id }),
        _ => None,
    };
    let caller = match (role(number), subject) {
        (Role::Agent, Some(subject)) => Caller::Agent(subject),
        (Role::Gateway, Some(subject)) => Caller::Gateway(subject),
        (Role::Admin, None) => Caller::Admin,
        _ => {
            return Err(Error::inconsistent(format!("token {token_id} has a role and a subject that do not fit")));
        }
    };
    Ok(ValidToken { token_id, caller, expires_at })
}

/// Revokes a token; returns false if there is none. Idempotent.
///
/// # Errors
/// When the database refuses it.
pub async fn revoke(connection: &mut PgConnection, token_id: Uuid) -> Result<bool> {
    // The count comes from a row that stays locked to the commit, so revocations become visible in
    // the order of their numbers and a replica that has seen number n has missed none before it.
    let found: bool = sqlx::query_scalar(
        "/* tokens.revoke */
         with counted as (
             update store set revocations = revocations + 1
             where exists (select from tokens where token_id = $1 and revocation is null)
             returning revocations
         ), revoked as (
             update tokens set revocation = counted.revocations from counted where token_id = $1 and revocation is null
         )
         select exists (select from tokens where token_id = $1)",
    )
    .bind(token_id)
    .fetch_one(&mut *connection)
    .await?;
    sqlx::query("/* tokens.revoke */ select pg_notify($1, 'revoked')").bind(CHANNEL).execute(connection).await?;
    Ok(found)
}

/// Tokens revoked since a count: (id, hash).
///
/// # Errors
/// When the database cannot be read.
pub async fn revoked_since(connection: &mut PgConnection, revocations: i64) -> Result<Vec<(Uuid, Vec<u8>)>> {
    Ok(sqlx::query_as("/* tokens.revoked_since */ select token_id, token_hash from tokens where revocation > $1")
        .bind(revocations)
        .fetch_all(connection)
        .await?)
}

/// Records that tokens were used.
///
/// # Errors
/// When the database refuses it.
pub async fn note_uses(connection: &mut PgConnection, token_ids: &[Uuid]) -> Result<()> {
    // Locked in the order of their ids, so that two replicas never wait for each other.
    sqlx::query(
        "/* tokens.note_uses */
         with used as (
             select token_id from tokens
             where token_id = any ($1) and (last_used_at is null or last_used_at < clock_timestamp() - interval '60 s')
             order by token_id for update
         )
         update tokens set last_used_at = clock_timestamp() from used where tokens.token_id = used.token_id",
    )
    .bind(token_ids)
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether there is a valid admin token.
///
/// # Errors
/// When the database cannot be read.
pub async fn any_admin(connection: &mut PgConnection) -> Result<bool> {
    Ok(sqlx::query_scalar(
        "/* tokens.any_admin */
         select exists (select from tokens where role = 3 and revocation is null and (expires_at is null or expires_at > clock_timestamp()))",
    )
    .fetch_one(connection)
    .await?)
}

/// All tokens, newest first.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(connection: &mut PgConnection) -> Result<Vec<TokenLine>> {
    type Row = (Uuid, i16, Option<String>, DateTime<Utc>, Option<DateTime<Utc>>, Option<DateTime<Utc>>, bool);
    let rows: Vec<Row> = sqlx::query_as(
        "/* tokens.list */
         select t.token_id, t.role, f.feed_id, t.created_at, t.expires_at, t.last_used_at, t.revocation is not null
         from tokens t left join feeds f on f.feed_key = t.feed_key
         order by t.created_at desc, t.token_id",
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(token_id, number, subject, created_at, expires_at, last_used_at, revoked)| TokenLine {
            token_id,
            role: role(number),
            subject,
            created_at,
            expires_at,
            last_used_at,
            revoked,
        })
        .collect())
}
