//! Where PostgreSQL's programs are: a folder counts when it holds `initdb` and a `postgres` that
//! runs under the server's account.
//!
//! Order: the folder asked for, and then no other; PATH; the places where packages put them,
//! newest first; programs fetched earlier; programs fetched now. A cluster that exists narrows the
//! choice to its own major version.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::account::Account;
use super::error::Error;
use super::fetch::{self, FetchError};

/// The oldest major version the service is tested with.
const OLDEST_MAJOR: u32 = 15;
/// What is fetched for a new cluster.
const FETCHED_MAJOR: u32 = 17;
/// A program on a dead network drive must not hold the start for ever.
const VERSION_MAX: Duration = Duration::from_secs(10);

/// Folder, what comes before the major version, what comes after it.
const PLACES: [(&str, &str, &str); 7] = [
    ("usr/lib/postgresql", "", "bin"),
    ("usr", "pgsql-", "bin"),
    ("usr/libexec", "postgresql", ""),
    ("opt/homebrew/opt", "postgresql@", "bin"),
    ("usr/local/opt", "postgresql@", "bin"),
    ("home/linuxbrew/.linuxbrew/opt", "postgresql@", "bin"),
    ("Applications/Postgres.app/Contents/Versions", "", "bin"),
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    pub bin: PathBuf,
    pub major: u32,
}

pub struct Search<'a> {
    pub account: &'a Account,
    /// DESKFEED_PG_BIN
    pub asked: Option<&'a Path>,
    /// PATH
    pub path: Option<&'a OsStr>,
    /// `/`, but for tests
    pub root: &'a Path,
    /// Where fetched programs are kept.
    pub fetched: &'a Path,
    /// The major version of the cluster there is, and the folder it lies in.
    pub cluster: Option<(u32, &'a Path)>,
}

impl Search<'_> {
    pub async fn run(&self) -> Result<Programs, Error> {
        let mut looked_in = Vec::new();
        for place in self.places() {
            match judge(&place, self.account).await {
                Ok(programs) if self.fits(programs.major) => return Ok(programs),
                Ok(other) => looked_in.push(format!("{}: version {}", place.display(), other.major)),
                Err(why_not) => looked_in.push(format!("{}: {why_not}", place.display())),
            }
        }
        if self.asked.is_some() {
            return Err(self.not_found(looked_in, None));
        }
        let major = self.cluster.map_or(FETCHED_MAJOR, |(major, _)| major);
        match fetch::fetch(major, self.fetched, self.account).await {
            Ok(programs) => Ok(programs),
            Err(error) => Err(self.not_found(looked_in, Some(error))),
        }
    }

    fn fits(&self, major: u32) -> bool {
        match self.cluster {
            Some((need, _)) => major == need,
            None => major >= OLDEST_MAJOR,
        }
    }

    fn places(&self) -> Vec<PathBuf> {
        if let Some(asked) = self.asked {
            return vec![asked.to_owned(), asked.join("bin")];
        }
        let mut places: Vec<PathBuf> = self.path.map(|path| std::env::split_paths(path).collect()).unwrap_or_default();
        places.retain(|place| place.is_absolute() && place.join("postgres").exists());
        places.extend(packaged(self.root));
        places.extend(fetch::kept(self.fetched));
        places
    }

    fn not_found(&self, mut looked_in: Vec<String>, fetch_error: Option<FetchError>) -> Error {
        if self.asked.is_none() {
            looked_in.push("PATH".to_owned());
            looked_in.extend(PLACES.map(|(parent, prefix, bin)| {
                self.root.join(parent).join(format!("{prefix}N")).join(bin).display().to_string()
            }));
            looked_in.push(self.fetched.display().to_string());
        }
        match self.cluster {
            Some((need, folder)) => Error::WrongMajor { folder: folder.to_owned(), need, looked_in, fetch_error },
            None => Error::NoPrograms { looked_in, fetch_error },
        }
    }
}

/// Judges a folder by running its `postgres`; the error says why it doesn't count.
pub async fn judge(folder: &Path, account: &Account) -> Result<Programs, String> {
    let bin = behind_links(folder)?;
    let mut version = account.command(&bin.join("postgres"));
    version.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(VERSION_MAX, version.output())
        .await
        .map_err(|_| "`postgres --version` does not end".to_owned())?
        .map_err(|error| format!("`postgres --version` cannot be run: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    match major_in(&said) {
        Some(major) if output.status.success() => Ok(Programs { bin, major }),
        _ => {
            let complaint = String::from_utf8_lossy(&output.stderr);
            Err(format!("`postgres --version` fails: {}", complaint.trim()))
        }
    }
}

/// Packages put links to `postgres` into PATH without its library files beside them, so the
/// programs are taken from where the link leads, if `initdb` is there too.
fn behind_links(folder: &Path) -> Result<PathBuf, String> {
    let is_whole = |bin: &Path| bin.join("postgres").is_file() && bin.join("initdb").is_file();
    let real = folder.join("postgres").canonicalize().map_err(|_| "no postgres in it".to_owned())?;
    if let Some(bin) = real.parent().filter(|bin| is_whole(bin)) {
        return Ok(bin.to_owned());
    }
    match folder.canonicalize() {
        Ok(bin) if is_whole(&bin) => Ok(bin),
        _ => Err("no initdb in it".to_owned()),
    }
}

/// "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", "... 18beta1": the first number after the name.
fn major_in(version: &str) -> Option<u32> {
    let (_, number) = version.split_once("(PostgreSQL)")?;
    leading_number(number.trim_start())
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

/// The folders packages have made, newest major first.
fn packaged(root: &Path) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for (parent, prefix, bin) in PLACES {
        // Most of the places don't exist on any one system.
        let Ok(entries) = fs::read_dir(root.join(parent)) else {
            continue;
        };
        found.extend(entries.flatten().filter_map(|entry| {
            let major = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((major, entry.path().join(bin)))
        }));
    }
    found.retain(|(_, place)| place.join("postgres").exists());
    found.sort_by_key(|(major, _)| std::cmp::Reverse(*major));
    found.into_iter().map(|(_, place)| place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_major_version_is_read_from_what_postgres_says() {
        assert_eq!(major_in("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(major_in("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(major_in("pg_ctl (something else) 1\n"), None);
    }
}
