//! All routes, on one screen.

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio::time::Instant;
use tower_http::catch_panic::CatchPanicLayer;

use super::{
    admin, agent, auth, feed, health, message_query, message_send, openapi,
    problem::{self, Problem},
    session,
    state::App,
};
use crate::domain::{fault::Fault, limits};

/// The service's interface. There is no time-out over all of it: polls are held for long on purpose.
pub fn router(app: App) -> Router {
    // Clients: agents, gateways, admins. The token comes before anything else, the method too.
    let with_token = Router::new()
        .route("/message/query", get(message_query::query).post(message_query::query_post))
        .route("/message/send", post(message_send::send))
        .route("/session/open", post(session::open))
        .route("/session/close", post(session::close))
        .route("/session/release", post(session::release))
        .route("/session/transfer", post(session::transfer))
        .route("/session/list", get(session::list))
        .route("/session/history", get(session::history))
        .route("/feed/status", get(feed::status))
        .route("/agent/presence", post(agent::presence))
        .route("/admin/agent", get(admin::list_agents).post(admin::put_agent))
        .route("/admin/gateway", get(admin::list_gateways).post(admin::put_gateway))
        .route("/admin/token", get(admin::list_tokens).post(admin::create_token))
        .route("/admin/token/revoke", post(admin::revoke_token))
        .route_layer(middleware::from_fn_with_state(app.clone(), auth::require_token));

    // Balancers, monitors, tools.
    let open = Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .route("/openapi.json", get(openapi::openapi));

    with_token
        .merge(open)
        .fallback(no_such_path)
        .layer(middleware::from_fn(problem::method_problems))
        .layer(middleware::from_fn_with_state(app.clone(), admit))
        .layer(middleware::from_fn(measure))
        .layer(CatchPanicLayer::custom(problem::panic_problem))
        .with_state(app)
}

async fn no_such_path() -> Problem {
    Problem(Fault::NoSuchPath)
}

/// Refuses what must not get any further.
async fn admit(State(app): State<App>, request: Request, next: Next) -> Response {
    let path_and_query = request.uri().path_and_query().map_or(0, |text| text.as_str().len());
    if path_and_query > limits::URL_BYTES_MAX {
        let detail = format!(
            "the URL is longer than {} bytes; POST /message/query takes long lists in its body",
            limits::URL_BYTES_MAX
        );
        return Problem(Fault::malformed(detail)).into_response();
    }
    let is_probe = ["/healthz", "/readyz", "/metrics"].contains(&request.uri().path());
    if app.live.bulletin.is_draining() && !is_probe {
        return Problem(Fault::unavailable("the service is stopping; another replica or the next start will answer"))
            .into_response();
    }
    next.run(request).await
}

/// Times requests. Polls are left out: they are slow on purpose.
async fn measure(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = request.method().as_str().to_owned();
    let started = Instant::now();
    let response = next.run(request).await;
    if let Some(route) = route.filter(|route| route != "/message/query") {
        let status = response.status().as_str().to_owned();
        metrics::histogram!(
            "http_server_request_duration_seconds",
            "http_request_method" => method, "http_route" => route, "http_response_status_code" => status
        )
        .record(started.elapsed().as_secs_f64());
    }
    response
}
