//! The account the server runs as: PostgreSQL refuses to run as root.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::Path;

use nix::unistd::{User, geteuid};
use tokio::process::Command;

use super::error::{Error, file};

/// Tried in this order when root names nobody: Debian's and Red Hat's packages make the first,
/// every system has the second.
const UNPRIVILEGED: [&str; 2] = ["postgres", "nobody"];

#[derive(Debug, Clone)]
pub enum Account {
    /// We are an ordinary user, and so is the server.
    Ours,
    /// We are root, the server is not.
    Other { name: String, uid: u32, gid: u32 },
}

impl Account {
    pub fn find(asked: Option<&str>) -> Result<Account, Error> {
        if !geteuid().is_root() {
            return Ok(Account::Ours);
        }
        let names = match &asked {
            Some(name) => std::slice::from_ref(name),
            None => &UNPRIVILEGED[..],
        };
        for name in names {
            // An account that cannot be looked up counts as absent: the next one, or the error, says so.
            if let Ok(Some(user)) = User::from_name(name)
                && !user.uid.is_root()
            {
                return Ok(Account::Other { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() });
            }
        }
        Err(Error::NoUnprivilegedUser { tried: names.iter().map(ToString::to_string).collect() })
    }

    pub fn is_other(&self) -> bool {
        matches!(self, Account::Other { .. })
    }

    /// A command that runs as this account, away from our terminal and from our `PG*` settings.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = std::process::Command::new(program);
        if let Account::Other { uid, gid, .. } = self {
            // std drops the supplementary groups itself when root sets a uid.
            command.uid(*uid).gid(*gid);
        }
        command
            // Ctrl-C goes to the foreground group; the server must outlive us by its own shutdown.
            .process_group(0)
            // The account may not be able to enter our own working directory.
            .current_dir("/")
            // Messages we look for (`server.rs`) must not be translated.
            .env("LC_ALL", "C")
            .env_remove("PGDATA")
            .env_remove("PGPORT");
        Command::from(command)
    }

    /// Whether the account can get to `folder`; asked of the system, because modes alone don't tell (ACLs).
    pub async fn check_reaches(&self, folder: &Path) -> Result<(), Error> {
        let Account::Other { name, .. } = self else {
            return Ok(());
        };
        let test = Path::new("/bin/sh");
        let status = self
            .command(test)
            .args(["-c", "test -x \"$1\"", "sh"])
            .arg(folder)
            .status()
            .await
            .map_err(file("run", test))?;
        if status.success() {
            return Ok(());
        }
        Err(Error::Unreachable { folder: folder.to_owned(), account: name.clone() })
    }

    /// Gives `path` to the account. Links are given away, never followed.
    pub fn own(&self, path: &Path) -> Result<(), Error> {
        match self {
            Account::Ours => Ok(()),
            Account::Other { uid, gid, .. } => {
                lchown(path, Some(*uid), Some(*gid)).map_err(file("give PostgreSQL's account", path))
            }
        }
    }

    /// Gives a whole tree to the account if its top belongs to another, as after DESKFEED_PG_USER changed.
    pub fn own_all(&self, top: &Path) -> Result<(), Error> {
        let Account::Other { uid, .. } = self else {
            return Ok(());
        };
        let owner = fs::symlink_metadata(top).map_err(file("look at", top))?.uid();
        if owner == *uid {
            return Ok(());
        }
        for path in tree(top).map_err(file("list", top))? {
            self.own(&path)?;
        }
        // The top last: it is what tells the next start that the work is done.
        self.own(top)
    }
}

/// Everything below `top`, links not followed.
pub fn tree(top: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    Ok(found)
}
