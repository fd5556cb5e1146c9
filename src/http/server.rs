//! Our own accept loop: axum's has no limit on the time a request's head may take.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
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
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    time::sleep,
};

use super::{
    line::{self, Answering, Line},
    patience::Patient,
    unparsed::Explained,
};
use crate::{domain::limits, lifecycle::Lifecycle};

/// What connections are served with.
pub trait Serves:
    Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}

impl<S> Serves for S where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// An address that is ours, at which nobody is let in yet. Who comes before we accept is better refused, and
/// tries again at once, than queued: ten thousand who come back overflow the queue within milliseconds, and
/// those whom it has no room for try again after a second, and then after three.
pub struct Bound {
    socket: Socket,
}

impl Bound {
    /// Takes an address.
    ///
    /// # Errors
    /// When it is not to be had.
    pub fn to(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A port of one's own is taken again while old connections to it linger. A port of the system's choice must
        // not be one that somebody else has taken so.
        socket.set_reuse_address(address.port() != 0)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(Self { socket })
    }

    /// The address, with the port that was given.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// Lets clients in; for [`serve`], at once.
    ///
    /// # Errors
    /// When somebody else listens there meanwhile.
    pub fn listen(self) -> io::Result<TcpListener> {
        self.socket.listen(limits::LISTEN_BACKLOG)?;
        TcpListener::from_std(self.socket.into())
    }
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
    let line = Arc::<Line>::default();
    let mut stream = Explained::new(Patient::new(stream, Arc::clone(&line)));
    // As long as requests leave hyper.
    while let Some((left, answering)) = requests(stream, &service, &line, &lifecycle).await {
        stream = left;
        let answered = tokio::select! {
            response = answering => {
                let closes = lifecycle.stopping().is_cancelled();
                line::write(&mut stream, response, closes).await.map(|()| closes)
            }
            () = poll_fn(|context| stream.get_mut().poll_gone(context)) => return,
            () = lifecycle.ending().cancelled() => return,
        };
        match answered {
            Ok(false) => {}
            Ok(true) => {
                // The client may have gone first.
                drop(stream.shutdown().await);
                return;
            }
            Err(error) => {
                tracing::debug!(error = %error, "a connection ended early");
                return;
            }
        }
    }
}

/// A client's socket, as we hold it.
type Stream = Explained<Patient<TcpStream>>;

/// Lets hyper serve requests until the connection ends, or one of them leaves: that gives the
/// socket back, and what is left to do.
async fn requests<S: Serves>(
    stream: Stream,
    service: &S,
    line: &Arc<Line>,
    lifecycle: &Lifecycle,
) -> Option<(Stream, Answering)> {
    let service = service_fn({
        let (line, service) = (Arc::clone(line), service.clone());
        move |mut request: Request<Incoming>| {
            line.asks();
            request.extensions_mut().insert(Arc::clone(&line));
            service.call(request)
        }
    });
    let mut connection = http1::Builder::new()
        // `Patient` has the limits of time.
        .header_read_timeout(None)
        .max_buf_size(limits::HEAD_BYTES_MAX)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut told_to_end = pin!(told_to_end(lifecycle, line));
    let mut is_ending = false;
    let mut cut = pin!(lifecycle.ending().cancelled());
    let left = loop {
        let step = poll_fn(|context| match Pin::new(&mut connection).poll(context) {
            Poll::Ready(ended) => Poll::Ready(Step::Ended(ended)),
            // Handlers run while hyper is polled, so that is when they leave.
            Poll::Pending => line.left().map_or(Poll::Pending, |answering| Poll::Ready(Step::Left(answering))),
        });
        tokio::select! {
            biased;
            step = step => break step,
            () = told_to_end.as_mut(), if !is_ending => {
                is_ending = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            // Comes after the other, and so need not be looked at before it.
            () = cut.as_mut(), if is_ending => return None,
        }
    };
    match left {
        Step::Left(answering) => {
            let parts = connection.into_parts();
            let mut stream = parts.io.into_inner();
            stream.get_mut().unread(&parts.read_buf);
            Some((stream, answering))
        }
        Step::Ended(ended) => {
            if let Err(error) = ended {
                tracing::debug!(error = %error, "a connection ended early");
            }
            None
        }
    }
}

/// How far hyper has come.
enum Step {
    Ended(hyper::Result<()>),
    Left(Answering),
}

/// Completes when the service stops; later for a connection that has asked for nothing yet: hyper
/// would close it at once, though its first request may be on its way.
async fn told_to_end(lifecycle: &Lifecycle, line: &Line) {
    lifecycle.stopping().cancelled().await;
    if !line.has_asked() {
        sleep(Duration::from_millis(limits::FIRST_REQUEST_MS)).await;
    }
}
