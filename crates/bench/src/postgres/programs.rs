//! PostgreSQL's programs, and the account that they run as: PostgreSQL refuses to run as root.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use nix::unistd::{Gid, Uid, User, chown, geteuid};
use tokio::process::Command;

/// The oldest major version that the service runs on.
const OLDEST_MAJOR: u32 = 15;
/// Tried in this order when root names no account.
const UNPRIVILEGED: [&str; 2] = ["postgres", "nobody"];
/// Where packages put the programs: folder, text before the major version, folder below it.
const PLACES: [(&str, &str, &str); 5] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/usr/libexec", "postgresql", ""),
    ("/opt/homebrew/opt", "postgresql@", "bin"),
    ("/usr/local/opt", "postgresql@", "bin"),
];

/// Which PostgreSQL the benchmark starts.
#[derive(Debug, Clone, Args)]
pub struct PostgresArgs {
    /// Folder of PostgreSQL's programs (initdb, postgres) [default: the newest in PATH or of the packages].
    #[arg(long, env = "DESKFEED_PG_BIN")]
    pg_bin: Option<PathBuf>,
    /// As root: the account that PostgreSQL runs as [default: postgres, else nobody].
    #[arg(long, env = "DESKFEED_PG_USER")]
    pg_user: Option<String>,
}

/// The programs of one version.
#[derive(Debug, Clone)]
pub struct Programs {
    bin: PathBuf,
    /// As root: the account to change to.
    account: Option<(Uid, Gid)>,
}

impl Programs {
    /// Finds the programs and the account.
    ///
    /// # Errors
    /// When there are none.
    pub async fn find(args: &PostgresArgs) -> anyhow::Result<Self> {
        let account = account(args.pg_user.as_deref())?;
        for bin in places(args.pg_bin.as_deref()) {
            let programs = Self { bin, account };
            if programs.major().await.is_some_and(|major| major >= OLDEST_MAJOR) {
                return Ok(programs);
            }
        }
        anyhow::bail!(
            "there is no PostgreSQL {OLDEST_MAJOR} or newer; install one (Debian: `apt-get install postgresql`), or \
             name the folder of its programs with --pg-bin"
        )
    }

    /// A command that runs as the account, without the operator's PG* settings. An absolute name is taken as it is.
    pub fn command(&self, program: &str) -> Command {
        let mut command = std::process::Command::new(self.bin.join(program));
        if let Some((uid, gid)) = self.account {
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
        // Ctrl-C must reach this process only; it stops the servers itself. The account may be unable to enter the
        // working directory.
        command.process_group(0).current_dir("/").env("LC_ALL", "C");
        for name in ["PGDATA", "PGPORT", "PGHOST", "PGUSER", "PGSSLMODE"] {
            command.env_remove(name);
        }
        let mut command = Command::from(command);
        command.kill_on_drop(false);
        command
    }

    /// Creates a folder that belongs to the account.
    ///
    /// # Errors
    /// When that fails.
    pub fn make_folder(&self, folder: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("{} cannot be created", folder.display()))?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
        if let Some((uid, gid)) = self.account {
            chown(folder, Some(uid), Some(gid))?;
        }
        Ok(())
    }

    async fn major(&self) -> Option<u32> {
        let said = self.command("postgres").arg("--version").output().await.ok()?;
        let said = String::from_utf8(said.stdout).ok()?;
        let (_, number) = said.split_once("(PostgreSQL)")?;
        let digits: String = number.trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    }
}

/// `None`: an ordinary user, and so is the server.
fn account(asked: Option<&str>) -> anyhow::Result<Option<(Uid, Gid)>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let names = asked.map_or(UNPRIVILEGED.to_vec(), |name| vec![name]);
    let found = names.iter().find_map(|name| User::from_name(name).ok().flatten().filter(|user| !user.uid.is_root()));
    let user = found.with_context(|| format!("PostgreSQL does not run as root, and there is no account {names:?}"))?;
    Ok(Some((user.uid, user.gid)))
}

/// Folders that hold both `initdb` and `postgres`, the best first.
#[expect(clippy::disallowed_methods, reason = "the service's settings come from its config; these are the benchmark's")]
fn places(asked: Option<&Path>) -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Some(asked) = asked {
        places.extend([asked.to_owned(), asked.join("bin")]);
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        places.extend(std::env::split_paths(&path).filter(|place| place.is_absolute()));
        let mut packaged: Vec<(u32, PathBuf)> = Vec::new();
        for (parent, prefix, bin) in PLACES {
            let Ok(entries) = fs::read_dir(parent) else { continue };
            packaged.extend(entries.flatten().filter_map(|entry| {
                let major = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
                Some((major, entry.path().join(bin)))
            }));
        }
        packaged.sort_by_key(|(major, _)| std::cmp::Reverse(*major));
        places.extend(packaged.into_iter().map(|(_, place)| place));
    }
    // PATH may hold links only, without the libraries beside them.
    let real =
        places.into_iter().filter_map(|place| Some(place.join("postgres").canonicalize().ok()?.parent()?.to_owned()));
    real.filter(|bin| bin.join("initdb").is_file()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_installed_version_is_found() {
        let programs = Programs::find(&PostgresArgs { pg_bin: None, pg_user: None }).await.unwrap();
        assert!(programs.major().await.unwrap() >= OLDEST_MAJOR);
    }
}
