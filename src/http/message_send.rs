//! `POST /message/send`: one message or a batch.

use std::{pin::Pin, sync::Arc};

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Value, value::RawValue};

use super::{
    auth::Holder,
    body::{Format, RawBody, from_json},
    problem::{self, Problem},
    state::App,
    wire::{SendAnswer, SendRequest},
};
use crate::{
    desk::send_message::Sent,
    domain::{
        caller::Role,
        event::wire_time,
        fault::Fault,
        ids::{MessageId, session_id},
        limits,
        message::{ContentType, NewMessage, checked_content},
    },
    live::auth::tokens::Grant,
};

/// Adds a message to a session (a gateway: from the customer; the owner: to the customer), or a batch of 1..1000.
#[utoipa::path(
    post, path = "/message/send", tag = "messages",
    request_body(content = SendRequest, description = "One message, or a JSON array of 1..1000 (the answer is then an array of the same order, with a problem object for each one refused)"),
    responses(
        (status = 200, body = SendAnswer),
        (status = "default", body = super::wire::ProblemSchema, content_type = "application/problem+json"),
    ),
)]
pub async fn send(State(app): State<App>, Holder(grant): Holder, request: Request) -> Result<Response, Problem> {
    if grant.caller.role() == Role::Admin {
        return Err(Fault::role_may_not("only a gateway or the session's owner may send").into());
    }
    let body = RawBody::read(&app, &grant, request, limits::BATCH_BODY_BYTES_MAX).await?;
    let is_batch =
        body.format == Format::Json && body.bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    if is_batch {
        return Ok(send_batch(&app, &grant.caller, &body).await?);
    }
    if body.bytes.len() > limits::BODY_BYTES_MAX {
        return Err(Fault::TooLarge { what: "the body", limit: limits::BODY_BYTES_MAX }.into());
    }
    let message = checked(body.parse()?)?;
    let mut sent = app.writer.send(grant.caller.clone(), vec![message]).await?;
    let sent = sent.pop().unwrap_or_else(|| Err(Fault::internal("a message without an outcome")))?;
    Ok(Json(answer(&app, sent)).into_response())
}

/// [`send`], without what axum does before it.
pub fn direct(app: App, grant: Arc<Grant>, request: Request) -> Pin<Box<dyn Future<Output = Response> + Send>> {
    Box::pin(async { send(State(app), Holder(grant), request).await.into_response() })
}

/// What became of a message of a batch.
#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    Sent(SendAnswer),
    Refused(Value),
}

async fn send_batch(app: &App, caller: &crate::domain::caller::Caller, body: &RawBody) -> Result<Response, Fault> {
    let items: Vec<Box<RawValue>> = from_json(&body.bytes)?;
    if items.is_empty() || items.len() > limits::BATCH_MESSAGES_MAX {
        return Err(Fault::malformed(format!("a batch holds 1..{} messages", limits::BATCH_MESSAGES_MAX)));
    }
    // Each on its own: a wrong one does not spoil its neighbours.
    let items: Vec<Result<NewMessage, Fault>> =
        items.into_iter().map(|item| from_json(item.get().as_bytes()).and_then(checked)).collect();
    let mut refusals = Vec::with_capacity(items.len());
    let mut messages = Vec::with_capacity(items.len());
    for item in items {
        match item {
            Ok(message) => {
                messages.push(message);
                refusals.push(None);
            }
            Err(fault) => refusals.push(Some(fault)),
        }
    }
    let sent = if messages.is_empty() { Vec::new() } else { app.writer.send(caller.clone(), messages).await? };
    let mut sent = sent.into_iter();
    let answers: Vec<Outcome> = refusals
        .into_iter()
        .map(|refusal| {
            let outcome = match refusal {
                Some(fault) => Err(fault),
                None => sent.next().unwrap_or_else(|| Err(Fault::internal("a message without an outcome"))),
            };
            match outcome {
                Ok(sent) => Outcome::Sent(answer(app, sent)),
                Err(fault) => Outcome::Refused(problem::object(&fault)),
            }
        })
        .collect();
    Ok(Json(answers).into_response())
}

fn checked(request: SendRequest) -> Result<NewMessage, Fault> {
    let content_type = request
        .content_type
        .as_deref()
        .filter(|text| !text.is_empty())
        .map_or(Ok(ContentType::Text), ContentType::parse)?;
    Ok(NewMessage {
        session_id: session_id(request.session_id)?,
        id: request.id.filter(|id| !id.is_empty()).map(MessageId::parse).transpose()?,
        content_type,
        content: checked_content(request.content, content_type)?,
    })
}

fn answer(app: &App, sent: Sent) -> SendAnswer {
    SendAnswer {
        id: sent.id.to_string(),
        session_id: sent.session_id,
        version: sent.version,
        create_time: wire_time(sent.created_at, app.feed.zone),
    }
}
