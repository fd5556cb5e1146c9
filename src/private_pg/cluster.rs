//! The cluster on disk: made whole or not at all.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::USER;
use super::account::Account;
use super::error::{Error, file};
use super::folder::{Folder, remove_tree};
use super::programs::Programs;

/// `--locale=C` and no ICU, so that every build of one major version reads the same cluster;
/// checksums, so that a broken disk is noticed; trust, because there is only a socket in a closed
/// folder, and scram for TCP, in case someone opens that.
const INITDB: [&str; 6] =
    ["--username", USER, "--encoding=UTF8", "--locale=C", "--data-checksums", "--auth-local=trust"];

/// The major version that wrote the cluster, or None when there is none yet.
pub fn major(pgdata: &Path) -> Result<Option<u32>, Error> {
    let path = pgdata.join("PG_VERSION");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !pgdata.exists() => {
            return Ok(None);
        }
        Err(error) => return Err(file("read", &path)(error)),
    };
    match text.trim().parse() {
        Ok(major) => Ok(Some(major)),
        Err(error) => Err(file("understand", &path)(io::Error::new(io::ErrorKind::InvalidData, error))),
    }
}

/// initdb syncs what it makes; the rename is ours to sync.
pub async fn create(folder: &Folder, programs: &Programs, account: &Account) -> Result<(), Error> {
    remove_unfinished(folder.path())?;
    let unfinished = make_unfinished(folder.path())?;
    account.own(&unfinished)?;

    let initdb = programs.bin.join("initdb");
    let output = account
        .command(&initdb)
        .args(INITDB)
        .arg("--auth-host=scram-sha-256")
        .arg("--pgdata")
        .arg(&unfinished)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(file("run", &initdb))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        return Err(Error::Failed {
            what: "initdb could not make a database cluster".to_owned(),
            log: initdb,
            log_tail: tail(&String::from_utf8_lossy(&said)),
        });
    }

    let pgdata = folder.pgdata();
    fs::rename(&unfinished, &pgdata).map_err(file("rename to", &pgdata))?;
    folder.sync()
}

const UNFINISHED: &str = "pgdata.new";

/// Made by us, because under root the account may not make folders in ours; and under a new name,
/// because the initdb of a killed owner may still be writing to the one before.
fn make_unfinished(folder: &Path) -> Result<PathBuf, Error> {
    let mut attempt = 0;
    loop {
        let path = folder.join(format!("{UNFINISHED}-{}-{attempt}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => attempt += 1,
            Err(error) => return Err(file("make the folder", &path)(error)),
        }
    }
}

fn remove_unfinished(folder: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(file("list", folder))? {
        let entry = entry.map_err(file("list", folder))?;
        if !entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            continue;
        }
        // It is only in the way of the disk's free space.
        if let Err(error) = remove_tree(&entry.path()) {
            tracing::warn!(%error, "an unfinished database cluster stays");
        }
    }
    Ok(())
}

/// The last 20 lines.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
