//! Authentication: before anything else of a request is looked at.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::{Extensions, HeaderMap, header, request::Parts};

use super::{problem::Problem, state::App};
use crate::{domain::fault::Fault, live::auth::tokens::Grant};

/// The grant of the token that a request carries. It goes into the request's extensions, for [`Holder`].
///
/// # Errors
/// 40100, 42900.
pub async fn authenticate(app: &App, headers: &HeaderMap) -> Result<Arc<Grant>, Fault> {
    let secret = bearer(headers).ok_or(Fault::Unauthenticated("a token is needed: `Authorization: Bearer <token>`"))?;
    let grant = app.tokens.authenticate(secret).await?;
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
        Ok(Self(holder(&parts.extensions)?))
    }
}

/// The grant of a request that was authenticated.
///
/// # Errors
/// 40100: a route that was not authenticated is a mistake of ours, and must not let anybody in.
pub fn holder(extensions: &Extensions) -> Result<Arc<Grant>, Fault> {
    extensions.get::<Arc<Grant>>().cloned().ok_or(Fault::Unauthenticated("a token is needed"))
}
