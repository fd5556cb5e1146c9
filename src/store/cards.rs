//! What events show of sessions and agents. Nothing but an erasure ever changes it (a customer's
//! name and image go), so a process reads each once and shares it.
//!
//! What was read before an erasure must not be remembered after the relay has heard of it, however
//! long the reading took. So whoever reads notes the newest erasure first, and keeps what it has
//! read only if that is still the newest; the relay puts the erased sessions in anew.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moka::sync::Cache;
use sqlx::PgConnection;

use super::Result;
use crate::domain::{
    event::{Profile, SessionCard},
    ids::{ProfileKey, SessionKey},
};

/// Sessions and profiles seen lately.
#[derive(Clone)]
pub struct Cards {
    sessions: Cache<i64, Arc<SessionCard>>,
    profiles: Cache<i32, Arc<Profile>>,
    /// The newest erasure that this process knows of. Held while sessions that were read are put in.
    erasures: Arc<Mutex<i64>>,
}

impl Default for Cards {
    fn default() -> Self {
        Self { sessions: Cache::new(100_000), profiles: Cache::new(20_000), erasures: Arc::default() }
    }
}

impl Cards {
    /// Forgets everything: the database may hold another history now, with so many erasures.
    pub fn clear(&self, erasures: i64) {
        let mut known = self.known_erasures();
        *known = erasures;
        self.sessions.invalidate_all();
        self.profiles.invalidate_all();
    }

    /// The newest erasure that this process knows of.
    pub fn erasures(&self) -> i64 {
        *self.known_erasures()
    }

    /// Takes note of all erasures up to `erasures`, which were of these sessions.
    ///
    /// # Errors
    /// When the database cannot be read; nothing is noted then.
    pub async fn take_erasures(&self, connection: &mut PgConnection, erasures: i64, sessions: &[i64]) -> Result<()> {
        let fresh = read_sessions(connection, sessions).await?;
        let mut known = self.known_erasures();
        *known = erasures;
        for (key, card) in fresh {
            self.sessions.insert(key, Arc::new(card));
        }
        Ok(())
    }

    pub fn session(&self, key: SessionKey) -> Option<Arc<SessionCard>> {
        self.sessions.get(&key.0)
    }

    /// Remembers a session that was read under the append lock, while that is held: erasures take it, too.
    pub fn put_session(&self, key: SessionKey, card: &Arc<SessionCard>) {
        if !self.sessions.contains_key(&key.0) {
            self.sessions.insert(key.0, Arc::clone(card));
        }
    }

    pub fn profile(&self, key: ProfileKey) -> Option<Arc<Profile>> {
        self.profiles.get(&key.0)
    }

    /// Reads those of `sessions` and `profiles` that are not known yet.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn load(
        &self,
        connection: &mut PgConnection,
        sessions: &[SessionKey],
        profiles: &[ProfileKey],
    ) -> Result<()> {
        loop {
            let erasures = self.erasures();
            let missing: Vec<i64> =
                sessions.iter().map(|key| key.0).filter(|key| !self.sessions.contains_key(key)).collect();
            if missing.is_empty() {
                break;
            }
            let read = read_sessions(connection, &missing).await?;
            let known = self.known_erasures();
            if *known == erasures {
                for (key, card) in read {
                    self.sessions.insert(key, Arc::new(card));
                }
                break;
            }
        }
        let missing: Vec<i32> =
            profiles.iter().map(|key| key.0).filter(|key| *key != 0 && !self.profiles.contains_key(key)).collect();
        if !missing.is_empty() {
            let rows: Vec<(i32, String, Option<String>, Option<String>)> = sqlx::query_as(
                "/* cards.load */ select p.profile_key, f.feed_id, p.name, p.image
                 from profiles p join feeds f on f.feed_key = p.feed_key where p.profile_key = any ($1)",
            )
            .bind(&missing)
            .fetch_all(&mut *connection)
            .await?;
            for (key, agent_id, name, image) in rows {
                self.profiles.insert(key, Arc::new(Profile { agent_id, name, image }));
            }
        }
        Ok(())
    }

    fn known_erasures(&self) -> MutexGuard<'_, i64> {
        // Nothing panics while holding it.
        self.erasures.lock().unwrap_or_else(PoisonError::into_inner)
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
