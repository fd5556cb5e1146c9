//! The targets. Each applies to the figures of its job, cell (`what`), metric and yardstick; with a yardstick it
//! bounds the ratio, else the value itself. A cell may exist at several sizes of the table:
//! `1,000,000 events: what`.

use serde::Serialize;

/// Job of the yardsticks' own figures.
pub const YARDSTICKS: &str = "yardsticks";
/// One transaction with a NOTIFY per message, through the yardsticks' HTTP server.
pub const NAIVE_HTTP: &str = "naive over HTTP";
/// The same without NOTIFY.
pub const SINGLE_HTTP: &str = "single inserts over HTTP";
/// Rows per commit, over one connection, without HTTP.
pub const MULTI_ROW_100: &str = "multi-row inserts of 100";
pub const MULTI_ROW_1000: &str = "multi-row inserts of 1,000";
/// Sum of both p50.
pub const COMMIT_AND_OK: &str = "bare commit + ok round trip";
/// From the start of a transaction with NOTIFY to the notification at another connection.
pub const NOTIFY_ROUND_TRIP: &str = "commit + NOTIFY round trip";
/// The bare range scan by index, with the same page size and number of readers.
pub const RAW_SCAN: &str = "raw scan";
/// Requests to the server that only answers `ok`, from as many connections.
pub const OK_REQUESTS: &str = "ok requests";

/// Of the same job, with one service process; else the same.
pub const ONE_PROCESS: &str = "one process";
/// As many senders of messages alone, just before and after.
pub const PURE_SENDERS: &str = "pure senders";
/// The same, on the same machine as PostgreSQL.
pub const NEAR: &str = "near";
/// The same, without a standby.
pub const NO_STANDBY: &str = "no standby";
/// What the `ok` server and multi-row inserts of 100 allow together: 1 / (1/a + 1/b).
pub const LIMITS: &str = "ok requests and multi-row inserts of 100 together";
/// The cell of `append` with this many senders.
pub const SENDERS_64: &str = "64 senders";
/// A transaction with NOTIFY for each message, a query for each wake.
pub const NAIVE_POLL: &str = "naive long poll";

/// The direction of a bound.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// One target.
#[derive(Debug, Serialize)]
pub struct Target {
    pub job: &'static str,
    pub what: &'static str,
    pub metric: &'static str,
    pub yardstick: Option<&'static str>,
    pub bound: Bound,
    pub text: &'static str,
}

const fn absolute(
    job: &'static str,
    what: &'static str,
    metric: &'static str,
    bound: Bound,
    text: &'static str,
) -> Target {
    Target { job, what, metric, yardstick: None, bound, text }
}

impl Target {
    const fn beside(self, yardstick: &'static str) -> Self {
        Self { yardstick: Some(yardstick), ..self }
    }

    pub fn is_met(&self, compared: f64) -> bool {
        match self.bound {
            Bound::AtLeast(bound) => compared >= bound,
            Bound::AtMost(bound) => compared <= bound,
        }
    }

    /// How far the bound is missed, as a part of it; 0.1 is a tenth.
    pub fn missed_by(&self, compared: f64) -> f64 {
        match self.bound {
            Bound::AtLeast(bound) => (bound - compared) / bound,
            Bound::AtMost(bound) => (compared - bound) / bound.max(f64::MIN_POSITIVE),
        }
        .max(0.0)
    }

    pub fn bound_text(&self) -> String {
        match self.bound {
            Bound::AtLeast(bound) => format!(">= {bound}"),
            Bound::AtMost(bound) => format!("<= {bound}"),
        }
    }
}

use Bound::{AtLeast, AtMost};

/// All of them.
pub static TARGETS: &[Target] = &[
    absolute("append", "64 senders", "throughput", AtLeast(10.0), "10 times one transaction with NOTIFY per message")
        .beside(NAIVE_HTTP),
    absolute("append", "64 senders", "throughput", AtLeast(0.35), "35 % of multi-row inserts of 100")
        .beside(MULTI_ROW_100),
    absolute("append", "64 senders", "throughput", AtLeast(0.75), "0.75 of what the two limits allow together")
        .beside(LIMITS),
    absolute("append", "256 senders", "throughput", AtLeast(1.0), "at least as many as 64 senders").beside(SENDERS_64),
    absolute("append", "256 senders", "throughput", AtLeast(14.0), "14 times one transaction with NOTIFY per message")
        .beside(NAIVE_HTTP),
    absolute("append", "256 senders", "p99 / p50", AtMost(3.0), "p99 at most 3 times p50"),
    absolute("append", "1 sender", "p50", AtMost(1.5), "1.5 times a bare single-row commit plus one ok round trip")
        .beside(COMMIT_AND_OK),
    absolute("batch", "1 sender", "throughput", AtLeast(0.6), "60 % of multi-row inserts of 100").beside(MULTI_ROW_100),
    absolute("batch", "16 senders", "throughput", AtLeast(0.6), "60 % of multi-row inserts of 100")
        .beside(MULTI_ROW_100),
    // Difference of the two p99 of a round, in ms.
    absolute("wake", "1,000 parked, quiet", "p99 above NOTIFY", AtMost(2.0), "p99 of commit + NOTIFY, plus 2 ms"),
    absolute("wake", "10,000 parked, 1,000 messages/s", "p99", AtMost(25.0), "p99 at most 25 ms"),
    absolute(
        "wake",
        "10,000 parked, 1,000 messages/s",
        "transactions",
        AtMost(1.2),
        "no more database work than with 100 parked (a fifth is noise)",
    )
    .beside("100 parked"),
    absolute("wake", "1,000 parked, quiet", "p50", AtMost(1.0), "at most that of the naive server").beside(NAIVE_POLL),
    absolute("wake", "10,000 parked, quiet", "p50", AtMost(1.0), "at most that of the naive server").beside(NAIVE_POLL),
    absolute("replicas", "3 processes, 48 senders", "throughput", AtLeast(0.85), "0.85 of one process")
        .beside(ONE_PROCESS),
    absolute("replicas", "3 processes, 192 senders", "throughput", AtLeast(0.85), "0.85 of one process")
        .beside(ONE_PROCESS),
    absolute("replicas", "5 processes, 48 senders", "throughput", AtLeast(0.75), "0.75 of one process")
        .beside(ONE_PROCESS),
    absolute("replicas", "5 processes, 192 senders", "throughput", AtLeast(0.75), "0.75 of one process")
        .beside(ONE_PROCESS),
    absolute("replicas", "3 processes, 48 senders", "p50", AtMost(1.4), "1.4 times that of one process")
        .beside(ONE_PROCESS),
    absolute("replicas", "3 processes, 192 senders", "p50", AtMost(1.4), "1.4 times that of one process")
        .beside(ONE_PROCESS),
    absolute(
        "replicas",
        "2 processes, 1,000 parked, quiet",
        "p99 above NOTIFY",
        AtMost(2.0),
        "p99 of commit + NOTIFY, plus 2 ms",
    ),
    absolute(
        "replicas",
        "3 processes, 1,000 parked, quiet",
        "p99 above NOTIFY",
        AtMost(2.0),
        "p99 of commit + NOTIFY, plus 2 ms",
    ),
    absolute(
        "replicas",
        "5 processes, 1,000 parked, quiet",
        "p99 above NOTIFY",
        AtMost(2.0),
        "p99 of commit + NOTIFY, plus 2 ms",
    ),
    absolute(
        "desk",
        "64 conversations, 1 process",
        "throughput",
        AtLeast(0.5),
        "operations half of pure senders' messages",
    )
    .beside(PURE_SENDERS),
    absolute(
        "desk",
        "64 conversations, 3 processes",
        "throughput",
        AtLeast(0.5),
        "operations half of pure senders' messages",
    )
    .beside(PURE_SENDERS),
    absolute(
        "desk",
        "256 conversations, 1 process",
        "throughput",
        AtLeast(0.5),
        "operations half of pure senders' messages",
    )
    .beside(PURE_SENDERS),
    absolute(
        "desk",
        "256 conversations, 3 processes",
        "throughput",
        AtLeast(0.5),
        "operations half of pure senders' messages",
    )
    .beside(PURE_SENDERS),
    absolute("rare", "opens, 64 clients", "throughput", AtLeast(0.35), "opens 0.35 of pure sends").beside(PURE_SENDERS),
    absolute("acks", "64 agents", "throughput", AtLeast(0.6), "events 0.6 of pure sends").beside(PURE_SENDERS),
    absolute("acks", "1,000 agents", "throughput", AtLeast(0.6), "events 0.6 of pure sends").beside(PURE_SENDERS),
    absolute("distance", "1 ms away, 1 process, 64 senders", "throughput", AtLeast(0.6), "0.6 of near").beside(NEAR),
    absolute("distance", "1 ms away, 1 process, 256 senders", "throughput", AtLeast(0.8), "0.8 of near").beside(NEAR),
    absolute("distance", "1 ms away, 3 processes, 64 senders", "throughput", AtLeast(0.8), "0.8 of one process there")
        .beside(ONE_PROCESS),
    absolute("distance", "1 ms away, 3 processes, 256 senders", "throughput", AtLeast(0.8), "0.8 of one process there")
        .beside(ONE_PROCESS),
    absolute("distance", "1,000 opens at once, 4 ms away", "answered 200", AtLeast(1000.0), "all are answered 200"),
    absolute("distance", "1,000 opens at once, 4 ms away", "all answered", AtMost(3.0), "within 3 s"),
    absolute(
        "distance",
        "1,000 opens at once, 4 ms away",
        "sends meanwhile, p99",
        AtMost(50.0),
        "sends at the near process: p99 at most 50 ms",
    ),
    absolute("demo", "64 conversations, --dialogues", "wake p50", AtMost(3.0), "wake p50 at most 3 ms"),
    absolute("demo", "64 conversations, --dialogues", "wake p99", AtMost(12.0), "wake p99 at most 12 ms"),
    absolute("fanout", "1,000 readers", "throughput", AtLeast(0.7), "deliveries 70 % of the ok server's requests")
        .beside(OK_REQUESTS),
    absolute("pages", "a, 1,000 a page, cold, 1 reader", "throughput", AtLeast(0.7), "70 % of the raw range scan")
        .beside(RAW_SCAN),
    absolute("pages", "a, 1,000 a page, cold, 16 readers", "throughput", AtLeast(0.7), "70 % of the raw range scan")
        .beside(RAW_SCAN),
    absolute("pages", "b, 1,000 a page, cold, 1 reader", "throughput", AtLeast(0.7), "70 % of the raw range scan")
        .beside(RAW_SCAN),
    absolute("pages", "b, 1,000 a page, cold, 16 readers", "throughput", AtLeast(0.7), "70 % of the raw range scan")
        .beside(RAW_SCAN),
    // 300,000 events/s where the ok server does 80,000 requests/s.
    absolute("pages", "a, 100 a page, tail, 4 readers", "throughput", AtLeast(3.75), "3.75 events per ok request")
        .beside(OK_REQUESTS),
    absolute("parked", "10,000 parked", "memory per poll", AtMost(12.0), "12 KiB of RSS per parked poll"),
    absolute("parked", "40,000 parked", "memory per poll", AtMost(12.0), "12 KiB of RSS per parked poll"),
    absolute("parked", "40,000 parked", "held at once", AtLeast(40_000.0), "40,000 held at once"),
    // A clock tick of 10 ms in 10 s is 0.1 %; below that nothing can be measured.
    absolute("parked", "10,000 parked", "CPU while idle", AtMost(0.2), "no measurable CPU (%) while nothing happens"),
    absolute("restart", "10,000 clients", "parked again", AtMost(1.0), "parked again within 1 s"),
    absolute("growth", "last / first", "append", AtLeast(0.85), "append at least 0.85 times"),
    absolute("growth", "last / first", "cold pages, in shared_buffers", AtLeast(0.9), "cold pages at least 0.9 times"),
    absolute(
        "growth",
        "last / first",
        "cold pages, beyond shared_buffers",
        AtLeast(0.75),
        "cold pages at least 0.75 times where the data outgrows shared_buffers",
    ),
    absolute("disk", "messages of 300 bytes", "size", AtMost(590.0), "1.3 times the message's bytes plus 200"),
];

/// Finds the target of a figure.
pub fn of(job: &str, what: &str, metric: &str, yardstick: Option<&str>) -> Option<&'static Target> {
    let what = what.rsplit_once(" events: ").map_or(what, |(_, what)| what);
    TARGETS.iter().find(|target| {
        target.job == job && target.what == what && target.metric == metric && target.yardstick == yardstick
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_on_its_bound() {
        let target = of("append", "64 senders", "throughput", Some(NAIVE_HTTP)).unwrap();
        assert!(target.is_met(10.0) && !target.is_met(9.9));
        assert!((target.missed_by(9.0) - 0.1).abs() < 1e-9);
        let target = of("wake", "10,000 parked, 1,000 messages/s", "p99", None).unwrap();
        assert!(target.is_met(25.0) && !target.is_met(25.1));
        assert!((target.missed_by(30.0) - 0.2).abs() < 1e-9);
    }

    #[test]
    fn no_figure_has_two_targets() {
        for (position, target) in TARGETS.iter().enumerate() {
            let found = of(target.job, target.what, target.metric, target.yardstick).unwrap();
            assert!(std::ptr::eq(found, &raw const TARGETS[position]), "{target:?}");
        }
    }
}
