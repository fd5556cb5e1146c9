//! Sessions: `open`, `close`, `release`, `transfer`, `list`, `history`.

use axum::{
    Json,
    extract::{RawQuery, State},
    response::{IntoResponse, Response},
};
use http::HeaderValue;
use uuid::Uuid;

use super::{
    auth::Holder,
    body::{Fields, pairs},
    message_query::{FEED_MORE, FEED_NEXT},
    problem::Problem,
    state::App,
    wire::{OpenRequest, ProblemSchema, SessionAnswer, SessionLine, SessionRef, TransferRequest},
};
use crate::{
    desk::{SessionReply, command::Command, open_session::Open},
    domain::{
        cursor::checked_limit,
        event::{MessageEntry, SessionCard, wire_time},
        fault::Fault,
        ids::{checked_optional_text, checked_text, session_id},
        limits,
        session::Status,
    },
    store::{
        messages::{self, Before},
        sessions::{self, Listed},
    },
};

fn answer(reply: SessionReply) -> Json<SessionAnswer> {
    Json(SessionAnswer {
        session_id: reply.session_id,
        status: reply.status.name(),
        to_id: reply.to_id,
        version: reply.version,
    })
}

/// Brings a conversation in (gateway, admin).
#[utoipa::path(post, path = "/session/open", tag = "sessions", request_body = OpenRequest,
    responses((status = 200, body = SessionAnswer), (status = "default", body = ProblemSchema, content_type = "application/problem+json")))]
pub async fn open(
    State(app): State<App>,
    Holder(grant): Holder,
    Fields(request): Fields<OpenRequest>,
) -> Result<Json<SessionAnswer>, Problem> {
    let given = request.session_id.filter(|id| !id.is_empty());
    let session_type = request.session_type.unwrap_or(0);
    let card = SessionCard {
        session_id: given.map_or_else(|| Ok(Uuid::now_v7().to_string()), session_id)?,
        session_type: i32::try_from(session_type).map_err(|_| Fault::malformed("SessionType must fit 32 bits"))?,
        from_id: checked_text(request.from_id, "FromId", limits::NAME_CHARS_MAX)?,
        from_name: checked_optional_text(request.from_name, "FromName", limits::NAME_CHARS_MAX)?,
        from_image: checked_optional_text(request.from_image, "FromImage", limits::IMAGE_CHARS_MAX)?,
    };
    let to_id = checked_optional_text(request.to_id, "ToId", limits::NAME_CHARS_MAX)?;
    let open = Open { card, to_id };
    Ok(answer(app.writer.submit_session(Command::Open { caller: grant.caller.clone(), open }).await?))
}

/// The owner ends a session.
#[utoipa::path(post, path = "/session/close", tag = "sessions", request_body = SessionRef,
    responses((status = 200, body = SessionAnswer), (status = "default", body = ProblemSchema, content_type = "application/problem+json")))]
pub async fn close(
    State(app): State<App>,
    Holder(grant): Holder,
    Fields(request): Fields<SessionRef>,
) -> Result<Json<SessionAnswer>, Problem> {
    let session_id = session_id(request.session_id)?;
    Ok(answer(app.writer.submit_session(Command::Close { caller: grant.caller.clone(), session_id }).await?))
}

/// An agent takes a session from the queue, whatever its presence and `MaxSessions`.
#[utoipa::path(post, path = "/session/claim", tag = "sessions", request_body = SessionRef,
    responses((status = 200, body = SessionAnswer), (status = "default", body = ProblemSchema, content_type = "application/problem+json")))]
pub async fn claim(
    State(app): State<App>,
    Holder(grant): Holder,
    Fields(request): Fields<SessionRef>,
) -> Result<Json<SessionAnswer>, Problem> {
    let session_id = session_id(request.session_id)?;
    Ok(answer(app.writer.submit_session(Command::Claim { caller: grant.caller.clone(), session_id }).await?))
}

/// The owner hands a session back to the queue.
#[utoipa::path(post, path = "/session/release", tag = "sessions", request_body = SessionRef,
    responses((status = 200, body = SessionAnswer), (status = "default", body = ProblemSchema, content_type = "application/problem+json")))]
pub async fn release(
    State(app): State<App>,
    Holder(grant): Holder,
    Fields(request): Fields<SessionRef>,
) -> Result<Json<SessionAnswer>, Problem> {
    let session_id = session_id(request.session_id)?;
    Ok(answer(app.writer.submit_session(Command::Release { caller: grant.caller.clone(), session_id }).await?))
}

/// The owner hands a session on.
#[utoipa::path(post, path = "/session/transfer", tag = "sessions", request_body = TransferRequest,
    responses((status = 200, body = SessionAnswer), (status = "default", body = ProblemSchema, content_type = "application/problem+json")))]
pub async fn transfer(
    State(app): State<App>,
    Holder(grant): Holder,
    Fields(request): Fields<TransferRequest>,
) -> Result<Json<SessionAnswer>, Problem> {
    let session_id = session_id(request.session_id)?;
    let to_id = checked_text(request.to_new_id, "ToNewId", limits::NAME_CHARS_MAX)?;
    Ok(answer(app.writer.submit_session(Command::Transfer { caller: grant.caller.clone(), session_id, to_id }).await?))
}

/// The parameters of a list, each given once at most.
struct ListQuery {
    status: Option<Status>,
    session_id: Option<String>,
    before: Option<String>,
    limit: i64,
}

impl ListQuery {
    fn parse(query: Option<&str>) -> Result<Self, Fault> {
        let mut parsed = Self { status: None, session_id: None, before: None, limit: limits::EVENTS_PER_PAGE_DEFAULT };
        for (name, value) in pairs(query.unwrap_or_default().as_bytes())? {
            match name.as_str() {
                _ if value.is_empty() => {}
                "status" => parsed.status = Some(Status::parse(&value)?),
                "SessionId" => parsed.session_id = Some(session_id(value)?),
                "b" | "before" if value == "now" => parsed.before = None,
                "b" | "before" => parsed.before = Some(checked_text(value, "`b`", limits::SESSION_ID_CHARS_MAX)?),
                "limit" => parsed.limit = checked_limit(&value, limits::EVENTS_PER_PAGE_MAX)?,
                _ => {}
            }
        }
        Ok(parsed)
    }
}

/// Adds the paging headers: `b` of the next page, and whether there is one.
fn paged(body: impl IntoResponse, next: Option<String>, more: bool) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(FEED_MORE, HeaderValue::from_static(if more { "true" } else { "false" }));
    if let Some(next) = next.and_then(|next| HeaderValue::from_bytes(next.as_bytes()).ok()) {
        headers.insert(FEED_NEXT, next);
    }
    response
}

/// The caller's sessions, newest first (agent: owned; gateway: opened by it; admin: all).
#[utoipa::path(get, path = "/session/list", tag = "sessions",
    params(
        ("status" = Option<String>, Query, description = "`open`, `queued` or `closed`"),
        ("limit" = Option<u32>, Query, description = "1..1000, default 100"),
        ("b" = Option<String>, Query, description = "Sessions opened before this one: a SessionId (Feed-Next of the last answer)"),
    ),
    responses((status = 200, body = Vec<SessionLine>), (status = "default", body = ProblemSchema, content_type = "application/problem+json")))]
pub async fn list(
    State(app): State<App>,
    Holder(grant): Holder,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    use crate::domain::caller::Caller;
    let query = ListQuery::parse(query.as_deref())?;
    let listed = Listed {
        owner: if let Caller::Agent(agent) = &grant.caller { Some(agent.key) } else { None },
        gateway: if let Caller::Gateway(gateway) = &grant.caller { Some(gateway.key) } else { None },
        status: query.status,
        before: query.before.as_deref(),
        limit: query.limit + 1,
    };
    let found = app.db.read(async |connection| sessions::list(connection, listed).await).await?;
    let mut lines =
        found.ok_or_else(|| Fault::malformed("`b` must be the SessionId of a session, as Feed-Next gives it"))?;
    let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
    let more = lines.len() > limit;
    lines.truncate(limit);
    let next = lines.last().map(|line| line.card.session_id.clone());
    let zone = app.feed.zone;
    let lines: Vec<SessionLine> = lines
        .into_iter()
        .map(|line| SessionLine {
            session_id: line.card.session_id,
            session_type: line.card.session_type,
            status: line.status.name(),
            from_id: line.card.from_id,
            from_name: line.card.from_name,
            from_image: line.card.from_image,
            to_id: line.owner_id,
            to_name: line.owner_name,
            open_time: wire_time(line.opened_at, zone),
            close_time: line.closed_at.map(|time| wire_time(time, zone)),
            last_message: line
                .last_message
                .as_ref()
                .and_then(|message| serde_json::to_value(MessageEntry::new(message, zone)).ok()),
        })
        .collect();
    Ok(paged(Json(lines), next, more))
}

/// A session's messages, ascending, the newest page first (its owner, its gateway, admins).
#[utoipa::path(get, path = "/session/history", tag = "sessions",
    params(
        ("SessionId" = String, Query, description = "Whose messages"),
        ("limit" = Option<u32>, Query, description = "1..1000, default 100"),
        ("b" = Option<String>, Query, description = "Messages before this one: a message Id (Feed-Next of the last answer) or an event version"),
    ),
    responses((status = 200, body = Vec<super::wire::MessageSchema>), (status = "default", body = ProblemSchema, content_type = "application/problem+json")))]
pub async fn history(
    State(app): State<App>,
    Holder(grant): Holder,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let query = ListQuery::parse(query.as_deref())?;
    let session_id = query.session_id.ok_or_else(|| Fault::malformed("`SessionId` is missing"))?;
    let before = query.before.map_or(Before::Newest, Before::Message);
    let read = app.db.read(async |connection| {
        let Some(session) = sessions::find_to_read(connection, &session_id).await? else {
            return Ok(Err(Fault::NoSuchSession(session_id.clone())));
        };
        // Checked before anything else is read, so that a stranger costs one lookup.
        if let Err(fault) = session.check_may_read(&grant.caller) {
            return Ok(Err(fault));
        }
        Ok(Ok(messages::history(connection, session.key, &before, query.limit + 1).await?))
    });
    let mut messages = read.await??.ok_or_else(|| {
        Fault::malformed("`b` must be the Id of a message of this session, as Feed-Next gives it, or a version")
    })?;
    let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
    let mut more = messages.len() > limit;
    messages.truncate(limit);
    let mut bytes = 0;
    let fitting = messages
        .iter()
        .take_while(|message| {
            bytes += message.content.len();
            bytes <= limits::ANSWER_BYTES_MAX
        })
        .count()
        .max(1);
    more |= fitting < messages.len();
    messages.truncate(fitting);
    messages.reverse();
    let next = messages.first().map(|message| message.id.to_string());
    let entries: Vec<MessageEntry<'_>> =
        messages.iter().map(|message| MessageEntry::new(message, app.feed.zone)).collect();
    Ok(paged(Json(&entries), next, more))
}
