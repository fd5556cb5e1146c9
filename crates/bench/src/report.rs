//! The report of a run: a table for people, JSON for programs, both also as files.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::Context;
use serde::Serialize;

use crate::{
    machine,
    plan::Size,
    stats::{Figure, Results, grouped, median},
    targets::{TARGETS, YARDSTICKS},
    world::World,
    yardsticks::tables,
};

/// A whole run.
#[derive(Serialize)]
pub struct Report {
    pub size: Size,
    pub rounds: u32,
    /// How long each cell was measured.
    pub seconds: f64,
    pub machine: BTreeMap<String, String>,
    #[serde(flatten)]
    pub results: Results,
}

/// What the figures depend on: the machine, and the settings of our PostgreSQL.
pub async fn machine(world: &World) -> BTreeMap<String, String> {
    let mut described = machine::description(world.data());
    let Some(url) = world.database_url() else { return described };
    let settings = async { tables::settings(&mut tables::connect(&url).await?).await };
    match settings.await {
        Ok(settings) => {
            for (name, value) in settings {
                described.insert(format!("postgresql {name}"), value);
            }
        }
        Err(error) => {
            described.insert("postgresql".to_owned(), format!("cannot be asked: {error}"));
        }
    }
    described
}

impl Report {
    /// Prints the run and writes it into a folder.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn publish(&self, as_json: bool, folder: Option<&Path>) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(self)? + "\n";
        let table = self.table();
        if let Some(folder) = folder {
            fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
            for (name, text) in [("results.json", &json), ("machine.txt", &self.machine_text()), ("report.txt", &table)]
            {
                let path = folder.join(name);
                fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
            }
        }
        print!("{}", if as_json { json } else { table });
        Ok(())
    }

    fn machine_text(&self) -> String {
        self.machine.iter().fold(String::new(), |mut text, (name, value)| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name:<32} {value}");
            text
        })
    }

    fn table(&self) -> String {
        let mut lines = Vec::new();
        let mut section = None;
        for figure in self.results.figures.iter().filter(|figure| figure.yardstick.is_none()) {
            let here = (&figure.job, &figure.what);
            if section != Some(here) {
                lines.push(String::new());
                lines.push(format!("{}: {}", figure.job, figure.what));
                section = Some(here);
            }
            lines.push(line(figure));
            lines.extend(self.results.figures.iter().filter(|beside| beside.is_beside(figure)).map(line));
        }
        lines.push(String::new());
        lines.extend(self.verdicts());
        lines.extend(self.results.left_out.iter().map(|what| format!("left out  {what}")));
        lines.extend(self.results.failures.iter().map(|what| format!("FAILED    {what}")));
        if self.machine.get("file system").is_some_and(|kind| kind == "tmpfs") {
            lines.push("NOTE      the data are in memory (tmpfs): no commit was flushed; use --data".to_owned());
        }
        if cfg!(debug_assertions) {
            lines.push("NOTE      this is a debug build: its figures mean little".to_owned());
        }
        lines.push(format!(
            "{:?}, {} round(s) of {} s a cell; figures are medians",
            self.size, self.rounds, self.seconds
        ));
        lines.join("\n") + "\n"
    }

    /// One line for each target and figure that it bounds.
    fn verdicts(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for target in TARGETS {
            let measured = self.results.figures.iter().filter(|f| f.target.is_some_and(|t| std::ptr::eq(t, target)));
            let mut is_measured = false;
            for figure in measured {
                is_measured = true;
                let verdict = if figure.met == Some(true) { "met   " } else { "MISSED" };
                let (bound, got) = (target.bound_text(), number(figure.compared()));
                lines.push(format!("{verdict}    {}, {}: {} ({bound}: {got})", target.job, figure.what, target.text));
            }
            if !is_measured {
                lines.push(format!("-         {}, {}: {}: not measured", target.job, target.what, target.text));
            }
        }
        lines
    }
}

impl Figure {
    /// Whether this is the ratio of `figure` to a yardstick.
    fn is_beside(&self, figure: &Self) -> bool {
        self.yardstick.is_some()
            && self.job != YARDSTICKS
            && (&self.job, &self.what, &self.metric) == (&figure.job, &figure.what, &figure.metric)
    }
}

/// Formats a figure, or its ratio to a yardstick, with the verdict of its target.
fn line(figure: &Figure) -> String {
    let judged = match (figure.target, figure.met) {
        (Some(target), Some(true)) => format!("   target {} met", target.bound_text()),
        (Some(target), _) => {
            let missed = target.missed_by(figure.compared()) * 100.0;
            format!("   target {} MISSED by {missed:.0} %", target.bound_text())
        }
        (None, _) => String::new(),
    };
    match (&figure.yardstick, figure.ratio) {
        (Some(yardstick), Some(ratio)) => {
            let of = median(&figure.yardstick_rounds);
            // A yardstick may count something other than the figure (requests instead of messages).
            let unit = if figure.unit.ends_with("/s") { "/s" } else { &figure.unit };
            let against = format!("x {yardstick} ({} {unit})", number(of));
            format!("    {:<22}{:>12.3} {against:<52}{judged}", "", ratio).trim_end().to_owned()
        }
        _ => {
            let spread = match figure.rounds.as_slice() {
                [] | [_] => String::new(),
                rounds => {
                    let least = rounds.iter().copied().fold(f64::INFINITY, f64::min);
                    let most = rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    format!("({} .. {})", number(least), number(most))
                }
            };
            let said = format!("{} {spread}", figure.unit);
            format!("    {:<22}{:>12} {said:<52}{judged}", figure.metric, number(figure.value)).trim_end().to_owned()
        }
    }
}

/// Formats a number to about three digits, grouped.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 && value > 0.0 => grouped(&format!("{value:.0}")),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}
