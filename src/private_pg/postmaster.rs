//! `postmaster.pid`: what a running server writes about itself, and whether that is still true.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::error::{Error, file};
use super::folder::pgdata;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postmaster {
    pub pid: i32,
    /// Together with the pid it tells this server from a later one with the same pid.
    started: String,
    /// None while the server is still writing the file.
    pub socket_dir: Option<PathBuf>,
}

impl Postmaster {
    /// The server that runs, or ran until it was killed, on this folder.
    pub fn of(folder: &Path) -> Result<Option<Postmaster>, Error> {
        let path = pgdata(folder).join("postmaster.pid");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file("read", &path)(error)),
        }
    }

    /// Whether the pid is that of a server. It may be a stranger's: after a power cut the file stays.
    pub fn looks_alive(&self) -> bool {
        is_alive(self.pid)
            && stat(self.pid).is_none_or(|stat| stat.name.contains("postgres") || stat.name == "postmaster")
    }
}

/// A zombie counts as dead: in a container without an init nobody may ever reap it.
pub fn is_alive(pid: i32) -> bool {
    let there = match kill(Pid::from_raw(pid), None) {
        Ok(()) | Err(Errno::EPERM) => true,
        Err(_) => false,
    };
    there && stat(pid).is_none_or(|stat| !matches!(stat.state, 'Z' | 'X'))
}

struct Stat {
    name: String,
    state: char,
}

/// What Linux tells about a process; None elsewhere, and where /proc is hidden.
fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // "pid (name) state ...", and a name may hold ") " itself.
    let (head, tail) = text.rsplit_once(") ")?;
    Some(Stat { name: head.split_once('(')?.1.to_owned(), state: tail.chars().next()? })
}

/// The lines: pid, data folder, start time, port, socket folder, ...
fn parse(text: &str) -> Option<Postmaster> {
    let mut lines = text.lines();
    let pid = lines.next()?.trim().parse().ok().filter(|pid| *pid > 0)?;
    Some(Postmaster {
        pid,
        started: lines.nth(1).unwrap_or_default().trim().to_owned(),
        socket_dir: lines.nth(1).map(str::trim).filter(|dir| !dir.is_empty()).map(PathBuf::from),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_as_far_as_it_is_written() {
        let whole = parse("42\n/d/pgdata\n1700000000\n5432\n/d/socket\n\n  543 1\nready   \n");
        let whole = whole.expect("a postmaster");
        assert_eq!((whole.pid, whole.started.as_str()), (42, "1700000000"));
        assert_eq!(whole.socket_dir, Some(PathBuf::from("/d/socket")));
        assert_eq!(parse("42\n/d/pgdata\n").and_then(|file| file.socket_dir), None);
        assert_eq!(parse(""), None);
        assert_eq!(parse("-42\n/d/pgdata\n"), None);
    }

    #[test]
    fn a_process_that_is_no_server_does_not_look_like_one() {
        let ours = Postmaster { pid: std::process::id().cast_signed(), started: String::new(), socket_dir: None };
        assert!(is_alive(ours.pid));
        assert_eq!(ours.looks_alive(), !cfg!(target_os = "linux"));
    }
}
