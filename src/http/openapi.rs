//! `/openapi.json`, made from the handlers' own declarations.

use axum::Json;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};

use super::{admin, agent, feed, health, message_query, message_send, session};

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        openapi.components.get_or_insert_default().add_security_scheme("bearer", scheme);
    }
}

/// The description of the interface.
#[derive(OpenApi)]
#[openapi(
    info(title = "deskfeed", description = "A persistent event store for customer-service desks."),
    modifiers(&Bearer),
    security(("bearer" = [])),
    paths(
        message_query::query,
        message_query::query_post,
        message_send::send,
        session::open,
        session::close,
        session::release,
        session::transfer,
        session::list,
        session::history,
        feed::status,
        agent::presence,
        admin::put_agent,
        admin::list_agents,
        admin::put_gateway,
        admin::list_gateways,
        admin::create_token,
        admin::revoke_token,
        admin::list_tokens,
        health::healthz,
        health::readyz,
        health::metrics,
        openapi,
    )
)]
pub struct Api;

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "around", responses((status = 200, description = "OpenAPI 3.1")))]
pub async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(Api::openapi())
}
