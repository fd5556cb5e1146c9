//! `POST /agent/presence`: whether new sessions are routed to an agent.

use sqlx::PgConnection;

use super::Failure;
use crate::{
    domain::caller::Caller,
    store::{agents, sessions},
};

pub async fn apply(connection: &mut PgConnection, caller: &Caller, online: bool) -> Result<(), Failure> {
    let agent = caller.agent()?;
    agents::set_presence(connection, agent.key, online).await?;
    if online {
        sessions::forget_releases(connection, agent.key).await?;
    }
    Ok(())
}
