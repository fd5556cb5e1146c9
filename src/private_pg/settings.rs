//! The server's settings: what durability and the machine ask for, then what the caller asks for.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use super::socket::{PORT, SocketDir};

const MIB: u64 = 1 << 20;
const SHARED_BUFFERS_MIB_MIN: u64 = 128;
/// A desk with more than this is large enough for a server of its own.
const SHARED_BUFFERS_MIB_MAX: u64 = 8192;

/// `-c name=value ...`. Of two settings of one name PostgreSQL takes the later.
pub fn arguments(asked: &[(String, String)], socket: &SocketDir) -> Vec<OsString> {
    let mut arguments = Vec::new();
    let mut set = |name: &str, value: &std::ffi::OsStr| {
        let mut setting = OsString::from(format!("{name}="));
        setting.push(value);
        arguments.extend([OsString::from("-c"), setting]);
    };
    for (name, value) in defaults() {
        set(name, value.as_ref());
    }
    for (name, value) in asked {
        set(name, value.as_ref());
    }
    // How we find the server again; not open to choice.
    set("port", PORT.to_string().as_ref());
    set("unix_socket_directories", quoted(socket.path()).as_ref());
    arguments
}

fn defaults() -> [(&'static str, String); 11] {
    let text = str::to_owned;
    [
        ("cluster_name", text("deskfeed")),
        // No TCP: whoever may enter the socket's folder is trusted.
        ("listen_addresses", text("")),
        ("unix_socket_permissions", text("0700")),
        // Said although they are the defaults: nothing acknowledged may be lost.
        ("fsync", text("on")),
        ("full_page_writes", text("on")),
        ("synchronous_commit", text("on")),
        // Red Hat's default is `on`, and sends the log elsewhere.
        ("logging_collector", text("off")),
        ("max_connections", text("100")),
        ("max_wal_size", text("4GB")),
        // So much is kept to be written over. A new segment is filled with zeros first, while all who append
        // wait: 50 ms where this was measured.
        ("min_wal_size", text("1GB")),
        ("shared_buffers", format!("{}MB", shared_buffers_mib(memory_bytes()))),
    ]
}

/// The setting is a list: a comma in the path would split it.
fn quoted(dir: &Path) -> String {
    format!("\"{}\"", dir.to_string_lossy().replace('"', "\"\""))
}

fn shared_buffers_mib(memory_bytes: Option<u64>) -> u64 {
    let quarter = memory_bytes.unwrap_or(0) / 4 / MIB;
    quarter.clamp(SHARED_BUFFERS_MIB_MIN, SHARED_BUFFERS_MIB_MAX)
}

/// What this machine or container has; None where it can't be told (not Linux).
fn memory_bytes() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let machine = total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10;
    // cgroup 2, then 1. "max", or no such file: no limit.
    let container = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok())
        .min();
    Some(container.map_or(machine, |limit: u64| limit.min(machine)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_buffers_are_a_quarter_within_bounds() {
        let gib = 1 << 30;
        assert_eq!(shared_buffers_mib(None), 128);
        assert_eq!(shared_buffers_mib(Some(gib / 4)), 128);
        assert_eq!(shared_buffers_mib(Some(4 * gib)), 1024);
        assert_eq!(shared_buffers_mib(Some(24 * gib)), 6144);
        assert_eq!(shared_buffers_mib(Some(64 * gib)), 8192);
    }

    #[test]
    fn what_is_asked_comes_after_the_defaults_but_never_moves_the_socket() {
        let asked = [("fsync", "off"), ("port", "1")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let arguments = arguments(&asked, &SocketDir::at("/d/so,cket".into()));
        let at = |setting: &str| arguments.iter().position(|argument| argument == setting);
        assert!(at("fsync=on") < at("fsync=off"));
        assert!(at("port=1") < at("port=5432"));
        assert!(at("unix_socket_directories=\"/d/so,cket\"").is_some());
    }
}
