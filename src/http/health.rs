//! `/healthz`, `/readyz`, `/metrics`.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::header;

use super::{problem::Problem, state::App};
use crate::{domain::fault::Fault, store::schema};

/// The process is alive.
#[utoipa::path(get, path = "/healthz", tag = "around", responses((status = 200, description = "ok")))]
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// PostgreSQL is reachable, the schema is at the right version, the service is not draining.
#[utoipa::path(get, path = "/readyz", tag = "around",
    responses((status = 200, description = "ok"), (status = 503, body = super::wire::ProblemSchema, content_type = "application/problem+json")))]
pub async fn readyz(State(app): State<App>) -> Result<&'static str, Problem> {
    if app.feed.notices.is_draining() {
        return Err(Fault::unavailable("the service is draining").into());
    }
    let state = app.db.read(schema::state).await?;
    if !state.is_usable() {
        return Err(Fault::unavailable(
            "the schema is not at the version that this program needs; see `deskfeed migrate status`",
        )
        .into());
    }
    if !app.freshness.is_in_touch() {
        return Err(Fault::unavailable("the relay has no contact with PostgreSQL").into());
    }
    Ok("ok\n")
}

/// Prometheus metrics.
#[utoipa::path(get, path = "/metrics", tag = "around", responses((status = 200, description = "Prometheus text format")))]
pub async fn metrics(State(app): State<App>) -> Response {
    let (open, idle) = app.db.readers();
    metrics::gauge!("deskfeed_db_pool_connections", "state" => "open").set(f64::from(open));
    metrics::gauge!("deskfeed_db_pool_connections", "state" => "idle").set(u32::try_from(idle).map_or(0.0, f64::from));
    let text = app.metrics.as_ref().map(metrics_exporter_prometheus::PrometheusHandle::render).unwrap_or_default();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
