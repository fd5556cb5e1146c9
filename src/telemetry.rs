//! Logs and metrics. Never logged: tokens, bodies, passwords.

use std::{io::IsTerminal, sync::OnceLock};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, Layer, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{config::LogArgs, notices};

/// Starts logging to standard error.
///
/// # Errors
/// When the filter cannot be read.
pub fn start_log(args: &LogArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log).map_err(|error| anyhow::anyhow!("DESKFEED_LOG: {error}"))?;
    let pretty =
        args.log_format.as_deref().map_or_else(|| std::io::stderr().is_terminal(), |format| format == "pretty");
    let lines = fmt::layer().with_writer(std::io::stderr);
    let log = tracing_subscriber::registry().with(notices::layer());
    let started = if pretty {
        log.with(lines.with_target(false).with_filter(filter)).try_init()
    } else {
        log.with(lines.json().flatten_event(true).with_filter(filter)).try_init()
    };
    started.map_err(|error| anyhow::anyhow!("logging cannot be started: {error}"))
}

/// Counts warnings of PostgreSQL in a process that has not started a log.
pub fn count_notices() {
    // With a log they are counted already.
    let _ = tracing_subscriber::registry().with(notices::layer()).try_init();
}

/// The process's metrics, made at the first call. None when they cannot be.
pub fn metrics() -> Option<PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let handle = recorder();
            if let Err(error) = &handle {
                tracing::warn!(error = %error, "there are no metrics");
            }
            handle.ok()
        })
        .clone()
}

fn recorder() -> Result<PrometheusHandle, BuildError> {
    let seconds = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    let sizes = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &seconds)?
        .set_buckets_for_metric(Matcher::Suffix("_batch_size".to_owned()), &sizes)?
        .install_recorder()?;
    describe();
    start_at_zero();
    Ok(handle)
}

fn describe() {
    metrics::describe_gauge!("deskfeed_poll_waiters", "Polls that are being held open");
    metrics::describe_gauge!("deskfeed_db_pool_connections", "Connections for reads, by state");
    metrics::describe_counter!("deskfeed_append_events_total", "Events written by this process");
    metrics::describe_counter!(
        "deskfeed_append_misses_total",
        "Appends decided again because somebody else's came first, or an Id was kept before"
    );
    metrics::describe_counter!("deskfeed_unknown_commits_total", "Commits that PostgreSQL did not answer");
    metrics::describe_counter!("deskfeed_relay_scanned_events_total", "Events that the relay read from the table");
    metrics::describe_counter!("deskfeed_listener_reconnects_total", "Times the LISTEN connection was made anew");
    metrics::describe_counter!("deskfeed_problems_total", "Answers that were problems, by code");
    metrics::describe_histogram!("deskfeed_append_batch_size", "Requests committed together");
    metrics::describe_histogram!("deskfeed_commit_duration_seconds", "Time of one commit");
    metrics::describe_histogram!("http_server_request_duration_seconds", "Time of one request, polls left out");
}

/// A rate cannot see the first increment of a counter that was not there before it: what somebody
/// is woken for is there from the start.
fn start_at_zero() {
    for name in [
        "deskfeed_append_events_total",
        "deskfeed_append_misses_total",
        "deskfeed_unknown_commits_total",
        "deskfeed_relay_scanned_events_total",
        "deskfeed_listener_reconnects_total",
    ] {
        metrics::counter!(name).increment(0);
    }
    for code in ["40100", "42900", "50000", "50300"] {
        metrics::counter!("deskfeed_problems_total", "code" => code).increment(0);
    }
    metrics::gauge!("deskfeed_poll_waiters").increment(0.0);
}
