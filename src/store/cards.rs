//! What events show of sessions and agents. Both never change once written, so a process reads
//! each once and shares it.

use std::sync::Arc;

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
}

impl Default for Cards {
    fn default() -> Self {
        Self { sessions: Cache::new(100_000), profiles: Cache::new(20_000) }
    }
}

impl Cards {
    /// Forgets everything: the database may hold another history now.
    pub fn clear(&self) {
        self.sessions.invalidate_all();
        self.profiles.invalidate_all();
    }

    pub fn session(&self, key: SessionKey) -> Option<Arc<SessionCard>> {
        self.sessions.get(&key.0)
    }

    /// Remembers a session that is committed.
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
    pub async fn load(&self, connection: &mut PgConnection, sessions: &[i64], profiles: &[i32]) -> Result<()> {
        let missing: Vec<i64> = sessions.iter().copied().filter(|key| !self.sessions.contains_key(key)).collect();
        if !missing.is_empty() {
            type Row = (i64, String, i32, String, Option<String>, Option<String>);
            let rows: Vec<Row> = sqlx::query_as(
                "/* cards.load */ select session_key, session_id, session_type, from_id, from_name, from_image
                 from sessions where session_key = any ($1)",
            )
            .bind(&missing)
            .fetch_all(&mut *connection)
            .await?;
            for (key, session_id, session_type, from_id, from_name, from_image) in rows {
                let card = SessionCard { session_id, session_type, from_id, from_name, from_image };
                self.put_session(SessionKey(key), &Arc::new(card));
            }
        }
        let missing: Vec<i32> =
            profiles.iter().copied().filter(|key| *key != 0 && !self.profiles.contains_key(key)).collect();
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
}
