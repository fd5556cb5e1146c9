//! All routes, on one screen. What comes before each of them is in [`super::front`].

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
};

use axum::{
    Router,
    extract::Request,
    handler::Handler,
    response::Response,
    routing::{MethodRouter, get, post},
};

use super::{
    admin, agent, feed, front::Front, health, message_query, message_send, openapi, problem::Problem, session,
    state::App,
};
use crate::{domain::fault::Fault, live::auth::tokens::Grant};

/// A path, and what it asks for before its handler is called.
pub struct Route {
    pub path: &'static str,
    handlers: Handlers,
    /// Called without axum's routing where there is a token and the method is POST: what is sent all the time.
    pub direct: Option<Direct>,
    pub token: Token,
    /// Held open on purpose: its time says nothing.
    pub is_poll: bool,
    /// Answered even while the service drains.
    pub is_probe: bool,
    /// Times of answers that are 200, of GETs and of POSTs: found once, for they are asked for all the time.
    pub times_of_ok: [OnceLock<metrics::Histogram>; 2],
}

/// Whether a route is for holders of a token only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    Needed,
    NotNeeded,
}

type Handlers = fn() -> MethodRouter<App>;
type Direct = fn(App, Arc<Grant>, Request) -> Pin<Box<dyn Future<Output = Response> + Send>>;

/// How a route is treated.
#[derive(Clone, Copy)]
enum Kind {
    Client,
    Poll,
    Probe,
    Document,
}

const fn route(kind: Kind, path: &'static str, handlers: Handlers) -> Route {
    let token = if matches!(kind, Kind::Client | Kind::Poll) { Token::Needed } else { Token::NotNeeded };
    let (is_poll, is_probe) = (matches!(kind, Kind::Poll), matches!(kind, Kind::Probe));
    Route { path, handlers, direct: None, token, is_poll, is_probe, times_of_ok: [OnceLock::new(), OnceLock::new()] }
}

const fn client(path: &'static str, handlers: Handlers) -> Route {
    route(Kind::Client, path, handlers)
}

const fn direct(path: &'static str, handlers: Handlers, direct: Direct) -> Route {
    let mut route = client(path, handlers);
    route.direct = Some(direct);
    route
}

const fn probe(path: &'static str, handlers: Handlers) -> Route {
    route(Kind::Probe, path, handlers)
}

static ROUTES: [Route; 19] = [
    // Clients: agents, gateways, admins.
    route(Kind::Poll, "/message/query", || get_and_post(message_query::query, message_query::query_post)),
    direct("/message/send", || post_only(message_send::send), message_send::direct),
    client("/session/open", || post_only(session::open)),
    client("/session/close", || post_only(session::close)),
    client("/session/claim", || post_only(session::claim)),
    client("/session/release", || post_only(session::release)),
    client("/session/transfer", || post_only(session::transfer)),
    client("/session/list", || get_only(session::list)),
    client("/session/history", || get_only(session::history)),
    client("/feed/status", || get_only(feed::status)),
    client("/agent/presence", || post_only(agent::presence)),
    client("/admin/agent", || get_and_post(admin::list_agents, admin::put_agent)),
    client("/admin/gateway", || get_and_post(admin::list_gateways, admin::put_gateway)),
    client("/admin/token", || get_and_post(admin::list_tokens, admin::create_token)),
    client("/admin/token/revoke", || post_only(admin::revoke_token)),
    // Balancers, monitors, tools.
    probe("/healthz", || get_only(health::healthz)),
    probe("/readyz", || get_only(health::readyz)),
    probe("/metrics", || get_only(health::metrics)),
    route(Kind::Document, "/openapi.json", || get_only(openapi::openapi)),
];

impl Route {
    /// The route of a path, if there is one.
    pub fn of(path: &str) -> Option<&'static Self> {
        ROUTES.iter().find(|route| route.path == path)
    }
}

/// The service's interface. There is no time-out over all of it: polls are held for long on purpose.
pub fn front(app: App) -> Front {
    let router = ROUTES.iter().fold(Router::new(), |router, route| router.route(route.path, (route.handlers)()));
    Front::new(app.clone(), router.fallback(no_such_path).with_state(app))
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
