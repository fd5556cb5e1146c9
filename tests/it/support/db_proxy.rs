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
    /// As `Blackhole`, for the connections that LISTEN only.
    BlackholeListeners,
    /// New connections are closed at once, old ones as well.
    Refuse,
}

/// What becomes of the next COMMIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// It reaches the server; the connection is cut before the answer comes back.
    AnswerIsCut,
    /// It never reaches the server; the connection is cut.
    IsCut,
    /// It never reaches the server; the connection stays.
    IsSwallowed,
}

#[derive(Debug)]
struct Shared {
    mode: watch::Sender<Mode>,
    commit: Mutex<Option<Commit>>,
    /// Commits that something became of.
    commits: watch::Sender<u32>,
    /// Connections that came to LISTEN.
    listeners: watch::Sender<u32>,
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
        self.set(Mode::Refuse);
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
            commit: Mutex::default(),
            commits: watch::Sender::new(0),
            listeners: watch::Sender::new(0),
        });
        let task = tokio::spawn(accept(listener, options, Arc::clone(&shared)));
        Self { url: proxied.to_string(), shared, task }
    }

    pub fn set(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
    }

    /// Decides about the next COMMIT that comes as a simple query, or the next append that commits by itself.
    pub fn at_next_commit(&self, what: Commit) {
        *self.shared.commit.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
    }

    /// Waits until something has become of as many commits as this.
    pub async fn has_met_commits(&self, count: u32) {
        reaches(&self.shared.commits, count).await;
    }

    /// How many connections came to LISTEN.
    pub fn listeners(&self) -> u32 {
        *self.shared.listeners.borrow()
    }

    /// Waits until as many connections as this came to LISTEN.
    pub async fn has_met_listeners(&self, count: u32) {
        reaches(&self.shared.listeners, count).await;
    }
}

async fn reaches(counter: &watch::Sender<u32>, count: u32) {
    let mut counter = counter.subscribe();
    let reached = timeout(Duration::from_secs(40), counter.wait_for(|counted| *counted >= count)).await;
    reached.expect("it happens in time").expect("the proxy lives");
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
            Box::pin(relay(client, server, mode, &shared)).await;
        });
    }
}

async fn relay(mut client: TcpStream, mut server: Box<dyn Stream>, mut mode: watch::Receiver<Mode>, shared: &Shared) {
    let (mut from_client, mut from_server) = ([0_u8; 16 * 1024], [0_u8; 16 * 1024]);
    // The first thing that a client says is its name.
    let Ok(first @ 1..) = client.read(&mut from_client).await else { return };
    let listens = has(&from_client[..first], b"deskfeed/listens");
    if listens {
        shared.listeners.send_modify(|count| *count += 1);
    }
    let is_dark = |mode| mode == Mode::Blackhole || mode == Mode::BlackholeListeners && listens;
    let mut dark = is_dark(*mode.borrow_and_update());
    let mut appends = Appends::default();
    if !dark && server.write_all(&from_client[..first]).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            changed = mode.changed() => {
                let now = *mode.borrow_and_update();
                // What has stood in the dark never comes back to life.
                if changed.is_err() || now == Mode::Refuse || dark && !is_dark(now) {
                    return;
                }
                dark = is_dark(now);
            }
            read = client.read(&mut from_client), if !dark => {
                let Ok(count @ 1..) = read else { return };
                let bytes = &from_client[..count];
                let what = if appends.commits(bytes) { shared.commit.lock().unwrap_or_else(PoisonError::into_inner).take() } else { None };
                if matches!(what, None | Some(Commit::AnswerIsCut)) && server.write_all(bytes).await.is_err() {
                    return;
                }
                if what == Some(Commit::AnswerIsCut) {
                    // The answer is proof that it was done; it is thrown away.
                    let answered = timeout(Duration::from_secs(10), server.read(&mut from_server)).await;
                    assert!(matches!(answered, Ok(Ok(1..))), "the server answers a commit");
                }
                if what.is_some() {
                    shared.commits.send_modify(|count| *count += 1);
                }
                if what.is_some_and(|what| what != Commit::IsSwallowed) {
                    return;
                }
            }
            read = server.read(&mut from_server), if !dark => {
                let Ok(count @ 1..) = read else { return };
                if client.write_all(&from_server[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Tells which messages of a connection commit something.
#[derive(Default)]
struct Appends {
    /// Name of the prepared statement that appends.
    statement: Option<Vec<u8>>,
    in_transaction: bool,
}

impl Appends {
    fn commits(&mut self, bytes: &[u8]) -> bool {
        // Parse: `P`, its length, the statement's name, 0, its text.
        const TEXT: &[u8] = b"/* appends.write */";
        if let Some(text) = bytes.windows(TEXT.len()).position(|window| window == TEXT) {
            let parse = bytes[..text].iter().rposition(|byte| *byte == b'P').expect("a Parse message");
            self.statement = Some(bytes[parse + 5..text].to_vec());
        }
        if has(bytes, b"begin; lock table") {
            self.in_transaction = true;
        }
        // A simple query: `Q`, its length, `commit`, 0.
        if has(bytes, b"Q\0\0\0\x0bcommit\0") {
            self.in_transaction = false;
            return true;
        }
        // Bind: `B`, its length, an unnamed portal's 0, the statement's name, 0.
        !self.in_transaction
            && bytes.first() == Some(&b'B')
            && self.statement.as_ref().is_some_and(|name| bytes.get(6..6 + name.len()) == Some(name.as_slice()))
    }
}

fn has(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
