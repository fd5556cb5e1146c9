//! `/message/query`: a feed's events.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, header};
use serde_json::{Map, Value};

use super::{
    auth::Holder,
    body::{Format, RawBody, from_json, pairs},
    line::Line,
    problem::Problem,
    state::App,
};
use crate::{
    domain::{cursor::Query, fault::Fault, limits},
    live::auth::tokens::Grant,
    live::feed::poll::answer::{Answer, Events},
};

pub const FEED_NEXT: HeaderName = HeaderName::from_static("feed-next");
pub const FEED_MORE: HeaderName = HeaderName::from_static("feed-more");
pub const FEED_EPOCH: HeaderName = HeaderName::from_static("feed-epoch");

/// Events of a feed: after a version (held until there is something to tell), before a version, or not acknowledged.
#[utoipa::path(
    get, path = "/message/query", tag = "feed",
    params(
        ("a" = Option<String>, Query, description = "Events with a version greater than this, oldest first; `now`, or `@` and an RFC 3339 time. Alias `after`."),
        ("b" = Option<String>, Query, description = "History: the newest events with a version less than this; `now`. Alias `before`."),
        ("c" = Option<String>, Query, description = "Acknowledges message Ids, event versions and ranges of versions. Alias `acks`."),
        ("t" = Option<String>, Query, description = "Event types wanted. Alias `type`."),
        ("limit" = Option<u32>, Query, description = "1..1000, default 100."),
        ("wait" = Option<u32>, Query, description = "Seconds to hold the request open, 0..60, default 25."),
        ("epoch" = Option<String>, Query, description = "The Feed-Epoch the reader's versions came from."),
        ("feed" = Option<String>, Query, description = "Whose feed (admins)."),
    ),
    responses(
        (status = 200, body = Vec<super::wire::EventSchema>, description = "Ascending by version", headers(
            ("Feed-Next" = i64, description = "What to pass next: as `a` after an `a` or instant answer, as `b` after a `b` answer"),
            ("Feed-More" = bool, description = "Whether another page is there now"),
            ("Feed-Epoch" = String, description = "Names this store's history"),
        )),
        (status = "default", body = super::wire::ProblemSchema, content_type = "application/problem+json"),
    ),
)]
pub async fn query(State(app): State<App>, Holder(grant): Holder, request: Request) -> Result<Response, Problem> {
    let line = Line::to_leave_by(&request);
    // The request is taken apart and dropped before the wait, and what reads a body is boxed: a
    // parked poll holds neither.
    let parameters = if request.method() == Method::POST {
        Box::pin(parameters_and_body(&app, &grant, request)).await?
    } else {
        let parameters = pairs(request.uri().query().unwrap_or_default().as_bytes())?;
        drop(request);
        parameters
    };
    let query = Query::parse(parameters)?;
    match line.filter(|_| app.polls.will_park(&grant, &query)) {
        Some(line) => Ok(line.leave(parked(app, grant, query)).await),
        None => Ok(answer(app.polls.query(&grant, query).await?)),
    }
}

/// A poll that has left hyper.
async fn parked(app: App, grant: Arc<Grant>, query: Query) -> Response {
    match app.polls.query(&grant, query).await {
        Ok(answered) => answer(answered),
        Err(fault) => Problem(fault).into_response(),
    }
}

/// The same, with the parameters in the body (for acknowledgement lists too long for a URL).
#[utoipa::path(
    post, path = "/message/query", tag = "feed",
    request_body(content = serde_json::Value, description = "The names and values of the query parameters; numbers as numbers or strings"),
    responses(
        (status = 200, body = Vec<super::wire::EventSchema>, description = "As GET"),
        (status = "default", body = super::wire::ProblemSchema, content_type = "application/problem+json"),
    ),
)]
pub async fn query_post(state: State<App>, holder: Holder, request: Request) -> Result<Response, Problem> {
    query(state, holder, request).await
}

async fn parameters_and_body(app: &App, grant: &Grant, request: Request) -> Result<Vec<(String, String)>, Fault> {
    let mut parameters = pairs(request.uri().query().unwrap_or_default().as_bytes())?;
    let body = RawBody::read(app, grant, request, limits::BODY_BYTES_MAX).await?;
    match body.format {
        Format::Form => parameters.extend(pairs(&body.bytes)?),
        Format::Json => {
            for (name, value) in from_json::<Map<String, Value>>(&body.bytes)? {
                parameters.extend(json_text(&name, value)?.map(|text| (name, text)));
            }
        }
    }
    Ok(parameters)
}

/// A JSON value as the text a URL would carry. A list is the same as its items with commas between.
fn json_text(name: &str, value: Value) -> Result<Option<String>, Fault> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        Value::Number(number) => Ok(Some(number.to_string())),
        Value::Array(items) if ["c", "acks", "t", "type"].contains(&name) => {
            let texts: Result<Vec<Option<String>>, Fault> =
                items.into_iter().map(|item| json_text("an item of a list", item)).collect();
            Ok(Some(texts?.into_iter().flatten().collect::<Vec<String>>().join(",")))
        }
        // Unknown fields are ignored, whatever they hold.
        _ if ![
            "a",
            "after",
            "b",
            "before",
            "c",
            "acks",
            "t",
            "type",
            "limit",
            "wait",
            "epoch",
            "feed",
            "an item of a list",
        ]
        .contains(&name) =>
        {
            Ok(None)
        }
        _ => Err(Fault::malformed(format!("`{name}` must be a string or a number"))),
    }
}

fn answer(Answer { found, epoch }: Answer) -> Response {
    let body = match found.events {
        Events::Each(events) => joined(&events),
        Events::List(list) => list.json,
    };
    let mut response = Body::from(body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(FEED_NEXT, HeaderValue::from(found.next));
    headers.insert(FEED_MORE, HeaderValue::from_static(if found.more { "true" } else { "false" }));
    if let Ok(epoch) = HeaderValue::from_str(&epoch) {
        headers.insert(FEED_EPOCH, epoch);
    }
    response
}

/// A JSON array of events that were encoded one by one.
fn joined(events: &[Bytes]) -> Bytes {
    let mut body = BytesMut::with_capacity(2 + events.iter().map(|event| event.len() + 1).sum::<usize>());
    body.put_u8(b'[');
    for (position, event) in events.iter().enumerate() {
        if position > 0 {
            body.put_u8(b',');
        }
        body.put_slice(event);
    }
    body.put_u8(b']');
    body.freeze()
}
