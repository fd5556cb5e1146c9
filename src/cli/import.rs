//! `deskfeed import`: puts what `deskfeed export` made into an empty store.
//!
//! One transaction: the store has all of it, or nothing. Whatever ends an import early leaves the
//! store empty, and the import is run again from the start.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::ProgressBar;
use sqlx::PgConnection;
use tokio::time::Instant;

use super::{
    database::{Database, check_schema, connect, migrate},
    progress::{self, Unit},
    sealed::{End, Holds, Reader},
};
use crate::{
    config::DatabaseArgs,
    store::{
        archive::{
            self, StoreRow,
            lines::{COPY_END, COPY_START, ToRows},
            tables::{EVENTS, STORE, TABLES, Table},
        },
        events::StoreState,
        partitions,
        pool::Db,
    },
};

/// Rows are sent when there are this many bytes of them: PostgreSQL works on them while the next
/// are made ready.
const SEND_BYTES: usize = 64 * 1024;

#[derive(Debug, Args)]
pub struct ImportArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// A file that `deskfeed export` made.
    file: PathBuf,
}

pub async fn run(args: &ImportArgs) -> anyhow::Result<ExitCode> {
    // Before anything that takes long.
    let file = open(&args.file)?;
    let database = Database::borrow(&args.database).await?;
    let done = run_on(file, &database).await;
    database.stop().await?;
    done.map(|()| ExitCode::SUCCESS)
}

/// Opens a file that holds a store, as far as its first and last line say.
fn open(path: &Path) -> anyhow::Result<(Reader, End)> {
    let reader = Reader::open(path)?;
    if reader.header().holds != Holds::Store {
        bail!(
            "{} holds one feed, which is not enough for a store; import what `deskfeed export` makes",
            path.display()
        );
    }
    let end = reader.end()?;
    Ok((reader, end))
}

async fn run_on((mut reader, end): (Reader, End), database: &Database) -> anyhow::Result<()> {
    let db = Db::new(&database.url, 1)?;
    let mut connection = connect(&db).await?;
    if database.is_private {
        migrate(&mut connection).await?;
    }
    check_schema(&mut connection).await?;
    let began = Instant::now();
    archive::begin_writing(&mut connection).await.context(
        "the store cannot be locked for an import; stop the service and other imports, and import as the role that owns the tables",
    )?;
    let used = archive::tables_in_use(&mut connection).await?;
    if !used.is_empty() {
        bail!(
            "the store is not empty: there are {}; import into a new database (`createdb`, `deskfeed migrate`, then `deskfeed import`), before a service or `deskfeed token` writes to it",
            used.join(", ")
        );
    }
    partitions::make(&mut connection, end.oldest, end.head).await.context("the partitions cannot be made")?;
    let bar = progress::bar(reader.size()?, Unit::Bytes);
    let counts = copy_all(&mut reader, &mut connection, &bar).await?;
    if counts != end.counts {
        bail!("the file does not hold what its last line says: {counts:?}, not {:?}; export it anew", end.counts);
    }
    let (oldest, newest, state) = archive::finish_writing(&mut connection).await?;
    check_dense(oldest, newest, counts[EVENTS.name], &state, &end)?;
    archive::commit(&mut connection).await.context(
        "the commit was not confirmed; run the import again: if it says that the store is not empty, all is there",
    )?;
    bar.finish_and_clear();
    let sum = progress::sum(counts[EVENTS.name], reader.bytes(), began.elapsed());
    eprintln!("imported up to version {}: {sum}", state.head);
    eprintln!(
        "Feed-Epoch was {} and is {} now: readers who compare it are told so (41001)",
        reader.header().epoch,
        state.epoch
    );
    Ok(())
}

/// Copies table after table, in the order in which an export has them. Gives the rows of each.
async fn copy_all(
    reader: &mut Reader,
    connection: &mut PgConnection,
    bar: &ProgressBar,
) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    let mut source = Source { chunk: Vec::new(), reader, bar };
    source.advance()?;
    for table in TABLES.iter().filter(|table| table.name != STORE.name) {
        let copied = copy_table(table, &mut source, connection).await;
        counts.insert(table.name.to_owned(), copied.with_context(|| format!("table {}", table.name))?);
    }
    let store = source.lines().next().filter(|line| ToRows::new(STORE).knows(line));
    let store = store.map(serde_json::from_slice::<StoreRow>).transpose().context("table store")?;
    if let Some(row) = store {
        archive::put_store(connection, &row).await?;
        counts.insert(STORE.name.to_owned(), 1);
        source.advance()?;
    }
    if let Some(line) = source.lines().next() {
        bail!(
            "the file has lines that this deskfeed ({}) does not know, such as {}; use the version that made it ({}) or a newer one",
            env!("CARGO_PKG_VERSION"),
            String::from_utf8_lossy(&line[..line.len().min(60)]),
            source.reader.header().deskfeed
        );
    }
    Ok(counts)
}

async fn copy_table(
    table: &'static Table,
    source: &mut Source<'_>,
    connection: &mut PgConnection,
) -> anyhow::Result<u64> {
    let to_rows = ToRows::new(table);
    let mut copy = archive::copy_in(connection, table).await?;
    let mut rows = COPY_START.to_vec();
    while source.lines().next().is_some_and(|line| to_rows.knows(line)) {
        for line in source.lines() {
            to_rows.turn(line, &mut rows)?;
            if rows.len() >= SEND_BYTES {
                copy.send(rows.as_slice()).await?;
                rows.clear();
            }
        }
        source.advance()?;
    }
    rows.extend_from_slice(COPY_END);
    copy.send(rows.as_slice()).await?;
    Ok(copy.finish().await?)
}

/// The chunk of the file that is next.
struct Source<'a> {
    /// Nothing after the last.
    chunk: Vec<u8>,
    reader: &'a mut Reader,
    bar: &'a ProgressBar,
}

impl Source<'_> {
    fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.chunk.split_inclusive(|byte| *byte == b'\n')
    }

    fn advance(&mut self) -> anyhow::Result<()> {
        self.chunk.clear();
        self.chunk.extend_from_slice(self.reader.next_chunk()?.unwrap_or_default());
        self.bar.set_position(self.reader.bytes());
        Ok(())
    }
}

/// Versions are dense, from the oldest kept to the newest.
fn check_dense(oldest: i64, newest: i64, events: u64, state: &StoreState, end: &End) -> anyhow::Result<()> {
    let expected = u64::try_from(end.head - end.oldest + 1).unwrap_or(0);
    let fits = events == expected && (events == 0 || (oldest, newest) == (end.oldest, end.head));
    if !fits || (state.oldest, state.head) != (end.oldest, end.head) {
        bail!(
            "the file should hold the events from version {} to {}, but holds {events}, from {oldest} to {newest}; export it anew",
            end.oldest,
            end.head
        );
    }
    Ok(())
}
