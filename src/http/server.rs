//! Our own accept loop: axum's has no limit on the time a request's head may take.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::response::Response;
use http::Request;
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};

use super::{patience::Patient, unparsed::Explained};
use crate::{domain::limits, lifecycle::Lifecycle};

/// What connections are served with.
pub trait Serves:
    Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}

impl<S> Serves for S where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}

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
pub async fn serve<S: Serves>(listener: TcpListener, service: S, lifecycle: Lifecycle) {
    loop {
        let accepted = tokio::select! {
            () = lifecycle.stopping().cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => lifecycle.spawn_brief(connection(stream, service.clone(), lifecycle.clone())),
            Err(error) => {
                // Out of file descriptors, mostly: it passes when connections end.
                tracing::warn!(error = %error, "a connection could not be accepted; raise the limit of open files (ulimit -n) if this goes on");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
    accept_waiting(listener, &service, &lifecycle);
}

/// Takes those who had connected already when the listener was told to stop: closing it would reset
/// them, and a balancer cannot repeat their requests. They are told to come back.
fn accept_waiting<S: Serves>(listener: TcpListener, service: &S, lifecycle: &Lifecycle) {
    // Asks the system: the runtime knows only of those who came before it last looked.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, _)) = listener.accept() {
        if stream.set_nonblocking(true).is_ok()
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            lifecycle.spawn_brief(connection(stream, service.clone(), lifecycle.clone()));
        }
    }
}

async fn connection<S: Serves>(stream: TcpStream, service: S, lifecycle: Lifecycle) {
    // Without it the last part of an answer waits for the client's delayed acknowledgement.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let io = TokioIo::new(Explained::new(Patient::new(stream)));
    let has_asked = Arc::new(AtomicBool::new(false));
    let service = service_fn({
        let has_asked = Arc::clone(&has_asked);
        move |request| {
            has_asked.store(true, Ordering::Relaxed);
            service.call(request)
        }
    });
    let connection = http1::Builder::new()
        // `Patient` has the limits of time.
        .header_read_timeout(None)
        .max_buf_size(limits::HEAD_BYTES_MAX)
        .half_close(false)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = told_to_end(&lifecycle, &has_asked) => {
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

/// Completes when the service stops; later for a connection that has asked for nothing yet: hyper
/// would close it at once, though its first request may be on its way.
async fn told_to_end(lifecycle: &Lifecycle, has_asked: &AtomicBool) {
    lifecycle.stopping().cancelled().await;
    if !has_asked.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(limits::FIRST_REQUEST_MS)).await;
    }
}
