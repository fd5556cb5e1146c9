//! Settings: flags over environment over defaults. The only reader of the environment, and the
//! place where everything is checked before anything starts.

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf};

use chrono_tz::Tz;
use clap::Args;

use crate::domain::limits;

/// Where the data are.
#[derive(Debug, Clone, Args)]
pub struct DatabaseArgs {
    /// The PostgreSQL to use, as a URL. Unset: a private PostgreSQL under DESKFEED_DATA.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// A file that holds DATABASE_URL (for secrets).
    #[arg(long, env = "DATABASE_URL_FILE")]
    pub database_url_file: Option<PathBuf>,
    /// Folder of the private PostgreSQL [default: ~/.local/share/deskfeed; as root /var/lib/deskfeed].
    #[arg(long, env = "DESKFEED_DATA")]
    pub data: Option<PathBuf>,
    /// Folder of the programs (initdb, postgres) for the private PostgreSQL [default: searched, else fetched].
    #[arg(long, env = "DESKFEED_PG_BIN")]
    pub pg_bin: Option<PathBuf>,
    /// As root: the account that the private PostgreSQL runs as [default: postgres, else nobody].
    #[arg(long, env = "DESKFEED_PG_USER")]
    pub pg_user: Option<String>,
}

/// Settings of the service.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Address to listen on.
    #[arg(long, env = "DESKFEED_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// The first admin token, at least 32 characters.
    #[arg(long, env = "DESKFEED_ADMIN_TOKEN", hide_env_values = true)]
    pub admin_token: Option<String>,
    /// A file that holds the first admin token.
    #[arg(long, env = "DESKFEED_ADMIN_TOKEN_FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// Zone of CreateTime, such as Asia/Shanghai.
    #[arg(long, env = "DESKFEED_TIMEZONE", default_value = "UTC")]
    pub timezone: Tz,
    /// Apply missing migrations to the database of DATABASE_URL before serving.
    #[arg(long, env = "DESKFEED_MIGRATE")]
    pub migrate: bool,
    /// Serve although PostgreSQL's settings would lose acknowledged messages in a crash (1: yes).
    #[arg(long, env = "DESKFEED_ALLOW_UNSAFE", value_parser = clap::builder::BoolishValueParser::new(), default_value = "false", num_args = 0..=1, default_missing_value = "true")]
    pub allow_unsafe: bool,
    /// Polls that one token may hold open at a time.
    #[arg(long, env = "DESKFEED_POLLS_PER_TOKEN", default_value = "1000")]
    pub polls_per_token: usize,
    /// Requests per second that one token may send [default: no limit].
    #[arg(long, env = "DESKFEED_REQUESTS_PER_SECOND")]
    pub requests_per_second: Option<NonZeroU32>,
    /// Most connections for reads; writing and listening take six more. Where pages of history have threads of
    /// their own (DESKFEED_THREADS), they have five of eight of these connections.
    #[arg(long, env = "DESKFEED_DB_READERS", default_value = "8", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub db_readers: u32,
    /// Threads that serve requests [default: as many as the machine has cores; half of them where PostgreSQL
    /// is on the same machine, for it needs the others]. With fewer than cores, as many threads more as there are
    /// cores read pages of history.
    #[arg(long, env = "DESKFEED_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

/// What to log and how.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// What to log: a level, or a filter such as deskfeed=debug,info.
    #[arg(long, env = "DESKFEED_LOG", default_value = "info", global = true)]
    pub log: String,
    /// How to write log lines [default: pretty on a terminal, else json].
    #[arg(long, env = "DESKFEED_LOG_FORMAT", value_parser = ["pretty", "json"], global = true)]
    pub log_format: Option<String>,
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{name}_FILE: the file {} cannot be read", path.display())]
    SecretFile {
        name: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("both {0} and {0}_FILE are set; set one")]
    SetTwice(&'static str),
    #[error(
        "DESKFEED_ADMIN_TOKEN must have at least {} characters; `deskfeed token create --role admin` makes a good one",
        limits::ADMIN_TOKEN_CHARS_MIN
    )]
    ShortAdminToken,
    #[error(
        "there is no folder for the private PostgreSQL: neither DESKFEED_DATA, XDG_DATA_HOME nor HOME is set; set DESKFEED_DATA, or DATABASE_URL to use your own"
    )]
    NoDataFolder,
}

impl DatabaseArgs {
    /// The URL, from wherever it was given.
    ///
    /// # Errors
    /// When it was given twice or its file cannot be read.
    pub fn url(&self) -> Result<Option<String>, ConfigError> {
        secret("DATABASE_URL", self.database_url.as_deref(), self.database_url_file.as_ref())
    }

    /// The folder of the private PostgreSQL.
    ///
    /// # Errors
    /// When nothing says where it is.
    pub fn data_folder(&self) -> Result<PathBuf, ConfigError> {
        if let Some(folder) = &self.data {
            return Ok(folder.clone());
        }
        if nix::unistd::geteuid().is_root() {
            return Ok(PathBuf::from("/var/lib/deskfeed"));
        }
        let base = variable("XDG_DATA_HOME")
            .map(PathBuf::from)
            .or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(default_data_folder())));
        base.map(|base| base.join("deskfeed")).ok_or(ConfigError::NoDataFolder)
    }

    /// How to run the private PostgreSQL in `folder`.
    pub fn private_pg(&self, folder: PathBuf) -> crate::private_pg::Options {
        crate::private_pg::Options {
            folder,
            programs: self.pg_bin.clone(),
            search_path: variable("PATH").map(Into::into),
            user: self.pg_user.clone(),
            settings: Vec::new(),
            stop_with_parent: false,
        }
    }
}

impl ServeArgs {
    /// The settings of a demo's own service: defaults, but for where it is.
    pub fn for_demo(database: DatabaseArgs, listen: SocketAddr) -> Self {
        Self {
            database,
            listen,
            admin_token: None,
            admin_token_file: None,
            timezone: Tz::UTC,
            migrate: false,
            allow_unsafe: false,
            polls_per_token: 1000,
            requests_per_second: None,
            db_readers: 8,
            threads: None,
        }
    }

    /// The configured admin token.
    ///
    /// # Errors
    /// When it is too short, was given twice, or its file cannot be read.
    pub fn admin_token(&self) -> Result<Option<String>, ConfigError> {
        let token = secret("DESKFEED_ADMIN_TOKEN", self.admin_token.as_deref(), self.admin_token_file.as_ref())?;
        match token {
            Some(token) if token.chars().count() < limits::ADMIN_TOKEN_CHARS_MIN => Err(ConfigError::ShortAdminToken),
            other => Ok(other),
        }
    }
}

fn default_data_folder() -> &'static str {
    if cfg!(target_os = "macos") { "Library/Application Support" } else { ".local/share" }
}

/// A secret, from its variable or its file.
///
/// # Errors
/// When it was given twice or its file cannot be read.
pub fn secret(name: &'static str, value: Option<&str>, file: Option<&PathBuf>) -> Result<Option<String>, ConfigError> {
    let value = value.filter(|value| !value.is_empty());
    match (value, file) {
        (Some(_), Some(_)) => Err(ConfigError::SetTwice(name)),
        (Some(value), None) => Ok(Some(value.to_owned())),
        (None, Some(path)) => match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned())),
            Err(source) => Err(ConfigError::SecretFile { name, path: path.clone(), source }),
        },
        (None, None) => Ok(None),
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
