//! Files of lines that can be checked, and continued after a kill: NDJSON in sealed chunks.
//!
//! ```text
//! {"kind":"header","format":1,...,"sha256":"..."}    of this very line, up to `,"sha256"`
//! ... lines ...
//! {"kind":"seal","chunk":1,"lines":2048,"sha256":"..."}
//! ... lines, seal, and so on ...
//! {"kind":"end",...,"sha256":"..."}
//! ```
//!
//! The checksum of a seal and of the end is the SHA-256 of every byte between the header's line and
//! its own, so a chunk that was changed, lost or moved shows at the next seal, and one pass over the
//! bytes is enough for all of them. Without a program of ours:
//! `tail -n +2 FILE | head -n -1 | sha256sum` gives the checksum of the end.
//!
//! A chunk is written in one go when it is full. Whatever kills the writer, the file then begins with
//! whole chunks, and [`Reader`] finds where they end: that is where a later run continues. Where
//! chunks end depends on the lines alone, so a file that was continued has the same bytes as one
//! that was not.

mod partial;
mod reader;
mod writer;

use std::{collections::BTreeMap, fmt::Write as _, io, path::PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::{partial::Partial, reader::Reader, writer::Writer};

/// The newest format that this program writes and reads.
pub const FORMAT: u32 = 1;
/// A chunk is sealed when it has this many bytes: seldom enough to cost nothing, often enough that
/// little is done twice after a kill.
pub const CHUNK_BYTES: usize = 1024 * 1024;
/// No writer of ours makes a chunk of this many bytes; a file that seems to have one is damaged.
const CHUNK_BYTES_MAX: usize = 64 * 1024 * 1024;

const SEAL_START: &[u8] = br#"{"kind":"seal","#;
const END_START: &[u8] = br#"{"kind":"end","#;
const SUM_START: &[u8] = br#","sha256":""#;

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Holds {
    /// Everything (`deskfeed export`).
    Store,
    /// One feed as its reader sees it (`deskfeed backfill`).
    Feed,
    /// The pages of a feed, newest first: what `deskfeed backfill` has so far.
    Pages,
}

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub format: u32,
    pub holds: Holds,
    /// Version of the program.
    pub deskfeed: String,
    /// When the file was begun.
    pub made_at: DateTime<Utc>,
    /// `Feed-Epoch` of the store that it was made from.
    pub epoch: String,
}

impl Header {
    pub fn new(holds: Holds, made_at: DateTime<Utc>, epoch: String) -> Self {
        Self { format: FORMAT, holds, deskfeed: env!("CARGO_PKG_VERSION").to_owned(), made_at, epoch }
    }
}

/// The last line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The oldest version that was kept; of a feed, the oldest in the file.
    pub oldest: i64,
    /// The newest version; of a feed, the newest in the file.
    pub head: i64,
    /// Lines of each kind.
    pub counts: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Seal {
    chunk: u64,
    lines: u64,
}

/// Where a chunk ends, and all that is needed to write on from there.
#[derive(Debug, Clone, Default)]
pub struct Position {
    bytes: u64,
    chunks: u64,
    sum: Sha256,
}

impl Position {
    /// From the start of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("{} cannot be read", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} was made by neither `deskfeed export` nor `deskfeed backfill`: its first line is not their header", .0.display())]
    NotOurs(PathBuf),
    #[error(
        "{} has format {format} and was made by deskfeed {deskfeed}; this is deskfeed {}, which reads formats up to {FORMAT}: use version {deskfeed} or newer",
        path.display(),
        env!("CARGO_PKG_VERSION")
    )]
    Newer { path: PathBuf, format: u32, deskfeed: String },
    #[error(
        "{} is cut off: after {chunks} whole chunks it ends without its last line; copy it again from where it was made, or make it again",
        path.display()
    )]
    CutOff { path: PathBuf, chunks: u64 },
    #[error(
        "{} is damaged in chunk {chunk}: {what}; copy it again from where it was made, or make it again",
        path.display()
    )]
    Damaged { path: PathBuf, chunk: u64, what: &'static str },
}

/// `record` as a line of this kind that ends with a checksum.
fn summed_line(kind: &str, record: &impl Serialize, sum: impl FnOnce(&str) -> Sha256) -> io::Result<String> {
    let members = serde_json::to_string(record)?;
    let members = members.strip_prefix('{').and_then(|members| members.strip_suffix('}'));
    let members = members.ok_or_else(|| io::Error::other("a record is a JSON object"))?;
    let start = format!(r#"{{"kind":"{kind}",{members}"#);
    let sum = hex(sum(&start));
    Ok(format!("{start},\"sha256\":\"{sum}\"}}\n"))
}

/// The checksum that a line ends with, and what stands before it.
fn split_sum(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let sum = line.strip_suffix(b"\"}\n")?;
    let at = sum.len().checked_sub(64)?;
    let (start, sum) = sum.split_at(at);
    Some((start.strip_suffix(SUM_START)?, sum))
}

fn hex(sum: Sha256) -> String {
    sum.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
