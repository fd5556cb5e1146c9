//! Our own accept loop: axum's has no limit on the time a request's head may take.

use std::{io, net::SocketAddr, pin::pin, time::Duration};

use axum::Router;
use futures_util::FutureExt;
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};

use super::{patience::Patient, unparsed::Explained};
use crate::{domain::limits, lifecycle::Lifecycle};

/// Opens the listening socket, with a long queue: ten thousand clients may come back at once.
///
/// # Errors
/// When the address is not to be had.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(limits::LISTEN_BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts and serves connections until the lifecycle's `stopping`; its `ending` cuts what is left.
pub async fn serve(listener: TcpListener, router: Router, lifecycle: Lifecycle) {
    loop {
        let accepted = tokio::select! {
            () = lifecycle.stopping().cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => lifecycle.spawn_brief(connection(stream, router.clone(), lifecycle.clone())),
            Err(error) => {
                // Out of file descriptors, mostly: it passes when connections end.
                tracing::warn!(error = %error, "a connection could not be accepted; raise the limit of open files (ulimit -n) if this goes on");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
    accept_waiting(&listener, &router, &lifecycle);
}

/// Takes those who had connected already when the listener was told to stop: closing it would reset
/// them, and a balancer cannot repeat their requests. They are told to come back.
fn accept_waiting(listener: &TcpListener, router: &Router, lifecycle: &Lifecycle) {
    while let Some(Ok((stream, _))) = listener.accept().now_or_never() {
        lifecycle.spawn_brief(connection(stream, router.clone(), lifecycle.clone()));
    }
}

async fn connection(stream: TcpStream, router: Router, lifecycle: Lifecycle) {
    // Without it the last part of an answer waits for the client's delayed acknowledgement.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let io = TokioIo::new(Explained::new(Patient::new(stream)));
    let connection = http1::Builder::new()
        // `Patient` has the limits of time.
        .header_read_timeout(None)
        .max_buf_size(limits::HEAD_BYTES_MAX)
        .half_close(false)
        .serve_connection(io, TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = lifecycle.stopping().cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = lifecycle.ending().cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = %error, "a connection ended early");
    }
}
