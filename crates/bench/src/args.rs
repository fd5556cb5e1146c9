//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::{plan::Size, postgres::PostgresArgs, yardsticks::server::ServerArgs};

#[derive(Debug, Parser)]
#[command(name = "deskfeed-bench", version, about, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub bench: BenchArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves the yardsticks. The benchmark starts it by itself.
    #[command(hide = true)]
    Yardsticks(ServerArgs),
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to measure [default: all].
    #[arg(long, value_delimiter = ',', value_enum)]
    pub jobs: Vec<Job>,
    /// How large.
    #[arg(long, value_enum, default_value = "quick")]
    pub size: Size,
    /// How often each cell is measured; the figure is the median [default: 3; smoke: 1].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub rounds: Option<u32>,
    /// How long each cell is measured, in seconds [default: smoke 0.2, quick 1, full 4].
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Prints everything as JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Writes results.json, machine.txt and report.txt into this folder.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// The service's program [default: deskfeed beside this program].
    #[arg(long, conflicts_with = "url")]
    pub service: Option<PathBuf>,
    /// Where the run creates its folder, with the PostgreSQL of the run [default: the system's folder for temporary files].
    #[arg(long, env = "DESKFEED_DATA")]
    pub data: Option<PathBuf>,
    /// Conversations that the job `demo` plays, as `deskfeed demo --dialogues` reads them [default: the demo's own].
    #[arg(long)]
    pub dialogues: Option<PathBuf>,
    #[command(flatten)]
    pub postgres: PostgresArgs,
    /// Measures a running service instead of starting one. It should have no agents but the benchmark's own.
    #[arg(long, requires = "admin_token")]
    pub url: Option<String>,
    /// Admin token of that service.
    #[arg(long, env = "DESKFEED_ADMIN_TOKEN", hide_env_values = true)]
    pub admin_token: Option<String>,
}

/// In the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Job {
    Append,
    Batch,
    Disk,
    Wake,
    Fanout,
    Replicas,
    Desk,
    Rare,
    Acks,
    Distance,
    Standby,
    Demo,
    Pages,
    Parked,
    Restart,
    Growth,
}

impl Job {
    pub fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Batch => "batch",
            Self::Disk => "disk",
            Self::Wake => "wake",
            Self::Fanout => "fanout",
            Self::Replicas => "replicas",
            Self::Desk => "desk",
            Self::Rare => "rare",
            Self::Acks => "acks",
            Self::Distance => "distance",
            Self::Standby => "standby",
            Self::Demo => "demo",
            Self::Pages => "pages",
            Self::Parked => "parked",
            Self::Restart => "restart",
            Self::Growth => "growth",
        }
    }
}
