//! `/admin/...`: agents, gateways and tokens.

use axum::{Json, extract::State};
use chrono::{DateTime, SecondsFormat, Utc};
use uuid::Uuid;

use super::{
    agent,
    auth::Holder,
    body::Fields,
    problem::Problem,
    state::App,
    wire::{
        AgentAnswer, AgentRequest, GatewayAnswer, GatewayRequest, NewTokenAnswer, ProblemSchema, RevokeAnswer,
        RevokeRequest, TokenAnswer, TokenRequest,
    },
};
use crate::{
    desk::command::Command,
    domain::{
        caller::Role,
        fault::Fault,
        ids::{FeedId, checked_optional_text},
        limits,
        message::require_web_url,
    },
    live::auth::issue::issue,
    store::{
        agents::{self, AgentChange, AgentLine},
        barrier::{self, Barrier},
        tokens,
    },
};

/// A token may not live longer than this, in seconds: about a hundred years.
const EXPIRES_IN_S_MAX: i64 = 3_155_760_000;

fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn agent_answer(line: AgentLine) -> AgentAnswer {
    AgentAnswer {
        id: line.id,
        name: line.name,
        image: line.image,
        max_sessions: line.max_sessions,
        status: agent::name(line.online),
        open_sessions: line.open_sessions,
        last_seen: line.last_seen.map(time),
    }
}

/// Creates or changes an agent.
#[utoipa::path(post, path = "/admin/agent", tag = "admin", request_body = AgentRequest,
    responses((status = 200, body = AgentAnswer), (status = "default", body = ProblemSchema, content_type = "application/problem+json")))]
pub async fn put_agent(
    State(app): State<App>,
    Holder(grant): Holder,
    Fields(request): Fields<AgentRequest>,
) -> Result<Json<AgentAnswer>, Problem> {
    grant.caller.require_admin()?;
    let max_sessions = request.max_sessions.map(|max| {
        i32::try_from(max)
            .ok()
            .filter(|max| *max >= 0)
            .ok_or_else(|| Fault::malformed("MaxSessions must be 0..2147483647"))
    });
    let image = checked_optional_text(request.image, "Image", limits::IMAGE_CHARS_MAX)?;
    if let Some(image) = &image {
        require_web_url(image, "Image")?;
    }
    let change = AgentChange {
        id: FeedId::parse(&request.id, "Id")?,
        name: checked_optional_text(request.name, "Name", limits::NAME_CHARS_MAX)?,
        image,
        max_sessions: max_sessions.transpose()?,
        online: request.status.as_deref().filter(|status| !status.is_empty()).map(agent::is_online).transpose()?,
    };
    let id = change.id.clone();
    app.writer.submit(Command::PutAgent { caller: grant.caller.clone(), change }).await?;
    let line = app.db.read(async |connection| agents::find_line(connection, id.as_str()).await).await?;
    Ok(Json(agent_answer(line.ok_or_else(|| Fault::internal("an agent is not there after it was put"))?)))
}

/// All agents.
#[utoipa::path(get, path = "/admin/agent", tag = "admin",
    responses((status = 200, body = Vec<AgentAnswer>), (status = "default", body = ProblemSchema, content_type = "application/problem+json")))]
pub async fn list_agents(State(app): State<App>, Holder(grant): Holder) -> Result<Json<Vec<AgentAnswer>>, Problem> {
    grant.caller.require_admin()?;
    let lines = app.db.read(agents::list_agents).await?;
    Ok(Json(lines.into_iter().map(agent_answer).collect()))
}

/// Creates or changes a gateway.
#[utoipa::path(post, path = "/admin/gateway", tag = "admin", request_body = GatewayRequest,
    responses((status = 200, body = GatewayAnswer), (status = "default", body = ProblemSchema, content_type = "application/problem+json")))]
pub async fn put_gateway(
    State(app): State<App>,
    Holder(grant): Holder,
    Fields(request): Fields<GatewayRequest>,
) -> Result<Json<GatewayAnswer>, Problem> {
    grant.caller.require_admin()?;
    let id = FeedId::parse(&request.id, "Id")?;
    let name = checked_optional_text(request.name, "Name", limits::NAME_CHARS_MAX)?;
    let put = app.db.change(async |connection| agents::put_gateway(connection, &id, name.as_deref()).await);
    let kept = put.await?;
    let name = kept.ok_or_else(|| Fault::OtherKind(id.to_string(), "an agent"))?;
    Ok(Json(GatewayAnswer { id: id.to_string(), name }))
}

/// All gateways.
#[utoipa::path(get, path = "/admin/gateway", tag = "admin",
    responses((status = 200, body = Vec<GatewayAnswer>), (status = "default", body = ProblemSchema, content_type = "application/problem+json")))]
pub async fn list_gateways(State(app): State<App>, Holder(grant): Holder) -> Result<Json<Vec<GatewayAnswer>>, Problem> {
    grant.caller.require_admin()?;
    let lines = app.db.read(agents::list_gateways).await?;
    Ok(Json(lines.into_iter().map(|(id, name)| GatewayAnswer { id, name }).collect()))
}

/// Makes a token; its secret is shown this once.
#[utoipa::path(post, path = "/admin/token", tag = "admin", request_body = TokenRequest,
    responses((status = 200, body = NewTokenAnswer), (status = "default", body = ProblemSchema, content_type = "application/problem+json")))]
pub async fn create_token(
    State(app): State<App>,
    Holder(grant): Holder,
    Fields(request): Fields<TokenRequest>,
) -> Result<Json<NewTokenAnswer>, Problem> {
    grant.caller.require_admin()?;
    let role = Role::parse(&request.role).ok_or_else(|| Fault::malformed("Role must be agent, gateway or admin"))?;
    if request.expires_in.is_some_and(|seconds| !(1..=EXPIRES_IN_S_MAX).contains(&seconds)) {
        return Err(Fault::malformed(format!("ExpiresIn must be 1..{EXPIRES_IN_S_MAX} seconds")).into());
    }
    let subject = request.subject.filter(|subject| !subject.is_empty());
    let issued =
        app.db.change(async |connection| issue(connection, role, subject.as_deref(), request.expires_in).await);
    let (token_id, secret) = issued.await??;
    tracing::info!(%token_id, role = role.name(), "a token was made");
    Ok(Json(NewTokenAnswer { token_id: token_id.to_string(), token: secret }))
}

/// Revokes a token: refused from then on, on every replica within 1 s, parked polls included.
#[utoipa::path(post, path = "/admin/token/revoke", tag = "admin", request_body = RevokeRequest,
    responses((status = 200, body = RevokeAnswer), (status = "default", body = ProblemSchema, content_type = "application/problem+json")))]
pub async fn revoke_token(
    State(app): State<App>,
    Holder(grant): Holder,
    Fields(request): Fields<RevokeRequest>,
) -> Result<Json<RevokeAnswer>, Problem> {
    grant.caller.require_admin()?;
    let token_id = Uuid::try_parse(&request.token_id)
        .map_err(|_| Fault::malformed("TokenId must be one that /admin/token has given"))?;
    let found = app
        .db
        .change(async |connection| {
            barrier::committed(connection, Barrier::Always, async |c| tokens::revoke(c, token_id).await).await
        })
        .await?;
    if !found {
        return Err(Fault::malformed("TokenId names no token").into());
    }
    app.hints.look();
    tracing::info!(%token_id, "a token was revoked");
    Ok(Json(RevokeAnswer { token_id: token_id.to_string(), revoked: true }))
}

/// All tokens, without their secrets.
#[utoipa::path(get, path = "/admin/token", tag = "admin",
    responses((status = 200, body = Vec<TokenAnswer>), (status = "default", body = ProblemSchema, content_type = "application/problem+json")))]
pub async fn list_tokens(State(app): State<App>, Holder(grant): Holder) -> Result<Json<Vec<TokenAnswer>>, Problem> {
    grant.caller.require_admin()?;
    let lines = app.db.read(tokens::list).await?;
    let answers = lines
        .into_iter()
        .map(|line| TokenAnswer {
            token_id: line.token_id.to_string(),
            role: line.role.name(),
            subject: line.subject,
            created_at: time(line.created_at),
            expires_at: line.expires_at.map(time),
            last_used: line.last_used_at.map(time),
            revoked: line.revoked,
        })
        .collect();
    Ok(Json(answers))
}
