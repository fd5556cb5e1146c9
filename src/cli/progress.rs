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

impl Unit {
    fn template(self) -> &'static str {
        match self {
            Self::Events => "{elapsed_precise} [{bar:40}] {human_pos}/{human_len} events, {per_sec}, {eta} left",
            Self::Bytes => "{elapsed_precise} [{bar:40}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left",
            Self::Versions => "{elapsed_precise} [{bar:40}] {percent} % of the versions, {msg}, {eta} left",
        }
    }
}

/// A bar on standard error, if that is a terminal.
pub fn bar(total: u64, unit: Unit) -> ProgressBar {
    // A test reads all templates.
    let style = ProgressStyle::with_template(unit.template()).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style.progress_chars("=> "))
}

/// `1,234 events, 5.60 MiB in 7.0 s (0.8 MB/s, 176 events/s)`
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bar_can_be_drawn() {
        for unit in [Unit::Events, Unit::Bytes, Unit::Versions] {
            ProgressStyle::with_template(unit.template()).expect("a template");
        }
    }

    #[test]
    fn a_sum_says_how_much_and_how_fast() {
        assert_eq!(
            sum(1_500_000, 3_000_000_000, Duration::from_secs(30)),
            "1,500,000 events, 2.79 GiB in 30.0 s (100.0 MB/s, 50000 events/s)"
        );
        assert!(sum(0, 0, Duration::ZERO).starts_with("0 events, 0 B in 0.0 s"), "no division by nothing");
    }
}
