//! Measurements: latencies, and figures by round with their medians and their ratios to yardsticks.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::targets::{self, Target};

/// Latencies in microseconds, up to two minutes, to three digits. Takes about 150 KiB: acceptable for each sender,
/// but not for each parked reader.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// # Errors
    /// Never with these bounds.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, 120_000_000, 3)?))
    }

    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1));
    }

    /// # Errors
    /// Never: all have the same bounds.
    pub fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        Ok(self.0.add(&other.0)?)
    }

    /// The latency at a quantile (0.5, 0.99), in milliseconds.
    pub fn at(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1000.0
    }

    /// In milliseconds.
    pub fn max(&self) -> f64 {
        self.0.max() as f64 / 1000.0
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }
}

/// One measurement, absolute or as a ratio to one yardstick.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// Such as `append`.
    pub job: String,
    /// The job's cell, such as `64 senders`.
    pub what: String,
    /// Such as `throughput`, `p50`.
    pub metric: String,
    pub unit: String,
    /// The median of `rounds`.
    pub value: f64,
    pub rounds: Vec<f64>,
    /// What the figure is compared with; `None`: it is absolute.
    pub yardstick: Option<String>,
    /// The yardstick's own figures, by round.
    pub yardstick_rounds: Vec<f64>,
    /// The median of `ratio_rounds`.
    pub ratio: Option<f64>,
    /// The figure of each round divided by the yardstick's of the same round.
    pub ratio_rounds: Vec<f64>,
    pub target: Option<&'static Target>,
    pub met: Option<bool>,
}

/// All figures of a run, in the order of their first measurement.
#[derive(Debug, Default, Serialize)]
pub struct Results {
    pub figures: Vec<Figure>,
    /// What could not be measured, and why.
    pub left_out: Vec<String>,
    /// Failed jobs and their errors. They have no figures.
    pub failures: Vec<String>,
}

impl Results {
    /// Records a value of this round, and yardsticks (name, value) of the same round.
    pub fn push(&mut self, job: &str, what: &str, metric: &str, unit: &str, value: f64, yardsticks: &[(&str, f64)]) {
        self.figure(job, what, metric, unit, None).push(value, None);
        for (name, yardstick) in yardsticks {
            self.figure(job, what, metric, unit, Some(name)).push(value, Some(*yardstick));
        }
    }

    /// Records p50, p99, p99.9 and max.
    pub fn push_latencies(&mut self, job: &str, what: &str, latencies: &Latencies) {
        self.push_latencies_beside(job, what, latencies, &[]);
    }

    /// As [`Results::push_latencies`], with yardsticks in ms for the p50.
    pub fn push_latencies_beside(&mut self, job: &str, what: &str, latencies: &Latencies, p50: &[(&str, f64)]) {
        self.push(job, what, "p50", "ms", latencies.at(0.5), p50);
        for (metric, quantile) in [("p99", 0.99), ("p99.9", 0.999)] {
            self.push(job, what, metric, "ms", latencies.at(quantile), &[]);
        }
        self.push(job, what, "max", "ms", latencies.max(), &[]);
    }

    /// Records a yardstick's own value of this round, as job `yardsticks`.
    pub fn push_yardstick(&mut self, what: &str, metric: &str, unit: &str, value: f64) {
        self.push(targets::YARDSTICKS, what, metric, unit, value, &[]);
    }

    /// Records that something was not measured.
    pub fn leave_out(&mut self, what: impl Into<String>) {
        self.left_out.push(what.into());
    }

    /// Records a failed job and discards what it has measured.
    pub fn fail(&mut self, job: &str, why: &anyhow::Error) {
        self.figures.retain(|figure| figure.job != job);
        self.failures.push(format!("{job}: {why:#}"));
    }

    fn figure(&mut self, job: &str, what: &str, metric: &str, unit: &str, yardstick: Option<&str>) -> &mut Figure {
        let found = self.figures.iter().position(|figure| figure.is(job, what, metric, yardstick));
        let position = found.unwrap_or_else(|| {
            self.figures.push(Figure {
                job: job.to_owned(),
                what: what.to_owned(),
                metric: metric.to_owned(),
                unit: unit.to_owned(),
                value: 0.0,
                rounds: Vec::new(),
                yardstick: yardstick.map(str::to_owned),
                yardstick_rounds: Vec::new(),
                ratio: None,
                ratio_rounds: Vec::new(),
                target: targets::of(job, what, metric, yardstick),
                met: None,
            });
            self.figures.len() - 1
        });
        &mut self.figures[position]
    }
}

impl Figure {
    fn is(&self, job: &str, what: &str, metric: &str, yardstick: Option<&str>) -> bool {
        self.job == job && self.what == what && self.metric == metric && self.yardstick.as_deref() == yardstick
    }

    fn push(&mut self, value: f64, yardstick: Option<f64>) {
        self.rounds.push(value);
        self.value = median(&self.rounds);
        if let Some(yardstick) = yardstick {
            self.yardstick_rounds.push(yardstick);
            self.ratio_rounds.push(value / yardstick);
            self.ratio = Some(median(&self.ratio_rounds));
        }
        self.met = self.target.map(|target| target.is_met(self.compared()));
    }

    /// The number that a target bounds: the ratio, or the value where there is no yardstick.
    pub fn compared(&self) -> f64 {
        self.ratio.unwrap_or(self.value)
    }
}

/// The median; 0 without values.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Formats a count as figures are named: `10,000`.
pub fn count(number: impl TryInto<u64>) -> String {
    grouped(&number.try_into().unwrap_or(u64::MAX).to_string())
}

/// `1 sender`, `64 senders`.
pub fn of_senders(number: usize) -> String {
    plural(number, "sender")
}

/// `1 connection`, `64 connections`.
pub fn of_connections(number: usize) -> String {
    plural(number, "connection")
}

/// `1 process`, `3 processes`.
pub fn of_processes(number: usize) -> String {
    format!("{} process{}", count(number), if number == 1 { "" } else { "es" })
}

/// `1 conversation`, `64 conversations`.
pub fn of_conversations(number: usize) -> String {
    plural(number, "conversation")
}

/// `1 client`, `64 clients`.
pub fn of_clients(number: usize) -> String {
    plural(number, "client")
}

fn plural(number: usize, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// Puts a comma before every third digit from the end.
pub fn grouped(digits: &str) -> String {
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_medians_of_their_rounds() {
        let mut results = Results::default();
        for (value, naive) in [(30.0, 1.0), (10.0, 2.0), (20.0, 10.0)] {
            results.push("append", "64 senders", "throughput", "messages/s", value, &[("naive over HTTP", naive)]);
        }
        assert!((results.figures[0].value - 20.0).abs() < f64::EPSILON);
        assert_eq!(results.figures.len(), 2);
        let beside = &results.figures[1];
        assert_eq!(beside.rounds, [30.0, 10.0, 20.0]);
        // 30, 5 and 2: the ratios' median, not the medians' ratio.
        assert_eq!(beside.ratio, Some(5.0));
        assert_eq!(beside.met, Some(false));
    }

    #[test]
    fn a_failed_job_has_no_figures() {
        let mut results = Results::default();
        results.push("append", "64 senders", "throughput", "messages/s", 1.0, &[]);
        results.push("batch", "16 senders", "throughput", "messages/s", 1.0, &[]);
        results.fail("append", &anyhow::anyhow!("message 7 was changed"));
        assert_eq!(results.figures.len(), 1);
        assert_eq!(results.failures, ["append: message 7 was changed"]);
    }

    #[test]
    fn counts_are_grouped() {
        assert_eq!(
            [count(7_u32), count(100_u32), count(1000_u32), count(10_000_000_u32)],
            ["7", "100", "1,000", "10,000,000"]
        );
    }
}
