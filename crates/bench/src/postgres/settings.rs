//! The servers' settings: those of the private PostgreSQL of `deskfeed serve` (`src/private_pg/settings.rs` of the
//! service), but for the number of connections.

use std::{fs, path::Path};

const MIB: u64 = 1 << 20;
const SHARED_BUFFERS_MIB_MIN: u64 = 128;
const SHARED_BUFFERS_MIB_MAX: u64 = 8192;

/// `-c name=value ...`. `special` wins over the defaults: of two settings of one name PostgreSQL takes the later.
pub fn arguments(socket: &Path, special: &[(&str, &str)]) -> Vec<String> {
    let text = str::to_owned;
    let mut settings = vec![
        ("cluster_name", text("deskfeed-bench")),
        ("listen_addresses", text("")),
        ("unix_socket_directories", format!("\"{}\"", socket.display())),
        ("unix_socket_permissions", text("0700")),
        ("port", super::PORT.to_string()),
        ("fsync", text("on")),
        ("full_page_writes", text("on")),
        ("synchronous_commit", text("on")),
        ("logging_collector", text("off")),
        // The service's own gives 100. Here are up to five services of a dozen connections each, the naive server
        // and the bare yardsticks.
        ("max_connections", text("250")),
        ("max_wal_size", text("4GB")),
        ("min_wal_size", text("1GB")),
        ("shared_buffers", format!("{}MB", shared_buffers_mib(memory_bytes()))),
    ];
    settings.extend(special.iter().map(|(name, value)| (*name, text(value))));
    settings.into_iter().flat_map(|(name, value)| [text("-c"), format!("{name}={value}")]).collect()
}

/// A quarter of the memory, within bounds.
fn shared_buffers_mib(memory_bytes: Option<u64>) -> u64 {
    (memory_bytes.unwrap_or(0) / 4 / MIB).clamp(SHARED_BUFFERS_MIB_MIN, SHARED_BUFFERS_MIB_MAX)
}

/// Memory of this machine or container.
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
