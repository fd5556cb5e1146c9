//! Who holds a token. Valid tokens are cached for a while; the relay removes revoked ones within a second, on
//! every replica.
//!
//! **Generations.** After a failover or a restore the database may know other tokens. So with every new connection
//! of the relay, and with every change of history, a new generation begins: the cache is cleared, and what was
//! read before is not inserted any more. Holders whose polls are parked meanwhile are looked up together
//! ([`Tokens::begin_generation`]), so that they need no query each.
//!
//! **Pauses.** A process that was stopped, or cannot reach the database, has seen no revocation meanwhile. A cached
//! token is believed only while the relay's last successful look is recent ([`Freshness::knows_revocations`]);
//! otherwise the database is asked.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use moka::sync::Cache;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::freshness::Freshness;
use crate::{
    clock::Clock,
    domain::{caller::Caller, fault::Fault, limits},
    store::{
        self,
        pool::Db,
        tokens::{self, TokenHash, ValidToken},
    },
};

const UNKNOWN: &str = "the token is unknown, expired or revoked";

/// What the holder of a valid token may do, for as long as [`Tokens::check`] confirms it.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Nil for the admin token of the configuration.
    pub token_id: Uuid,
    pub caller: Caller,
    expires_at: Option<DateTime<Utc>>,
    generation: u64,
}

/// The tokens that this process has seen lately.
pub struct Tokens {
    db: Db,
    clock: Clock,
    freshness: Arc<Freshness>,
    /// The admin token of the configuration, which is in no table.
    admin: Option<TokenHash>,
    valid: Cache<TokenHash, Arc<Grant>>,
    revoked: Cache<Uuid, ()>,
    /// Revocations up to this count are in `revoked`.
    revocations: AtomicI64,
    generation: AtomicU64,
}

impl Tokens {
    pub fn new(db: Db, clock: Clock, freshness: Arc<Freshness>, admin: Option<&str>) -> Self {
        Self {
            db,
            clock,
            freshness,
            admin: admin.map(hash),
            valid: Cache::builder().max_capacity(100_000).time_to_live(Duration::from_secs(60)).build(),
            // Longer than any grant is cached or any poll is parked, so that none outlives its revocation.
            revoked: Cache::builder().time_to_live(Duration::from_secs(600)).build(),
            revocations: AtomicI64::new(0),
            generation: AtomicU64::new(0),
        }
    }

    /// The holder of a token.
    ///
    /// # Errors
    /// 40100 if the token is not valid; 50300 if that cannot be found out.
    pub async fn authenticate(&self, secret: &str) -> Result<Arc<Grant>, Fault> {
        let hash = hash(secret);
        if self.admin.as_ref().is_some_and(|admin| bool::from(admin.as_slice().ct_eq(hash.as_slice()))) {
            let (token_id, caller) = (Uuid::nil(), Caller::Admin);
            return Ok(Arc::new(Grant { token_id, caller, expires_at: None, generation: 0 }));
        }
        match self.valid.get(&hash) {
            Some(grant) if self.is_believed(&grant) => {
                self.check_memory(&grant)?;
                Ok(grant)
            }
            _ => Box::pin(self.find(hash)).await,
        }
    }

    /// Reads the tokens that were in use lately, so that clients who reconnect after a restart, all at once, need
    /// no query each. Call it after the relay's first look: what is revoked later is then removed again.
    ///
    /// # Errors
    /// When the database cannot be read; each token is then found when it is used.
    pub async fn preload(&self) -> store::Result<()> {
        let generation = self.generation();
        let recent =
            self.db.read(async |connection| tokens::find_recent(connection, limits::TOKENS_PRELOADED_MAX).await);
        for (hash, token) in recent.await? {
            self.insert(hash, &Arc::new(Grant::new(token, generation)));
        }
        Ok(())
    }

    async fn find(&self, hash: TokenHash) -> Result<Arc<Grant>, Fault> {
        // Before the read, which may be of a connection to the old primary.
        let generation = self.generation();
        let found = self.db.read(async |connection| tokens::find(connection, &hash).await).await?;
        let grant = Arc::new(Grant::new(found.ok_or(Fault::Unauthenticated(UNKNOWN))?, generation));
        // A revocation that the relay has seen meanwhile counts.
        self.check_memory(&grant)?;
        self.insert(hash, &grant);
        Ok(grant)
    }

    fn insert(&self, hash: TokenHash, grant: &Arc<Grant>) {
        if grant.generation == self.generation() {
            self.valid.insert(hash, Arc::clone(grant));
        }
    }

    /// Whether a grant still holds; the database is asked if memory may be out of date.
    ///
    /// # Errors
    /// 40100; 50300 if it cannot be found out.
    pub async fn check(&self, grant: &Grant) -> Result<(), Fault> {
        self.check_memory(grant)?;
        if self.is_believed(grant) { Ok(()) } else { Box::pin(self.ask(grant)).await }
    }

    /// [`Tokens::check`] for a poll that was parked all the time since it was last checked: the relay has carried
    /// its grant from generation to generation.
    ///
    /// # Errors
    /// As [`Tokens::check`].
    pub async fn check_parked(&self, grant: &Grant) -> Result<(), Fault> {
        self.check_memory(grant)?;
        let is_believed = grant.is_configured() || self.freshness.knows_revocations();
        if is_believed { Ok(()) } else { Box::pin(self.ask(grant)).await }
    }

    /// Whether this process knows of nothing that speaks against a grant.
    ///
    /// # Errors
    /// 40100.
    pub fn check_memory(&self, grant: &Grant) -> Result<(), Fault> {
        let is_expired = grant.expires_at.is_some_and(|expires_at| expires_at <= self.clock.now());
        if is_expired || self.revoked.contains_key(&grant.token_id) {
            Err(Fault::Unauthenticated(UNKNOWN))
        } else {
            Ok(())
        }
    }

    async fn ask(&self, grant: &Grant) -> Result<(), Fault> {
        let token_id = grant.token_id;
        let valid = self.db.read(async |connection| tokens::valid_among(connection, &[token_id]).await).await?;
        if valid.is_empty() { Err(Fault::Unauthenticated(UNKNOWN)) } else { Ok(()) }
    }

    fn is_believed(&self, grant: &Grant) -> bool {
        grant.is_configured() || (self.freshness.knows_revocations() && grant.generation == self.generation())
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Removes what was revoked, if the store counts more revocations than before. Returns whether anything was.
    ///
    /// # Errors
    /// When the database cannot be read; nothing is removed then.
    pub async fn catch_up(&self, connection: &mut PgConnection, revocations: i64) -> store::Result<bool> {
        let known = self.revocations.load(Ordering::Acquire);
        if known == revocations {
            return Ok(false);
        }
        for (token_id, hash) in tokens::revoked_since(connection, known).await? {
            self.revoked.insert(token_id, ());
            if let Ok(hash) = TokenHash::try_from(hash.as_slice()) {
                self.valid.invalidate(&hash);
            }
        }
        self.revocations.store(revocations, Ordering::Release);
        Ok(true)
    }

    /// Begins a new generation, in which the store has counted so many revocations: forgets all tokens, and looks up
    /// the `parked` ones, whose polls are parked. Returns whether any of those is not valid any more.
    ///
    /// # Errors
    /// When the database cannot be read; begin again then.
    pub async fn begin_generation(
        &self,
        connection: &mut PgConnection,
        revocations: i64,
        parked: impl FnOnce() -> HashSet<Uuid>,
    ) -> store::Result<bool> {
        // First: a poll that parks after the parked ones were listed is checked against the new generation.
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.valid.invalidate_all();
        let mut invalid = parked();
        if !invalid.is_empty() {
            for token_id in tokens::valid_among(connection, &invalid.iter().copied().collect::<Vec<Uuid>>()).await? {
                invalid.remove(&token_id);
            }
        }
        self.revoked.invalidate_all();
        for token_id in &invalid {
            self.revoked.insert(*token_id, ());
        }
        self.revocations.store(revocations, Ordering::Release);
        Ok(!invalid.is_empty())
    }
}

impl Grant {
    fn new(token: ValidToken, generation: u64) -> Self {
        let ValidToken { token_id, caller, expires_at } = token;
        Self { token_id, caller, expires_at, generation }
    }

    /// Whether it is the admin token of the configuration, which is never revoked.
    fn is_configured(&self) -> bool {
        self.token_id.is_nil()
    }
}

/// What is stored of a secret.
pub fn hash(secret: &str) -> TokenHash {
    Sha256::digest(secret.as_bytes()).into()
}
