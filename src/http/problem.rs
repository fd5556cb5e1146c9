//! Faults as answers: the one place where a fault meets HTTP.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use problem_details::ProblemDetails;
use serde::Serialize;

use crate::{
    domain::{event::EventType, fault::Fault, limits},
    store,
};

/// What a problem carries besides RFC 9457's own members.
#[derive(Debug, Serialize)]
struct Members {
    code: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    known: Option<[&'static str; 3]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<usize>,
}

/// A fault on its way to a client.
#[derive(Debug)]
pub struct Problem(pub Fault);

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        Self(fault)
    }
}

impl From<store::Error> for Problem {
    fn from(error: store::Error) -> Self {
        Self(error.into())
    }
}

/// The HTTP status of a fault: the first three digits of its number.
pub fn status(fault: &Fault) -> StatusCode {
    u16::try_from(fault.code() / 100)
        .ok()
        .and_then(|status| StatusCode::from_u16(status).ok())
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The problem object of a fault.
pub fn object(fault: &Fault) -> serde_json::Value {
    let detail = fault.to_string();
    let members = Members {
        code: fault.code(),
        known: matches!(fault, Fault::UnknownType(_)).then(|| EventType::ALL.map(EventType::name)),
        oldest: if let Fault::HistoryGone { oldest, .. } = fault { Some(*oldest) } else { None },
        head: if let Fault::HistoryUnknown { head, .. } = fault { Some(*head) } else { None },
        epoch: if let Fault::HistoryUnknown { epoch, .. } = fault { Some(epoch.clone()) } else { None },
        limit: if let Fault::TooLarge { limit, .. } = fault { Some(*limit) } else { None },
    };
    let problem = ProblemDetails::from_status_code(status(fault))
        .with_title(fault.title())
        .with_detail(detail)
        .with_extensions(members);
    let mut object = serde_json::to_value(problem).unwrap_or_default();
    if let Some(object) = object.as_object_mut() {
        // A URN: there is no page behind it that could go away.
        object.insert("type".to_owned(), format!("urn:deskfeed:problem:{}", fault.code()).into());
    }
    object
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let fault = self.0;
        log(&fault);
        let mut response = (status(&fault), object(&fault).to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match &fault {
            Fault::Unauthenticated(_) => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Fault::TooMany(_) | Fault::Unavailable { .. } => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(limits::RETRY_AFTER_S));
            }
            Fault::WrongMethod(allow) => {
                if let Ok(allow) = HeaderValue::from_str(allow) {
                    headers.insert(header::ALLOW, allow);
                }
            }
            _ => {}
        }
        response
    }
}

fn log(fault: &Fault) {
    use std::error::Error as _;
    metrics::counter!("deskfeed_problems_total", "code" => fault.code().to_string()).increment(1);
    match fault {
        Fault::Internal(source) => tracing::error!(code = fault.code(), error = %source, "a request failed"),
        Fault::Unavailable { reason, .. } => {
            let cause = fault.source().map(ToString::to_string);
            tracing::debug!(code = fault.code(), cause, "a request was put off: {reason}");
        }
        Fault::RoleMayNot(_) | Fault::NotOwner(_) => tracing::info!(code = fault.code(), "a request was denied"),
        _ => {}
    }
}

/// What a panic in a handler becomes.
#[expect(clippy::needless_pass_by_value, reason = "the layer hands it over")]
pub fn panic_problem(panic: Box<dyn std::any::Any + Send + 'static>) -> http::Response<Body> {
    let text =
        panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
    Problem(Fault::internal(text.unwrap_or_else(|| "a panic".to_owned()))).into_response()
}
