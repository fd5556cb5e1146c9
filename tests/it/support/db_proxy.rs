//! A TCP proxy before PostgreSQL, to break the network with.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sqlx::postgres::PgConnectOptions;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

/// What becomes of bytes and connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Connections are accepted and stay open, but nothing gets through in either direction.
    Blackhole,
    /// New connections are closed at once, old ones as well.
    Refuse,
}

/// What becomes of the next COMMIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutCommit {
    /// It reaches the server, its answer does not come back.
    AfterSending,
    /// It never reaches the server.
    BeforeSending,
}

#[derive(Debug)]
struct Shared {
    mode: watch::Sender<Mode>,
    cut: Mutex<Option<CutCommit>>,
    cuts: watch::Sender<u32>,
}

/// A proxy; it ends when this is dropped.
#[derive(Debug)]
pub struct DbProxy {
    /// The database, by way of the proxy.
    pub url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for DbProxy {
    fn drop(&mut self) {
        self.task.abort();
        self.shared.mode.send_replace(Mode::Refuse);
    }
}

impl DbProxy {
    /// A proxy before the database of `url`.
    pub async fn before(url: &str) -> Self {
        let options: PgConnectOptions = url.parse().expect("a URL");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let mut proxied = url::Url::parse(url).expect("a URL");
        proxied.set_query(Some("sslmode=disable"));
        proxied.set_host(Some("127.0.0.1")).expect("a host");
        proxied.set_port(Some(port)).expect("a port");
        let shared = Arc::new(Shared {
            mode: watch::Sender::new(Mode::Pass),
            cut: Mutex::default(),
            cuts: watch::Sender::new(0),
        });
        let task = tokio::spawn(accept(listener, options, Arc::clone(&shared)));
        Self { url: proxied.to_string(), shared, task }
    }

    pub fn set(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
    }

    /// Cuts off all connections there are; new ones pass.
    pub fn cut(&self) {
        self.set(Mode::Refuse);
        self.set(Mode::Pass);
    }

    /// Cuts the connection that sends the next COMMIT of a simple query.
    pub fn cut_next_commit(&self, how: CutCommit) {
        *self.shared.cut.lock().unwrap_or_else(PoisonError::into_inner) = Some(how);
    }

    /// Waits until as many commits as this were cut.
    pub async fn has_cut(&self, commits: u32) {
        let mut cuts = self.shared.cuts.subscribe();
        let cut = timeout(Duration::from_secs(20), cuts.wait_for(|cuts| *cuts >= commits)).await;
        cut.expect("a commit is cut in time").expect("the proxy lives");
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

async fn accept(listener: TcpListener, options: PgConnectOptions, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let (options, shared) = (options.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            let mode = shared.mode.subscribe();
            if *mode.borrow() == Mode::Refuse {
                return;
            }
            let server: Box<dyn Stream> = match options.get_socket() {
                Some(folder) => {
                    let path = folder.join(format!(".s.PGSQL.{}", options.get_port()));
                    match UnixStream::connect(path).await {
                        Ok(server) => Box::new(server),
                        Err(_) => return,
                    }
                }
                None => match TcpStream::connect((options.get_host(), options.get_port())).await {
                    Ok(server) => Box::new(server),
                    Err(_) => return,
                },
            };
            relay(client, server, mode, &shared).await;
        });
    }
}

async fn relay(mut client: TcpStream, mut server: Box<dyn Stream>, mut mode: watch::Receiver<Mode>, shared: &Shared) {
    // Marks what has been, so that `cut` is noticed although it sets the mode back at once.
    mode.mark_unchanged();
    let (mut from_client, mut from_server) = ([0_u8; 16 * 1024], [0_u8; 16 * 1024]);
    loop {
        let passes = *mode.borrow() == Mode::Pass;
        tokio::select! {
            changed = mode.changed() => match changed.map(|()| *mode.borrow_and_update()) {
                Ok(Mode::Blackhole) => {}
                // Whatever was in between, a connection that has stood in the dark is dead.
                _ => return,
            },
            read = client.read(&mut from_client), if passes => {
                let Some(bytes) = read.ok().filter(|count| *count > 0).map(|count| &from_client[..count]) else { return };
                let cut = if is_commit(bytes) { shared.cut.lock().unwrap_or_else(PoisonError::into_inner).take() } else { None };
                if cut != Some(CutCommit::BeforeSending) && server.write_all(bytes).await.is_err() {
                    return;
                }
                if let Some(how) = cut {
                    if how == CutCommit::AfterSending {
                        // The answer is proof that it was done; it is thrown away.
                        let answered = timeout(Duration::from_secs(10), server.read(&mut from_server)).await;
                        assert!(answered.is_ok_and(|read| read.is_ok_and(|count| count > 0)), "the server answers a commit");
                    }
                    shared.cuts.send_modify(|cuts| *cuts += 1);
                    return;
                }
            }
            read = server.read(&mut from_server), if passes => {
                let Some(bytes) = read.ok().filter(|count| *count > 0).map(|count| &from_server[..count]) else { return };
                if client.write_all(bytes).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// A simple query that commits: `Q`, its length, `commit`, 0.
fn is_commit(bytes: &[u8]) -> bool {
    bytes.windows(12).any(|window| window == b"Q\0\0\0\x0bcommit\0")
}
