//! How far a long command is: a bar for people, nothing for pipes, and a sum at the end.

use std::time::Duration;

use indicatif::{HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressStyle};

/// What a bar counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Events,
    Bytes,
    Versions,
}

/// A bar on standard error, if that is a terminal.
pub fn bar(total: u64, unit: Unit) -> ProgressBar {
    let template = match unit {
        Unit::Events => "{elapsed_precise} [{bar:40}] {human_pos}/{human_len} events, {per_sec}, {eta} left",
        Unit::Bytes => "{elapsed_precise} [{bar:40}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left",
        Unit::Versions => "{elapsed_precise} [{bar:40}] {percent} % of the versions, {msg}, {eta} left",
    };
    // Any template of this list is well-formed; tests show them all.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style.progress_chars("=> "))
}

/// `1,234 events, 5.6 MiB, in 7 seconds (800 kB/s, 176 events/s)`
pub fn sum(events: u64, bytes: u64, took: Duration) -> String {
    let seconds = took.as_secs_f64().max(0.001);
    format!(
        "{} events, {} in {} ({:.1} MB/s, {:.0} events/s)",
        HumanCount(events),
        HumanBytes(bytes),
        if took < Duration::from_secs(60) { format!("{seconds:.1} s") } else { HumanDuration(took).to_string() },
        bytes as f64 / seconds / 1e6,
        events as f64 / seconds
    )
}
