//! The private PostgreSQL: started when no `DATABASE_URL` is given, so that trying the service, or
//! running a small desk, takes one command.
//!
//! # What holds
//!
//! - One owner: whoever holds the lock of the data folder starts and stops the server; a second is
//!   told [`Error::InUse`]. `find_running` only looks, and takes nothing.
//! - A cluster exists whole or not at all: it is made beside its place and renamed into it.
//! - Nothing committed is lost by any end of either process: `fsync` is on, a shutdown that hangs
//!   ends in an abort, never in SIGKILL, and what a killed owner left running is adopted.
//! - No TCP. Who may enter the socket's folder (mode 0700: the server's account, and root) is let
//!   in as `deskfeed`.
//! - The server never runs as root, and root never writes where the server's account may.
//!
//! # When it fails
//!
//! Every error says what to do, and the log's last lines are in it. A start that fails or is
//! cancelled stops what it started and can simply be repeated. A [`PrivatePg`] that is dropped
//! without [`PrivatePg::stop`] tells the server to shut down and does not wait for it; the next
//! start does.
//!
//! # States of a folder
//!
//! | `postmaster.pid` | its process | a start |
//! | --- | --- | --- |
//! | absent | – | starts a server |
//! | there | answers | adopts it |
//! | there | is shutting down or recovering | waits, then one of the others |
//! | there | dead, a zombie, or a stranger | starts a server, for 15 s again and again while traces of the old one are in its way |

mod account;
mod cluster;
mod error;
mod fetch;
mod folder;
mod postmaster;
mod programs;
mod server;
mod settings;
mod socket;
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests read the settings that the module must not")]
mod tests;
mod watcher;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::{Connection, PgConnection};

use self::account::Account;
use self::folder::Folder;
use self::postmaster::Postmaster;
use self::programs::{Programs, Search};
use self::server::Server;
use self::socket::{Answer, SocketDir};
use self::watcher::Watcher;

pub use self::error::Error;

/// The name of the database and of the role that owns everything in it.
pub const DATABASE: &str = "deskfeed";
const USER: &str = "deskfeed";

/// What the environment has to say; `config` reads it, this module does not.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `DESKFEED_DATA`: made if it is missing.
    pub folder: PathBuf,
    /// `DESKFEED_PG_BIN`: the folder of `initdb` and `postgres`; no other is tried then.
    pub programs: Option<PathBuf>,
    /// `PATH`: where programs are looked for first.
    pub search_path: Option<OsString>,
    /// `DESKFEED_PG_USER`: the account to run as; read only when we are root.
    pub user: Option<String>,
    /// Settings of the server, over the defaults. Port and socket stay as they are.
    pub settings: Vec<(String, String)>,
    /// Stops the server when this process ends, however it ends: for tests. The service leaves its
    /// server running when it is killed, for the next start to adopt.
    pub stop_with_parent: bool,
}

/// A running server and the lock of its folder. Fields drop in order: the lock last.
#[derive(Debug)]
pub struct PrivatePg {
    server: Server,
    programs: Programs,
    watcher: Option<Watcher>,
    _folder: Folder,
}

impl PrivatePg {
    /// Takes the folder, adopts its server or starts one (making the cluster if there is none), and
    /// makes the database.
    pub async fn start(options: Options) -> Result<PrivatePg, Error> {
        let account = Account::find(options.user.as_deref())?;
        let folder = Folder::open(&options.folder, &account)?;
        let pgdata = folder.pgdata();
        let major = cluster::major(&pgdata)?;
        let search = Search {
            account: &account,
            asked: options.programs.as_deref(),
            path: options.search_path.as_deref(),
            root: Path::new("/"),
            fetched: &folder.programs(),
            cluster: major.map(|major| (major, pgdata.as_path())),
        };
        account.check_reaches(folder.path()).await?;
        let programs = search.run().await?;
        if major.is_none() {
            tracing::info!(pgdata = %pgdata.display(), version = programs.major, "making a database cluster");
            cluster::create(&folder, &programs, &account).await?;
        }

        let server = match adopt(folder.path()).await? {
            Some(server) => server,
            None => {
                account.own_all(&pgdata)?;
                let (server, mut connection) = Server::start(&folder, &programs, &account, &options.settings).await?;
                make_database(&mut connection).await?;
                server
            }
        };
        let watcher = match options.stop_with_parent {
            true => Some(Watcher::spawn(server.pid(), &pgdata, &account)?),
            false => None,
        };
        tracing::info!(
            pid = server.pid(),
            adopted = server.is_adopted(),
            programs = %programs.bin.display(),
            folder = %folder.path().display(),
            "private PostgreSQL is ready"
        );
        Ok(PrivatePg { server, programs, watcher, _folder: folder })
    }

    /// The URL of the database `deskfeed` of a server that another process runs on `folder`; None
    /// when none runs. Takes no lock and stops nothing.
    pub async fn find_running(folder: &Path) -> Result<Option<String>, Error> {
        let Some(found) = Postmaster::of(folder)?.filter(Postmaster::looks_alive) else {
            return Ok(None);
        };
        let Some(dir) = found.socket_dir else {
            return Ok(None);
        };
        let socket = SocketDir::at(dir);
        match socket.call(DATABASE).await {
            Answer::Ready(_) => Ok(Some(socket.url(DATABASE))),
            Answer::Busy | Answer::Silent => Ok(None),
            Answer::Refused(source) => Err(Error::Refused { doing: "to let deskfeed in", source }),
        }
    }

    /// The URL of the database `deskfeed`, for sqlx and psql alike.
    pub fn url(&self) -> String {
        self.url_of(DATABASE)
    }

    pub fn url_of(&self, database: &str) -> String {
        self.server.socket().url(database)
    }

    /// The folder of `initdb` and `postgres`.
    pub fn programs(&self) -> &Path {
        &self.programs.bin
    }

    pub fn pid(&self) -> i32 {
        self.server.pid()
    }

    /// Whether a killed owner had left the server running.
    pub fn adopted(&self) -> bool {
        self.server.is_adopted()
    }

    /// Shuts the server down and returns when it is gone. A shutdown that hangs is turned into an
    /// abort in time for all of it to take `deadline` at most.
    pub async fn stop(self, deadline: Duration) -> Result<(), Error> {
        if let Some(watcher) = self.watcher {
            watcher.dismiss().await;
        }
        self.server.stop(deadline).await
    }
}

/// None also when the server went away just after it had let us in: it was shutting down already.
async fn adopt(folder: &Path) -> Result<Option<Server>, Error> {
    while let Some((server, mut connection)) = Server::adopt(folder).await? {
        match make_database(&mut connection).await {
            Ok(()) => return Ok(Some(server)),
            Err(refused) if connection.ping().await.is_ok() => return Err(refused),
            Err(gone) => tracing::info!(%gone, "the server found is shutting down"),
        }
    }
    Ok(None)
}

async fn make_database(connection: &mut PgConnection) -> Result<(), Error> {
    let refused = |source| Error::Refused { doing: "to make the database", source };
    let made: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = 'deskfeed')")
        .fetch_one(&mut *connection)
        .await
        .map_err(refused)?;
    if !made {
        sqlx::query("CREATE DATABASE deskfeed").execute(connection).await.map_err(refused)?;
    }
    Ok(())
}
