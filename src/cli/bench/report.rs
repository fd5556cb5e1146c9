//! What a run has to tell: a table for people, JSON for programs, both as files.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::Context;
use serde::Serialize;

use super::{
    machine,
    plan::Size,
    stats::{Figure, Results},
    targets::{TARGETS, YARDSTICKS},
    world::World,
};
use crate::store::yardsticks;

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
    let Some(url) = &world.database_url else { return described };
    let settings = async { yardsticks::settings(&mut yardsticks::connect(url).await?).await };
    match settings.await {
        Ok(settings) => {
            described.extend(settings.into_iter().map(|(name, value)| (format!("postgresql {name}"), value)))
        }
        Err(error) => drop(described.insert("postgresql".to_owned(), format!("does not tell: {error}"))),
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
            lines.push(self.line(figure));
            lines.extend(
                self.results.figures.iter().filter(|beside| beside.is_beside(figure)).map(|beside| self.line(beside)),
            );
        }
        lines.push(String::new());
        lines.extend(self.verdicts());
        lines.extend(self.results.left_out.iter().map(|what| format!("left out  {what}")));
        lines.extend(self.results.failures.iter().map(|what| format!("FAILED    {what}")));
        if self.machine.get("file system").is_some_and(|kind| kind == "tmpfs") {
            lines.push("NOTE      the data lie in memory (tmpfs): no commit was flushed; use --data".to_owned());
        }
        if cfg!(debug_assertions) {
            lines.push("NOTE      this is a debug build: its figures say little".to_owned());
        }
        lines.push(format!(
            "{:?}, {} round(s) of {} s a cell; figures are medians",
            self.size, self.rounds, self.seconds
        ));
        lines.join("\n") + "\n"
    }

    fn line(&self, figure: &Figure) -> String {
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
                let of = super::stats::median(&figure.yardstick_rounds);
                let against = format!("x {yardstick} ({} {})", number(of), figure.unit);
                format!("    {:<22}{:>12.3} {against:<52}{judged}", "", ratio)
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
                format!("    {:<22}{:>12} {said:<52}{judged}", figure.metric, number(figure.value))
                    .trim_end()
                    .to_owned()
            }
        }
    }

    /// The targets, one a line.
    fn verdicts(&self) -> Vec<String> {
        TARGETS
            .iter()
            .map(|target| {
                let measured =
                    self.results.figures.iter().find(|figure| figure.target.is_some_and(|t| std::ptr::eq(t, target)));
                let verdict = match measured {
                    None => "-         ".to_owned(),
                    Some(figure) if figure.met == Some(true) => "met       ".to_owned(),
                    Some(_) => "MISSED    ".to_owned(),
                };
                let got =
                    measured.map_or_else(|| "not measured".to_owned(), |figure| format!("{:.2}", figure.compared()));
                format!("{verdict}{}, {}: {} ({}: {got})", target.job, target.what, target.text, target.bound_text())
            })
            .collect()
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

/// Three digits or so, grouped.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 && value > 0.0 => super::stats::count(value.round() as u64),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}
