//! `/openapi.json`, made from the handlers' own declarations.

use axum::Json;
use utoipa::{
    Modify, OpenApi,
    openapi::{
        RefOr,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::{admin, agent, feed, health, message_query, message_send, session};

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        openapi.components.get_or_insert_default().add_security_scheme("bearer", scheme);
    }
}

/// OpenAPI 3.1 wants a description with every response; most of ours go without saying.
struct Described;

impl Modify for Described {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        for item in openapi.paths.paths.values_mut() {
            let operations = [&mut item.get, &mut item.post];
            for (status, response) in
                operations.into_iter().flatten().flat_map(|operation| &mut operation.responses.responses)
            {
                if let RefOr::T(response) = response
                    && response.description.is_empty()
                {
                    let text = if status == "200" { "Done" } else { "A problem (RFC 9457)" };
                    text.clone_into(&mut response.description);
                }
            }
        }
    }
}

/// The description of the interface.
#[derive(OpenApi)]
#[openapi(
    info(title = "deskfeed", description = "A persistent event store for customer-service desks."),
    modifiers(&Bearer, &Described),
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
