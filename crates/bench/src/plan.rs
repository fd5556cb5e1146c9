//! The sizes of the jobs, the duration of their cells, and progress output.

use std::time::Duration;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::args::BenchArgs;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    /// About a minute in total: does it work?
    Smoke,
    /// About half an hour.
    Quick,
    /// The sizes of the targets, up to ten million events: some hours.
    Full,
}

/// What a run measures.
pub struct Plan {
    pub size: Size,
    pub sizes: Sizes,
    pub rounds: u32,
    /// How long a cell is measured.
    pub time: Duration,
    pub progress: ProgressBar,
}

/// The sizes of the jobs.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Feeds that senders write to.
    pub feeds: usize,
    /// Senders of `append`.
    pub senders: &'static [usize],
    /// Messages a second at a fixed rate.
    pub rate: u32,
    /// Senders of `batch`.
    pub batch_senders: &'static [usize],
    /// Messages that `disk` writes.
    pub disk_messages: u64,
    /// Parked polls of `wake`.
    pub wake_parked: &'static [usize],
    /// Readers of `fanout`.
    pub fanout_readers: &'static [usize],
    /// Service processes of `replicas`, ascending from 1.
    pub replicas: &'static [usize],
    /// Senders of `replicas`, over all processes.
    pub replica_senders: &'static [usize],
    /// Parked polls of `replicas`.
    pub replica_parked: usize,
    /// Conversations of `desk` that go on at the same time.
    pub conversations: &'static [usize],
    /// Service processes of `desk`.
    pub desk_processes: &'static [usize],
    /// Clients of `rare`.
    pub rare_clients: &'static [usize],
    /// Agents of `acks`.
    pub ack_agents: &'static [usize],
    /// Round trips to PostgreSQL of `distance`, in microseconds.
    pub distances_micros: &'static [u64],
    /// Service processes of `distance`, ascending from 1.
    pub distance_processes: &'static [usize],
    /// Senders of `distance`, and conversations.
    pub distance_senders: &'static [usize],
    pub distance_conversations: &'static [usize],
    /// Opens at once at a far process.
    pub opens_at_once: usize,
    /// Senders of `standby`.
    pub standby_senders: &'static [usize],
    /// Events in the table for `pages`, ascending.
    pub page_events: &'static [u64],
    /// Readers of `pages`, by index; the tail is also read by 4.
    pub page_readers: &'static [usize],
    /// Parked polls of `parked`, ascending.
    pub parked: &'static [usize],
    /// Clients of `restart`.
    pub restart_clients: usize,
    /// Events in the table for `growth`, ascending.
    pub growth_events: &'static [u64],
}

const SMOKE: Sizes = Sizes {
    feeds: 10,
    senders: &[1, 16],
    rate: 200,
    batch_senders: &[1],
    disk_messages: 10_000,
    wake_parked: &[20],
    fanout_readers: &[20],
    replicas: &[1, 2],
    replica_senders: &[8],
    replica_parked: 20,
    conversations: &[1, 8],
    desk_processes: &[1, 2],
    rare_clients: &[1, 8],
    ack_agents: &[8],
    distances_micros: &[1000],
    distance_processes: &[1, 2],
    distance_senders: &[16],
    distance_conversations: &[8],
    opens_at_once: 50,
    standby_senders: &[16],
    page_events: &[5_000],
    page_readers: &[1],
    parked: &[100],
    restart_clients: 50,
    growth_events: &[1_000, 5_000],
};

const QUICK: Sizes = Sizes {
    feeds: 100,
    senders: &[1, 16, 64, 256],
    rate: 1_000,
    batch_senders: &[1, 16],
    disk_messages: 50_000,
    wake_parked: &[100, 1_000],
    fanout_readers: &[100, 1_000],
    replicas: &[1, 3],
    replica_senders: &[3, 48, 192],
    replica_parked: 1_000,
    conversations: &[1, 64, 256],
    desk_processes: &[1, 3],
    rare_clients: &[1, 64],
    ack_agents: &[64, 1_000],
    distances_micros: &[1000],
    distance_processes: &[1, 3],
    distance_senders: &[64, 256],
    distance_conversations: &[64],
    opens_at_once: 1_000,
    standby_senders: &[64, 256],
    page_events: &[200_000],
    page_readers: &[1, 16],
    parked: &[2_000, 10_000],
    restart_clients: 2_000,
    growth_events: &[20_000, 200_000],
};

const FULL: Sizes = Sizes {
    feeds: 100,
    senders: &[1, 16, 64, 256],
    rate: 1_000,
    batch_senders: &[1, 16],
    disk_messages: 200_000,
    wake_parked: &[100, 1_000, 10_000],
    fanout_readers: &[100, 1_000],
    replicas: &[1, 2, 3, 5],
    replica_senders: &[3, 48, 192],
    replica_parked: 1_000,
    conversations: &[1, 64, 256],
    desk_processes: &[1, 3],
    rare_clients: &[1, 64, 256],
    ack_agents: &[64, 1_000],
    distances_micros: &[500, 1000, 2000],
    distance_processes: &[1, 3],
    distance_senders: &[64, 256],
    distance_conversations: &[64, 256],
    opens_at_once: 1_000,
    standby_senders: &[64, 256],
    page_events: &[1_000_000, 10_000_000],
    page_readers: &[1, 16],
    parked: &[10_000, 40_000],
    restart_clients: 10_000,
    growth_events: &[100_000, 1_000_000, 10_000_000],
};

impl Plan {
    pub fn new(args: &BenchArgs) -> Self {
        let (sizes, rounds, seconds) = match args.size {
            Size::Smoke => (SMOKE, 1, 0.2),
            Size::Quick => (QUICK, 3, 1.0),
            Size::Full => (FULL, 3, 4.0),
        };
        let progress = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed_precise} {msg}") {
            progress.set_style(style);
        }
        progress.enable_steady_tick(Duration::from_millis(250));
        Self {
            size: args.size,
            sizes,
            rounds: args.rounds.unwrap_or(rounds),
            time: Duration::from_secs_f64(args.seconds.unwrap_or(seconds)),
            progress,
        }
    }

    /// Shows what is being done.
    pub fn says(&self, what: &str) {
        self.progress.set_message(what.to_owned());
    }
}
