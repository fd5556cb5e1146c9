//! Reads from the database what the cache does not know.

use std::collections::HashSet;

use sqlx::PgConnection;

use crate::{
    desk::facts::{Fact, Facts},
    domain::ids::MessageId,
    store::{self, agents, erasures, messages, sessions},
};

/// Reads sessions, agents and messages by their ids into `facts`.
///
/// # Errors
/// When the database cannot be read.
pub(super) async fn read(
    connection: &mut PgConnection,
    facts: &mut Facts,
    wanted: &HashSet<&str>,
    agent_ids: &HashSet<&str>,
    ids: &HashSet<&MessageId>,
) -> store::Result<()> {
    if !agent_ids.is_empty() {
        let ids: Vec<&str> = agent_ids.iter().copied().collect();
        facts.agents.extend(agents::find_agents(connection, &ids).await?);
    }
    if wanted.is_empty() && ids.is_empty() {
        return Ok(());
    }
    // Read the head before looking up Ids: an Id derived from a version up to this head is then found.
    let session_ids: Vec<&str> = wanted.iter().copied().collect();
    let snapshot = sessions::find(connection, &session_ids).await?;
    facts.head = snapshot.head;
    let mut found = snapshot.sessions;
    for session_id in wanted {
        let fact = Fact { found: found.remove(*session_id), seq_version: snapshot.head, is_fresh: true };
        facts.sessions.insert((*session_id).to_owned(), fact);
    }
    if !ids.is_empty() {
        let given: Vec<&MessageId> = ids.iter().copied().collect();
        facts.kept = messages::find_kept(connection, &given).await?;
        facts.looked_for = ids.iter().map(|id| (*id).clone()).collect();
        let blank = facts.kept.iter().filter(|(_, kept)| kept.content == kept.content_type.erased());
        let (blank, in_sessions): (Vec<&MessageId>, HashSet<i64>) =
            blank.map(|(id, kept)| (id, kept.session.0)).unzip();
        if !blank.is_empty() {
            let in_sessions: Vec<i64> = in_sessions.into_iter().collect();
            facts.erased = erasures::find_erased(connection, &in_sessions, &blank).await?;
        }
    }
    Ok(())
}
