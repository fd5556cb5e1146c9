//! The machine, and the resources that a process uses.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

/// Resident memory of a process, in bytes.
pub fn rss_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Processor time that a process has used, to 10 ms.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything; the fields follow it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    // 100 ticks a second on every current Linux.
    Some(Duration::from_millis(ticks * 10))
}

#[expect(clippy::disallowed_methods, reason = "the date of the run, once")]
/// Describes what figures depend on. `data` is the folder of the database.
pub fn description(data: Option<&Path>) -> BTreeMap<String, String> {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let mut described = BTreeMap::from([
        ("processor".to_owned(), format!("{cores} x {}", field("/proc/cpuinfo", "model name"))),
        ("memory".to_owned(), field("/proc/meminfo", "MemTotal")),
        ("kernel".to_owned(), read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("system".to_owned(), field("/etc/os-release", "PRETTY_NAME")),
        ("deskfeed".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("profile".to_owned(), if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned()),
        ("rustc".to_owned(), compiler().unwrap_or_default()),
        ("open files".to_owned(), open_files_max().to_string()),
        ("date".to_owned(), chrono::Utc::now().format("%Y-%m-%d %H:%M UTC").to_string()),
    ]);
    if let Some(data) = data {
        described.insert("file system".to_owned(), file_system(data));
    }
    described
}

/// The type of the file system that holds a path. On `tmpfs` a commit flushes nothing.
pub fn file_system(path: &Path) -> String {
    let mounts = read("/proc/self/mounts");
    let found = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            Some((words.next()?, words.next()?))
        })
        .filter(|(place, _)| path.starts_with(place))
        // The last of several mounts on one place is the visible one.
        .max_by_key(|(place, _)| place.len());
    found.map_or_else(|| "unknown".to_owned(), |(_, kind)| kind.to_owned())
}

/// The first port of the kernel's ephemeral range.
pub fn first_ephemeral_port() -> u16 {
    let range = read("/proc/sys/net/ipv4/ip_local_port_range");
    range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32_768)
}

/// The limit of open files of this process and its children.
pub fn open_files_max() -> u64 {
    use nix::sys::resource::{Resource, getrlimit};
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)
}

/// Raises the limit of open files as far as possible: each connection needs one.
pub fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    /// Enough for the largest job; root may set it.
    const WANTED: u64 = 200_000;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let raised = soft < WANTED && setrlimit(Resource::RLIMIT_NOFILE, WANTED, WANTED.max(hard)).is_ok();
    if !raised && soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_err() {
        tracing::warn!(soft, "the limit of open files stays as it is");
    }
}

/// The compiler's version, which it writes into every program.
fn compiler() -> Option<String> {
    const SAID: &[u8] = b"rustc version ";
    let program = fs::read(std::env::current_exe().ok()?).ok()?;
    let versions = program.windows(SAID.len()).enumerate().filter(|(_, window)| *window == SAID);
    versions.map(|(at, _)| &program[at + SAID.len()..]).find(|text| text.first().is_some_and(u8::is_ascii_digit)).map(
        |text| {
            let end = text.iter().position(|byte| !byte.is_ascii_graphic() && *byte != b' ').unwrap_or(0);
            String::from_utf8_lossy(&text[..end.min(80)]).into_owned()
        },
    )
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The value of a line `name: value` or `name="value"`.
fn field(path: &str, name: &str) -> String {
    let text = read(path);
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_once([':', '=']).map_or("", |(_, value)| value).trim().trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_looked_at() {
        let pid = std::process::id();
        assert!(rss_bytes(pid).unwrap() > 100_000);
        assert!(cpu_time(pid).unwrap() < Duration::from_secs(3600));
        assert!(compiler().unwrap().starts_with("1."));
        assert_ne!(file_system(Path::new("/")), "unknown");
    }
}
