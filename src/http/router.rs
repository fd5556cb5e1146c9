//! All routes, on one screen.

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    handler::Handler,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use tokio::time::Instant;
use tower_http::catch_panic::CatchPanicLayer;

use super::{
    admin, agent, auth, feed, health, leftover, message_query, message_send, openapi,
    problem::{self, Problem},
    session,
    state::App,
};
use crate::domain::{fault::Fault, limits};

/// The service's interface. There is no time-out over all of it: polls are held for long on purpose.
pub fn router(app: App) -> Router {
    // Clients: agents, gateways, admins. The token comes before anything else, the method too.
    let with_token = Router::new()
        .route("/message/query", get_and_post(message_query::query, message_query::query_post))
        .route("/message/send", post_only(message_send::send))
        .route("/session/open", post_only(session::open))
        .route("/session/close", post_only(session::close))
        .route("/session/release", post_only(session::release))
        .route("/session/transfer", post_only(session::transfer))
        .route("/session/list", get_only(session::list))
        .route("/session/history", get_only(session::history))
        .route("/feed/status", get_only(feed::status))
        .route("/agent/presence", post_only(agent::presence))
        .route("/admin/agent", get_and_post(admin::list_agents, admin::put_agent))
        .route("/admin/gateway", get_and_post(admin::list_gateways, admin::put_gateway))
        .route("/admin/token", get_and_post(admin::list_tokens, admin::create_token))
        .route("/admin/token/revoke", post_only(admin::revoke_token))
        .route_layer(middleware::from_fn(limit_url))
        .route_layer(middleware::from_fn_with_state(app.clone(), auth::require_token));

    // Balancers, monitors, tools.
    let open = Router::new()
        .route("/healthz", get_only(health::healthz))
        .route("/readyz", get_only(health::readyz))
        .route("/metrics", get_only(health::metrics))
        .route("/openapi.json", get_only(openapi::openapi));

    with_token
        .merge(open)
        .fallback(no_such_path)
        .layer(middleware::from_fn_with_state(app.clone(), admit))
        .layer(middleware::from_fn(measure))
        .layer(middleware::from_fn(leftover::discard))
        .layer(CatchPanicLayer::custom(problem::panic_problem))
        .with_state(app)
}

/// axum's own answer to a wrong method is not a problem object.
fn get_only<H: Handler<T, App>, T: 'static>(handler: H) -> MethodRouter<App> {
    get(handler).fallback(|| wrong_method("GET, HEAD"))
}

fn post_only<H: Handler<T, App>, T: 'static>(handler: H) -> MethodRouter<App> {
    post(handler).fallback(|| wrong_method("POST"))
}

fn get_and_post<G: Handler<T, App>, T: 'static, P: Handler<U, App>, U: 'static>(
    reads: G,
    writes: P,
) -> MethodRouter<App> {
    get(reads).post(writes).fallback(|| wrong_method("GET, HEAD, POST"))
}

fn wrong_method(allow: &'static str) -> std::future::Ready<Problem> {
    std::future::ready(Problem(Fault::WrongMethod(allow.to_owned())))
}

async fn no_such_path() -> Problem {
    Problem(Fault::NoSuchPath)
}

/// Refuses what must not get any further.
async fn admit(State(app): State<App>, request: Request, next: Next) -> Response {
    let is_probe = ["/healthz", "/readyz", "/metrics"].contains(&request.uri().path());
    if app.live.bulletin.is_draining() && !is_probe {
        return Problem(Fault::unavailable("the service is stopping; another replica or the next start will answer"))
            .into_response();
    }
    next.run(request).await
}

/// Refuses a URL that is too long. Runs after the token was found good, which comes before all else.
async fn limit_url(request: Request, next: Next) -> Response {
    let path_and_query = request.uri().path_and_query().map_or(0, |text| text.as_str().len());
    if path_and_query > limits::URL_BYTES_MAX {
        let detail = format!(
            "the URL is longer than {} bytes; POST /message/query takes long lists in its body",
            limits::URL_BYTES_MAX
        );
        return Problem(Fault::malformed(detail)).into_response();
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
