//! `deskfeed export`: the whole store as one sealed file of lines, while the service runs.
//!
//! The events come first, then the other tables, all from one transaction. A run that was ended
//! early left `FILE.partial`; the next one keeps its whole chunks of events, which never change, and
//! takes the rest from a moment of its own.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::Args;
use futures_util::{Stream, TryStreamExt};
use indicatif::ProgressBar;
use serde::Deserialize;
use sqlx::PgConnection;
use tokio::time::Instant;

use super::{
    database::{Database, check_schema, connect},
    progress::{self, Unit},
    sealed::{CHUNK_BYTES, End, Header, Holds, Partial, Position, Reader, Unreadable, Writer},
};
use crate::{
    clock::Clock,
    config::DatabaseArgs,
    store::{
        self,
        archive::{
            self,
            lines::ToLines,
            tables::{EVENTS, TABLES, Table},
        },
        events::StoreState,
        pool::Db,
    },
};

/// Events between two steps of the bar.
const BAR_STEP: u64 = 4096;

#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// The file to make; FILE.partial beside it until it is whole. Run again to continue one that
    /// was ended early. Absent: standard output, which cannot be continued.
    #[arg(long)]
    out: Option<PathBuf>,
}

pub async fn run(args: &ExportArgs) -> anyhow::Result<ExitCode> {
    // Before anything that takes long.
    let partial = args.out.as_deref().map(Partial::take).transpose()?;
    let database = Database::borrow(&args.database).await?;
    let done = run_on(partial, &database.url).await;
    database.stop().await?;
    done.map(|()| ExitCode::SUCCESS)
}

async fn run_on(partial: Option<Partial>, url: &str) -> anyhow::Result<()> {
    let db = Db::new(url, 1)?;
    let mut connection = connect(&db).await?;
    check_schema(&mut connection).await?;
    let state = archive::begin_reading(&mut connection)
        .await
        .context("the store cannot be read; note that an export is made from the primary, not from a standby")?;
    let header = Header::new(Holds::Store, Clock.now(), state.epoch.clone());
    let Some(mut partial) = partial else {
        let writer = Writer::begin(io::BufWriter::new(io::stdout().lock()), &header)?;
        return Export::new(writer, state, Kept::default()).run(&mut connection).await.map(drop);
    };
    match partial.left_behind()? {
        Some(reader) => {
            let kept = keep(reader, &state, &partial.path)?;
            eprintln!("continuing {}: it has the events up to version {}", partial.path.display(), kept.newest);
            let writer = partial.continue_at(kept.at.clone())?;
            Export::new(writer, state, kept).run(&mut connection).await?;
        }
        None => {
            let writer = Writer::begin(partial.from_start()?, &header)?;
            Export::new(writer, state, Kept::default()).run(&mut connection).await?;
        }
    }
    partial.finish()
}

/// What an earlier run has written and this one need not.
#[derive(Debug, Default)]
struct Kept {
    at: Position,
    events: u64,
    /// The newest version among them.
    newest: i64,
}

/// What can be kept of a file that an earlier run left: its full chunks of events.
fn keep(mut reader: Reader, state: &StoreState, path: &Path) -> anyhow::Result<Kept> {
    if reader.header().holds != Holds::Store {
        bail!("{} was left by another command; remove it, or name another file", path.display());
    }
    if reader.header().epoch != state.epoch {
        bail!(
            "{} was begun from the history {}, but the store's is {} now (it was restored, imported or failed over, or is another store): remove the file and export anew",
            path.display(),
            reader.header().epoch,
            state.epoch
        );
    }
    let mut kept = Kept { at: reader.position().clone(), ..Kept::default() };
    loop {
        let chunk = match reader.next_chunk() {
            Ok(Some(chunk)) => chunk,
            // What a kill, or a power cut, left unfinished is written again.
            Ok(None) | Err(Unreadable::CutOff { .. } | Unreadable::Damaged { .. }) => break,
            Err(error) => return Err(error.into()),
        };
        // A shorter chunk was the last of its events, and will not be now.
        let Some((oldest, newest)) = event_versions(chunk).filter(|_| chunk.len() >= CHUNK_BYTES) else { break };
        if kept.events == 0 && oldest < state.oldest {
            bail!(
                "{} begins with event {oldest}, but the store keeps no events before {} any more: remove the file and export anew",
                path.display(),
                state.oldest
            );
        }
        kept = Kept {
            events: kept.events + chunk.split_inclusive(|byte| *byte == b'\n').count() as u64,
            newest,
            at: reader.position().clone(),
        };
    }
    if kept.newest > state.head {
        bail!(
            "{} has event {}, but the store's newest is {}: it is another store's; remove the file and export anew",
            path.display(),
            kept.newest,
            state.head
        );
    }
    Ok(kept)
}

/// The first and last version of a chunk that holds events and nothing else.
fn event_versions(chunk: &[u8]) -> Option<(i64, i64)> {
    #[derive(Deserialize)]
    struct Line<'a> {
        table: &'a str,
        version: i64,
    }
    let version = |line: &[u8]| {
        let line: Line = serde_json::from_slice(line).ok()?;
        (line.table == EVENTS.name).then_some(line.version)
    };
    let mut lines = chunk.strip_suffix(b"\n")?.split(|byte| *byte == b'\n');
    let first = version(lines.next()?)?;
    Some((first, lines.next_back().map_or(Some(first), version)?))
}

/// An export under way.
struct Export<W> {
    writer: Writer<W>,
    state: StoreState,
    kept: Kept,
    counts: BTreeMap<String, u64>,
    bar: ProgressBar,
}

impl<W: Write> Export<W> {
    fn new(writer: Writer<W>, state: StoreState, kept: Kept) -> Self {
        let total = u64::try_from(state.head - state.oldest + 1).unwrap_or(0);
        let bar = progress::bar(total, Unit::Events).with_position(kept.events);
        bar.reset_eta();
        Self { writer, state, kept, counts: BTreeMap::new(), bar }
    }

    async fn run(mut self, connection: &mut PgConnection) -> anyhow::Result<()> {
        let began = Instant::now();
        let after = self.kept.newest.max(self.state.oldest - 1);
        for table in &TABLES {
            let rows = match table.name == EVENTS.name {
                true => archive::copy_events_out(connection, after).await,
                false => archive::copy_out(connection, table).await,
            };
            let count = match rows {
                Ok(rows) => self.write(table, rows).await,
                Err(error) => Err(error.into()),
            };
            let count = count.with_context(|| format!("the export stopped in table {}", table.name))?;
            self.counts.insert(table.name.to_owned(), count);
        }
        let events = self.kept.events + self.counts[EVENTS.name];
        self.check_dense(events)?;
        self.counts.insert(EVENTS.name.to_owned(), events);
        let end = End { oldest: self.state.oldest, head: self.state.head, counts: self.counts };
        let (_, bytes) = self.writer.end(&end).context("the last line cannot be written")?;
        self.bar.finish_and_clear();
        let (events, bytes) = (events - self.kept.events, bytes - self.kept.at.bytes());
        eprintln!("exported up to version {}: {}", self.state.head, progress::sum(events, bytes, began.elapsed()));
        Ok(())
    }

    async fn write(
        &mut self,
        table: &'static Table,
        mut rows: impl Stream<Item = store::Result<bytes::Bytes>> + Unpin,
    ) -> anyhow::Result<u64> {
        let (mut lines, mut line, mut count) = (ToLines::new(table), Vec::new(), 0);
        while let Some(piece) = rows.try_next().await? {
            lines.feed(&piece);
            while lines.next(&mut line)? {
                self.writer.push(&line).context("the file cannot be written")?;
                count += 1;
                if table.name == EVENTS.name && count % BAR_STEP == 0 {
                    self.bar.inc(BAR_STEP);
                }
            }
        }
        if !lines.is_complete() {
            bail!("PostgreSQL's answer ended too early");
        }
        // A chunk holds rows of one table, so that a later run can tell what to keep.
        self.writer.seal().context("the file cannot be written")?;
        Ok(count)
    }

    /// Versions are dense. Events that are missing are not exported as if they had never been.
    fn check_dense(&self, events: u64) -> anyhow::Result<()> {
        let expected = u64::try_from(self.state.head - self.state.oldest + 1).unwrap_or(0);
        if events != expected {
            bail!(
                "of the {expected} events from version {} to {} only {events} are there: the table `events` is damaged; restore it from a backup",
                self.state.oldest,
                self.state.head
            );
        }
        Ok(())
    }
}
