//! Queued sessions go to agents that have become available: the oldest first, each to the agent
//! with the fewest open sessions. What an agent released does not come straight back to the same
//! agent, unless that agent says anew that it is online.

use sqlx::PgConnection;

use super::Failure;
use crate::{
    domain::{limits, session::Happening},
    store::{agents, appends::Ledger, sessions},
};

/// Assigns what can be assigned, up to a limit. Gives how many were.
pub async fn apply(connection: &mut PgConnection, ledger: &mut Ledger<'_>) -> Result<i64, Failure> {
    let mut assigned = 0;
    while assigned < limits::ASSIGNMENTS_PER_BATCH_MAX {
        let available = agents::pick_available(connection).await?;
        let Some(best) = available.first() else { break };
        let second = available.get(1);
        // With one agent only, look past the sessions that this agent released.
        let except = if second.is_some() { None } else { Some(best.key) };
        let Some(session) = sessions::next_queued(connection, except).await? else { break };
        let agent = match second {
            Some(second) if session.released_by == Some(best.key) => second,
            _ => best,
        };
        let happening = Happening::Assigned { to: agent.key, profile: agent.profile, last_seq: session.last_seq };
        let version = ledger.record(session.key, session.gateway, happening);
        sessions::set_owner(connection, session.key, agent.key, version).await?;
        agents::add_session(connection, agent.key, ledger.appended_at()?).await?;
        assigned += 1;
    }
    Ok(assigned)
}
