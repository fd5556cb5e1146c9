//! Who a token is. Found tokens are remembered for a while; the relay takes revoked ones out within
//! a second, on every replica.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use moka::sync::Cache;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::bulletin::Bulletin;
use crate::{
    clock::Clock,
    domain::{
        caller::{Caller, Role},
        fault::Fault,
        ids::FeedId,
        limits,
    },
    store::{
        agents,
        pool::{Db, read_deadline},
        tokens::{self, Grant, TokenHash},
    },
};

const UNKNOWN: &str = "the token is unknown, expired or revoked";

/// The tokens this process has seen lately.
pub struct Tokens {
    db: Db,
    clock: Clock,
    bulletin: Arc<Bulletin>,
    /// The admin token of the configuration, which is in no table.
    admin: Option<TokenHash>,
    known: Cache<TokenHash, Arc<Grant>>,
    revoked: Cache<Uuid, ()>,
    /// Revocations up to this count are in `revoked`.
    revocations: AtomicI64,
}

impl Tokens {
    pub fn new(db: Db, clock: Clock, bulletin: Arc<Bulletin>, admin: Option<&str>) -> Self {
        Self {
            db,
            clock,
            bulletin,
            admin: admin.map(hash),
            known: Cache::builder().max_capacity(100_000).time_to_live(Duration::from_secs(60)).build(),
            // Longer than a grant may be known, so that none outlives its revocation.
            revoked: Cache::builder().time_to_live(Duration::from_secs(600)).build(),
            revocations: AtomicI64::new(i64::MAX),
        }
    }

    /// The holder of a token.
    ///
    /// # Errors
    /// 40100 when it is not valid; 50300 when that cannot be found out.
    pub async fn authenticate(&self, secret: &str) -> Result<Arc<Grant>, Fault> {
        let hash = hash(secret);
        if self.admin.as_ref().is_some_and(|admin| bool::from(admin.as_slice().ct_eq(hash.as_slice()))) {
            return Ok(Arc::new(Grant { token_id: Uuid::nil(), caller: Caller::Admin, expires_at: None }));
        }
        let grant = match self.known.get(&hash) {
            Some(grant) => grant,
            None => {
                let grant = Arc::new(Box::pin(self.find(&hash)).await?);
                self.known.insert(hash, Arc::clone(&grant));
                grant
            }
        };
        self.check(&grant)?;
        Ok(grant)
    }

    /// Reads the tokens that were in use lately, so that those who come back after a restart, all at once,
    /// need no query each. Only after a first [`Tokens::catch_up`]: what is revoked later is then taken out,
    /// or refused by [`Tokens::check`].
    ///
    /// # Errors
    /// When the database cannot be read; each is then found when it is used.
    pub async fn preload(&self) -> Result<(), Fault> {
        let mut lease = self.db.lease().await?;
        let recent = read_deadline(tokens::find_recent(&mut lease, limits::TOKENS_PRELOADED_MAX)).await?;
        lease.finish();
        for (hash, grant) in recent {
            self.known.insert(hash, Arc::new(grant));
        }
        Ok(())
    }

    async fn find(&self, hash: &TokenHash) -> Result<Grant, Fault> {
        let mut lease = self.db.lease().await?;
        let found = read_deadline(tokens::find(&mut lease, hash)).await?;
        lease.finish();
        found.ok_or(Fault::Unauthenticated(UNKNOWN))
    }

    /// Whether a grant still holds. Looks at nothing but memory.
    ///
    /// # Errors
    /// 40100.
    pub fn check(&self, grant: &Grant) -> Result<(), Fault> {
        let expired = grant.expires_at.is_some_and(|expires_at| expires_at <= self.clock.now());
        if expired || self.revoked.contains_key(&grant.token_id) {
            Err(Fault::Unauthenticated(UNKNOWN))
        } else {
            Ok(())
        }
    }

    /// Takes out what was revoked, if the store counts more revocations than we know.
    ///
    /// # Errors
    /// When the database cannot be read; nothing is forgotten then.
    pub async fn catch_up(&self, connection: &mut PgConnection, revocations: i64) -> Result<(), sqlx::Error> {
        let known = self.revocations.load(Ordering::Acquire);
        if known == i64::MAX || known > revocations {
            // The first look, or another history: nothing that we remember can be trusted.
            self.known.invalidate_all();
            self.revocations.store(revocations, Ordering::Release);
            return Ok(());
        }
        if known == revocations {
            return Ok(());
        }
        let revoked = tokens::revoked_since(connection, known).await?;
        for (token_id, hash) in revoked {
            self.revoked.insert(token_id, ());
            if let Ok(hash) = TokenHash::try_from(hash.as_slice()) {
                self.known.invalidate(&hash);
            }
        }
        self.revocations.store(revocations, Ordering::Release);
        self.bulletin.count_revocation();
        Ok(())
    }
}

/// Makes a token: gives its id and its secret, which is not kept.
///
/// # Errors
/// 40000, 40402, 40905 when the subject does not fit the role; 50000, 50300.
pub async fn issue(
    connection: &mut PgConnection,
    role: Role,
    subject: Option<&str>,
    expires_in_s: Option<i64>,
) -> Result<(Uuid, String), Fault> {
    let feed = match (role, subject) {
        (Role::Admin, None) => None,
        (Role::Admin, Some(_)) => return Err(Fault::malformed("Subject: an admin's token has none")),
        (_, None) => return Err(Fault::malformed("Subject is missing: the id of the agent or gateway")),
        (role, Some(subject)) => {
            let id = FeedId::parse(subject, "Subject")?;
            match read_deadline(agents::find_feed(connection, id.as_str())).await? {
                Some((key, kind)) if kind == role => Some(key),
                Some((_, kind)) => {
                    let whose = if kind == Role::Agent { "an agent" } else { "a gateway" };
                    return Err(Fault::OtherKind(subject.to_owned(), whose));
                }
                None => return Err(Fault::NoSuchAgent(subject.to_owned())),
            }
        }
    };
    let secret = new_secret(role.name()).map_err(|error| Fault::internal(error.to_string()))?;
    let token_id = Uuid::now_v7();
    read_deadline(tokens::insert(connection, token_id, &hash(&secret), role, feed, expires_in_s)).await?;
    Ok((token_id, secret))
}

/// What is stored of a secret.
pub fn hash(secret: &str) -> TokenHash {
    Sha256::digest(secret.as_bytes()).into()
}

/// A new secret: 256 random bits, marked so that scanners for leaked secrets know it.
///
/// # Errors
/// When the system has no random numbers to give.
fn new_secret(role: &str) -> Result<String, getrandom::Error> {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut bytes = [0_u8; 52];
    getrandom::fill(&mut bytes)?;
    // 52 characters of 5 bits each: 260 bits.
    let text: String = bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect();
    Ok(format!("dfk_{role}_{text}"))
}
