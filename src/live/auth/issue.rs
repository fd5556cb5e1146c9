//! New tokens.

use sqlx::PgConnection;
use uuid::Uuid;

use super::tokens::hash;
use crate::{
    domain::{caller::Role, fault::Fault, ids::FeedId},
    store::{self, agents, tokens},
};

/// Makes a token; returns its id and its secret, which is not kept.
///
/// # Errors
/// When the database refuses it. The inner error is 40000, 40402 or 40905: the subject does not fit the role.
pub async fn issue(
    connection: &mut PgConnection,
    role: Role,
    subject: Option<&str>,
    expires_in_s: Option<i64>,
) -> store::Result<Result<(Uuid, String), Fault>> {
    let id = match checked_subject(role, subject) {
        Ok(id) => id,
        Err(fault) => return Ok(Err(fault)),
    };
    let feed = match id {
        None => None,
        Some(id) => match agents::find_feed(connection, id.as_str()).await? {
            Some((key, kind)) if kind == role => Some(key),
            Some((_, kind)) => {
                let whose = if kind == Role::Agent { "an agent" } else { "a gateway" };
                return Ok(Err(Fault::OtherKind(id.to_string(), whose)));
            }
            None => return Ok(Err(Fault::NoSuchAgent(id.to_string()))),
        },
    };
    let secret = match new_secret(role.name()) {
        Ok(secret) => secret,
        Err(error) => return Ok(Err(Fault::internal(error.to_string()))),
    };
    let token_id = Uuid::now_v7();
    tokens::insert(connection, token_id, &hash(&secret), role, feed, expires_in_s).await?;
    Ok(Ok((token_id, secret)))
}

fn checked_subject(role: Role, subject: Option<&str>) -> Result<Option<FeedId>, Fault> {
    match (role, subject) {
        (Role::Admin, None) => Ok(None),
        (Role::Admin, Some(_)) => Err(Fault::malformed("Subject: an admin's token has none")),
        (_, None) => Err(Fault::malformed("Subject is missing: the id of the agent or gateway")),
        (_, Some(subject)) => FeedId::parse(subject, "Subject").map(Some),
    }
}

/// A new secret: 256 random bits, marked so that scanners for leaked secrets know it.
///
/// # Errors
/// If the system has no random numbers.
fn new_secret(role: &str) -> Result<String, getrandom::Error> {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut bytes = [0_u8; 52];
    getrandom::fill(&mut bytes)?;
    // 52 characters of 5 bits each: 260 bits.
    let text: String = bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect();
    Ok(format!("dfk_{role}_{text}"))
}
