//! What events show of sessions and profiles. Only an erasure ever changes it (a customer's name and image go),
//! so a process reads each once and shares it.
//!
//! **Slow reads.** What was read before an erasure must not be cached after the relay has seen the erasure,
//! however long the read takes. So a reader notes the newest erasure first, and reads again if there is a newer
//! one afterwards; the relay replaces the erased sessions. What was read of an earlier history must not be cached
//! at all: the new history may give the same key to another session, and the connection may lead to the old
//! primary. So a reader takes a [`Cards`] before it takes a connection, and that belongs to one history: once there
//! is another, what it reads is its own alone.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use moka::sync::Cache;
use sqlx::PgConnection;

use super::Result;
use crate::domain::{
    event::{Profile, SessionCard},
    ids::{ProfileKey, SessionKey},
};

/// The cache of a process.
pub struct CardCache {
    sessions: Cache<i64, Arc<SessionCard>>,
    profiles: Cache<i32, Arc<Profile>>,
    /// Held while something that was read is inserted.
    basis: Mutex<Basis>,
}

/// What cached cards are true for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Basis {
    /// Counts changes of history.
    generation: u64,
    /// The newest erasure that this process has seen.
    erasures: i64,
}

/// The cards of one history, for a reader or a writer.
#[derive(Clone)]
pub struct Cards {
    cache: Arc<CardCache>,
    generation: u64,
    /// Used instead of the cache once that is another history's.
    own: OnceLock<Arc<CardCache>>,
}

impl Default for CardCache {
    fn default() -> Self {
        Self::of(0)
    }
}

impl CardCache {
    fn of(generation: u64) -> Self {
        let basis = Mutex::new(Basis { generation, erasures: 0 });
        Self { sessions: Cache::new(100_000), profiles: Cache::new(20_000), basis }
    }

    /// The cards of the present history. Take them before the connection they are read over.
    pub fn cards(self: &Arc<Self>) -> Cards {
        Cards { cache: Arc::clone(self), generation: self.basis().generation, own: OnceLock::new() }
    }

    /// Takes note of all erasures up to `erasures`, which were of these sessions.
    ///
    /// # Errors
    /// When the database cannot be read; nothing is noted then.
    pub async fn take_erasures(&self, connection: &mut PgConnection, erasures: i64, sessions: &[i64]) -> Result<()> {
        let fresh = read_sessions(connection, sessions).await?;
        let mut basis = self.basis();
        basis.erasures = erasures;
        for (key, card) in fresh {
            self.sessions.insert(key, Arc::new(card));
        }
        Ok(())
    }

    /// Another history begins, with this newest erasure: everything cached goes.
    pub fn clear(&self, erasures: i64) {
        let mut basis = self.basis();
        *basis = Basis { generation: basis.generation + 1, erasures };
        self.sessions.invalidate_all();
        self.profiles.invalidate_all();
    }

    /// The newest erasure that this process has seen.
    pub fn erasures(&self) -> i64 {
        self.basis().erasures
    }

    fn basis(&self) -> MutexGuard<'_, Basis> {
        // Nothing panics while holding it.
        self.basis.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Cards {
    /// Cards that nobody shares.
    fn default() -> Self {
        Arc::<CardCache>::default().cards()
    }
}

impl Cards {
    /// The same for a reader whose connection may lead to another history: what it reads is its own alone.
    #[must_use]
    pub fn unshared(self) -> Self {
        let own = OnceLock::from(Arc::new(CardCache::of(self.generation)));
        Self { own, ..self }
    }

    pub fn session(&self, key: SessionKey) -> Option<Arc<SessionCard>> {
        self.used().sessions.get(&key.0)
    }

    pub fn profile(&self, key: ProfileKey) -> Option<Arc<Profile>> {
        self.used().profiles.get(&key.0)
    }

    /// Reads those of `sessions` and `profiles` that are not cached yet.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn load(
        &self,
        connection: &mut PgConnection,
        sessions: &[SessionKey],
        profiles: &[ProfileKey],
    ) -> Result<()> {
        // Again if there was an erasure or a change of history meanwhile.
        while !self.load_at_once(connection, sessions, profiles).await? {}
        Ok(())
    }

    /// Returns false, and caches nothing of what it read, if what it began with is not true any more.
    async fn load_at_once(
        &self,
        connection: &mut PgConnection,
        sessions: &[SessionKey],
        profiles: &[ProfileKey],
    ) -> Result<bool> {
        let cache = self.used();
        let before = *cache.basis();
        let sessions: Vec<i64> =
            sessions.iter().map(|key| key.0).filter(|key| !cache.sessions.contains_key(key)).collect();
        let profiles: Vec<i32> =
            profiles.iter().map(|key| key.0).filter(|key| *key != 0 && !cache.profiles.contains_key(key)).collect();
        let sessions = if sessions.is_empty() { Vec::new() } else { read_sessions(connection, &sessions).await? };
        let profiles = if profiles.is_empty() { Vec::new() } else { read_profiles(connection, &profiles).await? };
        let basis = cache.basis();
        if basis.generation != self.generation {
            self.own.get_or_init(|| Arc::new(CardCache::of(self.generation)));
            return Ok(false);
        }
        if *basis != before {
            return Ok(false);
        }
        for (key, card) in sessions {
            cache.sessions.insert(key, Arc::new(card));
        }
        for (key, profile) in profiles {
            cache.profiles.insert(key, Arc::new(profile));
        }
        Ok(true)
    }

    fn used(&self) -> &CardCache {
        self.own.get().unwrap_or(&self.cache)
    }
}

async fn read_sessions(connection: &mut PgConnection, keys: &[i64]) -> Result<Vec<(i64, SessionCard)>> {
    type Row = (i64, String, i32, String, Option<String>, Option<String>);
    let rows: Vec<Row> = sqlx::query_as(
        "/* cards.load */ select session_key, session_id, session_type, from_id, from_name, from_image
         from sessions where session_key = any ($1)",
    )
    .bind(keys)
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(key, session_id, session_type, from_id, from_name, from_image)| {
            (key, SessionCard { session_id, session_type, from_id, from_name, from_image })
        })
        .collect())
}

async fn read_profiles(connection: &mut PgConnection, keys: &[i32]) -> Result<Vec<(i32, Profile)>> {
    let rows: Vec<(i32, String, Option<String>, Option<String>)> = sqlx::query_as(
        "/* cards.load */ select p.profile_key, f.feed_id, p.name, p.image
         from profiles p join feeds f on f.feed_key = p.feed_key where p.profile_key = any ($1)",
    )
    .bind(keys)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(key, agent_id, name, image)| (key, Profile { agent_id, name, image })).collect())
}
