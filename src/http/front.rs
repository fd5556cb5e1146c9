//! What every request passes before its route: whether the service still takes requests, who asks,
//! how long it took, what becomes of a panic and of a body that nobody read.
//!
//! One step instead of a layer for each: a layer of axum's boxes what comes after it, and a parked
//! poll would hold all those boxes.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    panic::AssertUnwindSafe,
    pin::Pin,
};

use axum::{
    Router,
    body::{Body, HttpBody},
    extract::Request,
    response::{IntoResponse, Response},
};
use futures_util::{FutureExt, future::Either};
use http::{Method, StatusCode};
use hyper::{body::Incoming, service::Service as HyperService};
use tokio::time::Instant;
use tower_service::Service as _;

use super::{
    auth,
    leftover::Leftover,
    problem::{self, Problem},
    router::{Route, Token},
    state::App,
};
use crate::domain::{fault::Fault, limits};

/// The service's whole interface.
#[derive(Clone)]
pub struct Front {
    app: App,
    router: Router,
}

impl Front {
    pub fn new(app: App, router: Router) -> Self {
        Self { app, router }
    }

    /// Refuses what must not get any further.
    fn admit(&self, route: Option<&Route>) -> Result<(), Fault> {
        let is_probe = route.is_some_and(|route| route.is_probe);
        if self.app.feed.notices.is_draining() && !is_probe {
            return Err(Fault::unavailable("the service is stopping; another replica or the next start will answer"));
        }
        Ok(())
    }
}

impl HyperService<http::Request<Incoming>> for Front {
    type Response = Response;
    type Error = Infallible;
    type Future =
        Either<Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>, Ready<Result<Response, Infallible>>>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        let started = Instant::now();
        let route = Route::of(request.uri().path());
        let method = label(request.method());
        if let Err(fault) = self.admit(route) {
            let response = Problem(fault).into_response();
            measure(route, method, started, response.status());
            return Either::Right(ready(Ok(response)));
        }
        // A request without a body, as nearly all are, need not carry a box for it.
        let request = request.map(|body| if body.is_end_stream() { Body::empty() } else { Body::new(body) });
        Either::Left(Box::pin(answer(self.clone(), route, method, started, request)))
    }
}

async fn answer(
    front: Front,
    route: Option<&'static Route>,
    method: &'static str,
    started: Instant,
    mut request: Request,
) -> Result<Response, Infallible> {
    let leftover = Leftover::watch(&mut request);
    // Nothing that a panic leaves half done is looked at again: the request ends with it.
    let answered = AssertUnwindSafe(through(front, route, request)).catch_unwind().await;
    let response = answered.unwrap_or_else(problem::panic_problem);
    if let Some(leftover) = leftover {
        Box::pin(leftover.discard()).await;
    }
    measure(route, method, started, response.status());
    Ok(response)
}

/// The token comes before anything else, the method too.
async fn through(mut front: Front, route: Option<&'static Route>, mut request: Request) -> Response {
    if route.is_some_and(|route| route.token == Token::Needed) {
        let grant = match auth::authenticate(&front.app, request.headers()).await {
            Ok(grant) => grant,
            Err(fault) => return Problem(fault).into_response(),
        };
        if let Err(fault) = limit_url(&request) {
            return Problem(fault).into_response();
        }
        if let Some(direct) = route.and_then(|route| route.direct).filter(|_| request.method() == Method::POST) {
            return direct(front.app, grant, request).await;
        }
        request.extensions_mut().insert(grant);
    }
    match front.router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Refuses a URL that is too long. Only of somebody whose token was found good.
fn limit_url(request: &Request) -> Result<(), Fault> {
    let path_and_query = request.uri().path_and_query().map_or(0, |text| text.as_str().len());
    if path_and_query > limits::URL_BYTES_MAX {
        let detail = format!(
            "the URL is longer than {} bytes; POST /message/query takes long lists in its body",
            limits::URL_BYTES_MAX
        );
        return Err(Fault::malformed(detail));
    }
    Ok(())
}

/// Times requests. Polls are left out: they are slow on purpose.
fn measure(route: Option<&'static Route>, method: &'static str, started: Instant, status: StatusCode) {
    let Some(route) = route.filter(|route| !route.is_poll) else { return };
    let histogram = || {
        metrics::histogram!(
            "http_server_request_duration_seconds",
            "http_request_method" => method, "http_route" => route.path,
            "http_response_status_code" => status.as_str().to_owned()
        )
    };
    let seconds = started.elapsed().as_secs_f64();
    match (method, status) {
        ("GET", StatusCode::OK) => route.times_of_ok[0].get_or_init(histogram).record(seconds),
        ("POST", StatusCode::OK) => route.times_of_ok[1].get_or_init(histogram).record(seconds),
        _ => histogram().record(seconds),
    }
}

/// As OpenTelemetry names methods: one that is not known is not repeated, for there is no end of them.
fn label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        _ => "_OTHER",
    }
}
