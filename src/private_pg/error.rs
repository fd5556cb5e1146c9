//! What can go wrong with the private PostgreSQL, in words that say what to do next.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::fetch::FetchError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "another deskfeed ({}) uses {}; stop it, or set DESKFEED_DATA to another folder",
        Process(*.pid), .folder.display()
    )]
    InUse { folder: PathBuf, pid: Option<u32> },

    #[error("no PostgreSQL programs (initdb, postgres) found{}\n{INSTALL}", Search(.looked_in, .fetch_error.as_ref()))]
    NoPrograms {
        looked_in: Vec<String>,
        /// None when nothing was fetched because DESKFEED_PG_BIN named the folder.
        fetch_error: Option<FetchError>,
    },

    #[error(
        "the data in {} were written by PostgreSQL {need}, and only that major version can read them{}\n\
         Install PostgreSQL {need} beside the others, or set DESKFEED_PG_BIN to the folder of its programs",
        .folder.display(), Search(.looked_in, .fetch_error.as_ref())
    )]
    WrongMajor { folder: PathBuf, need: u32, looked_in: Vec<String>, fetch_error: Option<FetchError> },

    #[error(
        "PostgreSQL does not run as root, and there is no account to run it as (tried {}); \
         set DESKFEED_PG_USER to an unprivileged account, start deskfeed as one, or set DATABASE_URL",
        .tried.join(", ")
    )]
    NoUnprivilegedUser { tried: Vec<String> },

    #[error(
        "the account {account}, which PostgreSQL runs as, cannot reach {}: a folder above it is closed to others; \
         set DESKFEED_DATA to a folder all of whose parents others may enter, such as /var/lib/deskfeed",
        .folder.display()
    )]
    Unreachable { folder: PathBuf, account: String },

    #[error("cannot {doing} {}", .path.display())]
    File {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    /// A program of PostgreSQL said no; `log_tail` is what it said last.
    #[error("{what}; the last lines of {}:\n{log_tail}", .log.display())]
    Failed { what: String, log: PathBuf, log_tail: String },

    #[error("the private PostgreSQL refused: {doing}")]
    Refused {
        doing: &'static str,
        #[source]
        source: sqlx::Error,
    },

    #[error(
        "PostgreSQL (pid {pid}) did not stop in time; it was told to abort, and its next start recovers what was committed"
    )]
    StillRunning { pid: i32 },
}

const INSTALL: &str = "\
Install them:
  Debian, Ubuntu   apt-get install postgresql
  Fedora, RHEL     dnf install postgresql-server
  Alpine           apk add postgresql
  macOS            brew install postgresql@17
or set DESKFEED_PG_BIN to the folder that holds them, or DATABASE_URL to a server that runs already";

/// For `map_err`: names the file an I/O error is about.
pub fn file<P: AsRef<Path>>(doing: &'static str, path: P) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File { doing, path: path.as_ref().to_owned(), source }
}

struct Process(Option<u32>);

impl fmt::Display for Process {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(pid) => write!(out, "pid {pid}"),
            None => out.write_str("pid unknown"),
        }
    }
}

/// Where programs were looked for, and why none could be fetched.
struct Search<'a>(&'a [String], Option<&'a FetchError>);

impl fmt::Display for Search<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(". Looked in:")?;
        for place in self.0 {
            write!(out, "\n  {place}")?;
        }
        match self.1 {
            Some(error) => write!(out, "\nFetching them failed: {error}"),
            None => Ok(()),
        }
    }
}
