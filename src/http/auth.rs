//! Who asks: checked before anything else of a request is looked at.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, header, request::Parts};

use super::{problem::Problem, state::App};
use crate::{domain::fault::Fault, store::tokens::Grant};

/// Middleware of every route that needs a token.
pub async fn require_token(State(app): State<App>, mut request: Request, next: Next) -> Response {
    match authenticate(&app, request.headers()).await {
        Ok(grant) => {
            request.extensions_mut().insert(grant);
            next.run(request).await
        }
        Err(fault) => Problem(fault).into_response(),
    }
}

async fn authenticate(app: &App, headers: &HeaderMap) -> Result<Arc<Grant>, Fault> {
    let secret = bearer(headers).ok_or(Fault::Unauthenticated("a token is needed: `Authorization: Bearer <token>`"))?;
    let grant = app.live.tokens.authenticate(secret).await?;
    app.rate.check(grant.token_id)?;
    app.activity.token_used(grant.token_id);
    Ok(grant)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

/// The holder of the request's token.
pub struct Holder(pub Arc<Grant>);

impl FromRequestParts<App> for Holder {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _app: &App) -> Result<Self, Problem> {
        // A route without the middleware is a mistake of ours; it must not let anybody in.
        parts
            .extensions
            .get::<Arc<Grant>>()
            .cloned()
            .map(Self)
            .ok_or(Problem(Fault::Unauthenticated("a token is needed")))
    }
}
