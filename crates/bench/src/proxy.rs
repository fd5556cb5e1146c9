//! A TCP proxy in front of a Unix socket that keeps every byte back for half of a round trip in each direction.
//! Chunks are queued with the moment at which each is due, so a distance costs latency and not throughput. The timer
//! is the kernel's (`timerfd`, tens of microseconds): the runtime's has a grain of 1 ms.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, unix::AsyncFd},
    net::{TcpListener, TcpStream, UnixStream},
    runtime,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// Bytes read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// Bytes in flight in one direction of one connection, after which the sender has to wait, as with a full window.
const IN_FLIGHT_MAX: usize = 8 << 20;

/// A running proxy; it stops when this is dropped.
pub struct Proxy {
    address: SocketAddr,
    stop: CancellationToken,
}

impl Proxy {
    /// Listens on a port of its own. Connections lead to `socket`, which is so far away.
    ///
    /// # Errors
    /// When no port or thread is available.
    pub fn start(socket: PathBuf, round_trip: Duration) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        // A thread of its own: what waits for a due moment must not queue behind senders and readers.
        let run = move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = stopped.cancelled() => {}
                    ended = accept(listener, &socket, round_trip / 2) => {
                        if let Err(error) = ended {
                            tracing::warn!(%error, "the proxy has stopped");
                        }
                    }
                }
            });
        };
        drop(thread::Builder::new().name("proxy".to_owned()).spawn(run).context("the proxy's thread")?);
        Ok(Self { address, stop })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(listener: std::net::TcpListener, socket: &Path, delay: Duration) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                connections.spawn(connection(accepted?.0, socket.to_owned(), delay));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(client: TcpStream, socket: PathBuf, delay: Duration) -> io::Result<()> {
    client.set_nodelay(true)?;
    let server = UnixStream::connect(socket).await?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::try_join!(carry(from_client, to_server, delay), carry(from_server, to_client, delay))?;
    Ok(())
}

/// Carries one direction to its end.
async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, delay: Duration) -> io::Result<()> {
    let timer = Timer::new()?;
    let mut buffer = vec![0; CHUNK_BYTES];
    // Due moment and bytes; empty bytes are the end.
    let mut queue: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let (mut in_flight, mut has_ended) = (0, false);
    loop {
        tokio::select! {
            biased;
            fired = timer.fired(), if !queue.is_empty() => {
                fired?;
                while let Some((due, bytes)) = queue.front() {
                    if *due > Instant::now() {
                        break;
                    }
                    if bytes.is_empty() {
                        return to.shutdown().await;
                    }
                    to.write_all(bytes).await?;
                    in_flight -= bytes.len();
                    queue.pop_front();
                }
                if let Some((due, _)) = queue.front() {
                    timer.set(*due)?;
                }
            }
            read = from.read(&mut buffer), if !has_ended && in_flight < IN_FLIGHT_MAX => {
                let due = Instant::now() + delay;
                let bytes = buffer[..read?].to_vec();
                has_ended = bytes.is_empty();
                in_flight += bytes.len();
                if queue.is_empty() {
                    timer.set(due)?;
                }
                queue.push_back((due, bytes));
            }
        }
    }
}

/// A timer of the kernel's.
struct Timer {
    timer: TimerFd,
    events: AsyncFd<OwnedFd>,
}

impl Timer {
    #[expect(deprecated, reason = "the replacement is unsafe; the AsyncFd owns this descriptor, so it stays open")]
    fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let events = AsyncFd::new(timer.as_fd().try_clone_to_owned()?)?;
        Ok(Self { timer, events })
    }

    fn set(&self, due: Instant) -> io::Result<()> {
        // Zero would disarm it.
        let left = due.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        Ok(self.timer.set(Expiration::OneShot(TimeSpec::from_duration(left)), TimerSetTimeFlags::empty())?)
    }

    async fn fired(&self) -> io::Result<()> {
        loop {
            let mut ready = self.events.readable().await?;
            let read = ready.try_io(|events| Ok(nix::unistd::read(events.get_ref(), &mut [0; 8])?));
            if let Ok(read) = read {
                read?;
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn what_passes_is_late_by_the_round_trip_and_whole() {
        let path = std::env::temp_dir().join(format!("deskfeed-proxy-{}", uuid::Uuid::new_v4().simple()));
        let listener = UnixListener::bind(&path).unwrap();
        let echo = async {
            let (stream, _) = listener.accept().await.unwrap();
            let (mut from, mut to) = stream.into_split();
            tokio::io::copy(&mut from, &mut to).await.unwrap();
            to.shutdown().await.unwrap();
        };
        let round_trip = Duration::from_millis(20);
        let proxy = Proxy::start(path.clone(), round_trip).unwrap();
        let client = async {
            let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
            for _ in 0..3 {
                let started = Instant::now();
                stream.write_all(b"ping").await.unwrap();
                stream.read_exact(&mut [0; 4]).await.unwrap();
                assert!(started.elapsed() >= round_trip);
            }
            // A stream is not slowed down chunk by chunk: this would take minutes.
            let sent: Vec<u8> = (0..10_u32 << 20).map(|at| at.to_le_bytes()[1]).collect();
            let (mut from, mut to) = stream.into_split();
            let mut received = Vec::new();
            let (written, read) = tokio::join!(
                async {
                    to.write_all(&sent).await?;
                    to.shutdown().await
                },
                from.read_to_end(&mut received)
            );
            written.unwrap();
            read.unwrap();
            assert!(received == sent);
        };
        tokio::join!(echo, client);
        std::fs::remove_file(path).unwrap();
    }
}
