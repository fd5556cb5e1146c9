//! `POST /agent/presence`.

use axum::{Json, extract::State};

use super::{
    auth::Holder,
    body::Fields,
    problem::Problem,
    state::App,
    wire::{PresenceAnswer, PresenceRequest, ProblemSchema},
};
use crate::{desk::command::Command, domain::fault::Fault};

/// Whether new sessions are routed to the caller.
#[utoipa::path(post, path = "/agent/presence", tag = "agents", request_body = PresenceRequest,
    responses((status = 200, body = PresenceAnswer), (status = "default", body = ProblemSchema, content_type = "application/problem+json")))]
pub async fn presence(
    State(app): State<App>,
    Holder(grant): Holder,
    Fields(request): Fields<PresenceRequest>,
) -> Result<Json<PresenceAnswer>, Problem> {
    grant.caller.agent()?;
    let online = is_online(&request.status)?;
    app.writer.submit(Command::SetPresence { caller: grant.caller.clone(), online }).await?;
    Ok(Json(PresenceAnswer { status: name(online) }))
}

/// Reads `Status` of an agent.
pub fn is_online(status: &str) -> Result<bool, Fault> {
    match status {
        "online" => Ok(true),
        "away" => Ok(false),
        _ => Err(Fault::malformed("Status must be online or away")),
    }
}

/// Writes `Status` of an agent.
pub fn name(online: bool) -> &'static str {
    if online { "online" } else { "away" }
}
