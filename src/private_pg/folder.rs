//! The data folder: what lies where in it, and the lock that says whose it is.
//!
//! ```text
//! lock           held (flock) by the deskfeed that owns the folder; its pid inside
//! pgdata/        the cluster; exists only complete
//! pgdata.new-*/  a cluster being made; removed by the next start that makes one
//! socket/        the server's socket, when the path is short enough (socket.rs)
//! programs/      fetched programs, one folder per version; each exists only complete
//! postgres.log   what the server says; postgres.log.1 is what it said before
//! ```
//!
//! Under root the folder stays root's (mode 0711) and only `pgdata` and `socket` are given to
//! PostgreSQL's account, so that root never writes where that account could have put a link.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::account::Account;
use super::error::{Error, file};

/// Past this size the log is set aside at a start; two files of it are the most there is at that time.
const LOG_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    lock: File,
}

/// Closing the file is not enough: a child that another thread is just spawning has a copy of it
/// until it runs its program, and the folder would seem in use for that moment.
impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(folder = %self.path.display(), %error, "cannot unlock the data folder");
        }
    }
}

impl Folder {
    /// Makes the folder if it is missing and takes its lock.
    pub fn open(path: &Path, account: &Account) -> Result<Folder, Error> {
        let mode = if account.is_other() { 0o711 } else { 0o700 };
        let is_new = !path.exists();
        DirBuilder::new().recursive(true).mode(mode).create(path).map_err(file("make the folder", path))?;
        // An ordinary user's own folder is left as it is: `pgdata` and `socket` are closed anyway.
        if is_new || account.is_other() {
            fs::set_permissions(path, Permissions::from_mode(mode)).map_err(file("set the mode of", path))?;
        }
        let path = path.canonicalize().map_err(file("find", path))?;
        if is_new {
            sync_parents(&path);
        }
        let lock = lock(&path)?;
        Ok(Folder { path, lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn pgdata(&self) -> PathBuf {
        pgdata(&self.path)
    }

    pub fn programs(&self) -> PathBuf {
        self.path.join("programs")
    }

    pub fn log_path(&self) -> PathBuf {
        self.path.join("postgres.log")
    }

    /// The log, for appending, and where the part begins that is yet to be written.
    pub fn open_log(&self) -> Result<(File, u64), Error> {
        let path = self.log_path();
        if fs::metadata(&path).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
            let former = self.path.join("postgres.log.1");
            fs::rename(&path, former).map_err(file("set aside", &path))?;
        }
        let log = private_file().append(true).open(&path).map_err(file("open", &path))?;
        let length = log.metadata().map_err(file("look at", &path))?.len();
        Ok((log, length))
    }

    /// Makes the names in the folder (a rename, a new file) survive a power cut.
    pub fn sync(&self) -> Result<(), Error> {
        sync_folder(&self.path).map_err(file("sync", &self.path))
    }
}

pub fn pgdata(folder: &Path) -> PathBuf {
    folder.join("pgdata")
}

pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes down the names of a folder that was just made, and of those made above it.
fn sync_parents(path: &Path) {
    for parent in path.ancestors().skip(1) {
        // One we may not read is none that we have made.
        if let Err(error) = sync_folder(parent) {
            tracing::debug!(parent = %parent.display(), %error, "not synced");
        }
    }
}

pub fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("remove", path)(error)),
        _ => Ok(()),
    }
}

fn lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join("lock");
    let mut lock = private_file().read(true).write(true).open(&path).map_err(file("open", &path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Error::InUse { folder: folder.to_owned(), pid: pid_in(&mut lock) });
        }
        Err(TryLockError::Error(source)) => return Err(file("lock", &path)(source)),
    }
    let mut write_pid = || {
        lock.set_len(0)?;
        lock.write_all(std::process::id().to_string().as_bytes())
    };
    write_pid().map_err(file("write", &path))?;
    Ok(lock)
}

/// None when the owner has taken the lock but not yet written its pid.
fn pid_in(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.seek(SeekFrom::Start(0)).ok()?;
    lock.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Ours alone, and never through a link that someone else may have laid.
fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
    options
}
