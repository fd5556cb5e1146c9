//! The server of the yardsticks, a separate process like the service: a route that only answers `ok`, and naive ways to
//! store messages.

use std::{net::SocketAddr, process::ExitCode};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use clap::Args;
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use serde::Deserialize;
use serde_json::json;
use sqlx::{PgPool, postgres::PgListener};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

use super::{naive::Naive, tables};

/// Connections to PostgreSQL.
const CONNECTIONS: u32 = 32;
/// The service's own: thousands connect at once.
const BACKLOG: u32 = 4096;

#[derive(Debug, Args)]
pub struct ServerArgs {
    /// Without it only `/ok` is served.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "Content")]
    content: String,
}

/// Runs the server until SIGTERM.
///
/// # Errors
/// When the database cannot be reached.
pub async fn run(args: &ServerArgs) -> anyhow::Result<ExitCode> {
    let mut router = Router::new().route("/ok", get(async || "ok").post(async || "ok"));
    // One connection listens, as in production.
    let mut listener = None;
    let mut naive = None;
    if let Some(url) = &args.database_url {
        tables::prepare(&mut tables::connect(url).await?).await?;
        listener = Some(tables::listen(url).await?);
        let pool = tables::pool(url, CONNECTIONS)?;
        let desk = Naive::on(pool.clone());
        let writing = Router::new().route("/naive", post(insert_and_notify)).route("/single", post(insert));
        router = router.merge(writing.with_state(pool)).merge(desk.router());
        naive = Some((desk, tables::listen_to_feeds(url).await?));
    }
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let socket = socket.listen(BACKLOG)?;
    let mut terminate = signal(SignalKind::terminate())?;
    println!("yardsticks at http://{}", socket.local_addr()?);
    tokio::select! {
        _ = terminate.recv() => Ok(ExitCode::SUCCESS),
        ended = serve(socket, router) => ended,
        ended = discard(listener.as_mut()) => ended,
        ended = wake(naive) => ended,
    }
}

async fn serve(listener: TcpListener, router: Router) -> anyhow::Result<ExitCode> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                connections.spawn(connection(stream, TowerToHyperService::new(router.clone())));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, service: TowerToHyperService<Router>) {
    // Without it, the last part of an answer waits for the client's delayed acknowledgement.
    if stream.set_nodelay(true).is_ok() {
        // Connections end when their clients go.
        drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
    }
}

async fn discard(listener: Option<&mut PgListener>) -> anyhow::Result<ExitCode> {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        listener.recv().await?;
    }
}

async fn wake(naive: Option<(Naive, PgListener)>) -> anyhow::Result<ExitCode> {
    let Some((naive, mut listener)) = naive else { return std::future::pending().await };
    loop {
        naive.wake(listener.recv().await?.payload());
    }
}

async fn insert_and_notify(State(pool): State<PgPool>, Json(message): Json<Message>) -> Response {
    let kept = async { tables::insert_and_notify(&mut *pool.acquire().await?, &message.content).await };
    answer(kept.await)
}

async fn insert(State(pool): State<PgPool>, Json(message): Json<Message>) -> Response {
    let kept = async { tables::insert(&mut *pool.acquire().await?, &message.content).await };
    answer(kept.await)
}

/// The answer to a message.
pub(super) fn answer(kept: tables::Result<i64>) -> Response {
    match kept {
        Ok(version) => Json(json!({"Version": version})).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
