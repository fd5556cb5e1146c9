//! `POST /admin/agent`: creates or changes an agent.

use sqlx::PgConnection;

use super::Failure;
use crate::{
    domain::{caller::Caller, fault::Fault},
    store::agents::{self, AgentChange},
};

pub async fn apply(connection: &mut PgConnection, caller: &Caller, change: &AgentChange) -> Result<(), Failure> {
    caller.require_admin()?;
    if let Some((_, kind)) = agents::find_feed(connection, change.id.as_str()).await?
        && kind != crate::domain::caller::Role::Agent
    {
        return Err(Fault::OtherKind(change.id.to_string(), "a gateway").into());
    }
    if agents::put_agent(connection, change).await? {
        Ok(())
    } else {
        Err(Fault::OtherKind(change.id.to_string(), "a gateway").into())
    }
}
