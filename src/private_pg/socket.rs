//! The folder of the server's Unix socket, and how to reach the server through it.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nix::unistd::geteuid;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};

use super::USER;
use super::account::Account;
use super::error::{Error, file};

/// Part of the socket's name only: nothing listens on TCP.
pub const PORT: u16 = 5432;

/// The kernel allows 107 (macOS 103) bytes for a socket's path.
const PATH_BYTES_MAX: usize = 100;

/// A stopped (SIGSTOP) server accepts connections and never answers.
const ANSWER_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct SocketDir(PathBuf);

/// What a server says when it is called.
pub enum Answer {
    Ready(PgConnection),
    /// It is starting, recovering or shutting down.
    Busy,
    /// Nobody answers, or not in time.
    Silent,
    Refused(sqlx::Error),
}

impl SocketDir {
    /// Inside the data folder where the path fits, else a short one under /tmp whose name is derived
    /// from the data folder. A running server records its choice in `postmaster.pid`, which is where
    /// everyone else reads it.
    pub fn make(folder: &Path, account: &Account) -> Result<SocketDir, Error> {
        let inside = folder.join("socket");
        if fits(&inside) {
            make_inside(&inside, account)?;
            return Ok(SocketDir(inside));
        }
        let hash = Sha256::digest(folder.as_os_str().as_encoded_bytes());
        let name = hash[..8].iter().fold(0_u64, |name, byte| name << 8 | u64::from(*byte));
        // Others may have taken a name under /tmp, by chance or to annoy; they won't take them all.
        for attempt in 0..100 {
            let dir = PathBuf::from(format!("/tmp/deskfeed-{name:016x}-{attempt}"));
            if make_outside(&dir, account)? {
                return Ok(SocketDir(dir));
            }
        }
        let taken = io::Error::from(io::ErrorKind::AlreadyExists);
        Err(file("make a socket folder for", folder)(taken))
    }

    pub fn at(path: PathBuf) -> SocketDir {
        SocketDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The port and `sslmode` are named so that PGPORT and PGSSLMODE of our environment don't count.
    pub fn url(&self, database: &str) -> String {
        let dir = self.0.to_string_lossy();
        format!(
            "postgres://{USER}@localhost:{PORT}/{}?host={}&sslmode=disable",
            percent_encoded(database),
            percent_encoded(&dir)
        )
    }

    pub async fn call(&self, database: &str) -> Answer {
        let options = match PgConnectOptions::from_str(&self.url(database)) {
            Ok(options) => options,
            Err(error) => return Answer::Refused(error),
        };
        match tokio::time::timeout(ANSWER_MAX, options.connect()).await {
            Ok(Ok(connection)) => Answer::Ready(connection),
            Ok(Err(error)) => answer_of(error),
            Err(_) => Answer::Silent,
        }
    }

    /// Takes a folder under /tmp away again; one inside the data folder stays for the next start.
    pub fn forget(&self, folder: &Path) {
        if self.0.starts_with(folder) {
            return;
        }
        if let Err(error) = fs::remove_dir(&self.0) {
            tracing::debug!(dir = %self.0.display(), %error, "socket folder stays");
        }
    }
}

fn answer_of(error: sqlx::Error) -> Answer {
    match &error {
        sqlx::Error::Io(_) => Answer::Silent,
        sqlx::Error::Database(said) => match said.code().as_deref() {
            // cannot_connect_now
            Some("57P03") => Answer::Busy,
            // too_many_connections; admin_shutdown, crash_shutdown: it went away while we called;
            // invalid_catalog_name: its owner has yet to make the database
            Some("53300" | "57P01" | "57P02" | "3D000") => Answer::Silent,
            _ => Answer::Refused(error),
        },
        _ => Answer::Refused(error),
    }
}

/// A URL holds text: other paths are as useless as long ones.
fn fits(dir: &Path) -> bool {
    let socket = dir.join(format!(".s.PGSQL.{PORT}"));
    socket.to_str().is_some_and(|path| path.len() <= PATH_BYTES_MAX)
}

fn make_inside(dir: &Path, account: &Account) -> Result<(), Error> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(file("make the folder", dir)(error));
        }
        _ => {}
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(file("set the mode of", dir))?;
    account.own(dir)
}

/// False when someone else has the name.
fn make_outside(dir: &Path, account: &Account) -> Result<bool, Error> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(dir).map_err(file("look at", dir))?;
            let ours = match account {
                Account::Ours => found.uid() == geteuid().as_raw(),
                Account::Other { uid, .. } => [0, *uid].contains(&found.uid()),
            };
            if !(ours && found.is_dir() && found.mode() & 0o077 == 0) {
                return Ok(false);
            }
        }
        Err(error) => return Err(file("make the folder", dir)(error)),
    }
    account.own(dir)?;
    Ok(true)
}

/// Spaces as %20, not +: libpq does not know the latter.
fn percent_encoded(text: &str) -> String {
    const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    utf8_percent_encode(text, KEPT).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_survives_odd_folder_names() {
        let url = SocketDir::at("/data/käse + ü&x".into()).url("a b");
        assert_eq!(
            url,
            "postgres://deskfeed@localhost:5432/a%20b?host=/data/k%C3%A4se%20%2B%20%C3%BC%26x&sslmode=disable"
        );
    }
}
