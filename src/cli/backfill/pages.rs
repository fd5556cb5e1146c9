//! What a backfill has so far: the pages of a feed, newest first, in a sealed file. Each page ends
//! with a line that says how to go on, `{"kind":"page","next":4711,"more":true}`: a page without it
//! was not finished, and is asked for again.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::Path,
};

use anyhow::bail;
use serde::{Deserialize, Serialize};

use super::feed::Page;
use crate::cli::sealed::{Header, Holds, Position, Reader, Unreadable, Writer};

const PAGE_START: &[u8] = br#"{"kind":"page","#;
/// What begins like this is no event.
const KIND_START: &[u8] = br#"{"kind":""#;

/// How a page ends.
#[derive(Debug, Serialize, Deserialize)]
struct PageEnd {
    kind: PageKind,
    /// What to ask for next.
    next: i64,
    more: bool,
    /// Its oldest and newest event; none when it has none.
    versions: Option<(i64, i64)>,
    events: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PageKind {
    Page,
}

/// The pages that are there.
#[derive(Debug)]
pub struct Pages {
    pub header: Header,
    /// After the last whole page.
    pub at: Position,
    /// Where each page lies in the file.
    places: Vec<(u64, u64)>,
    pub events: u64,
    /// The newest and the oldest version among them; 0 when there is no event.
    pub newest: i64,
    pub oldest: i64,
    /// What to ask for next; none before the first page.
    pub next: Option<i64>,
    /// Whether there is anything left to ask for.
    pub more: bool,
}

impl Pages {
    /// No page yet; `at` is behind the header.
    pub fn none(header: Header, at: Position) -> Self {
        Self { header, at, places: Vec::new(), events: 0, newest: 0, oldest: 0, next: None, more: true }
    }

    /// The whole pages of a file that an earlier run left.
    ///
    /// # Errors
    /// When it cannot be read or is another command's.
    pub fn read(mut reader: Reader, path: &Path) -> anyhow::Result<Self> {
        if reader.header().holds != Holds::Pages {
            bail!("{} was left by another command; remove it, or name another file", path.display());
        }
        let mut pages = Self::none(reader.header().clone(), reader.position().clone());
        loop {
            let end = match reader.next_chunk() {
                Ok(Some(chunk)) => last_line(chunk).filter(|line| line.starts_with(PAGE_START)).map(<[u8]>::to_vec),
                Ok(None) | Err(Unreadable::CutOff { .. } | Unreadable::Damaged { .. }) => return Ok(pages),
                Err(error) => return Err(error.into()),
            };
            if let Some(end) = end {
                pages.note(&serde_json::from_slice(&end)?, reader.position().clone());
            }
        }
    }

    fn note(&mut self, end: &PageEnd, at: Position) {
        self.places.push((self.at.bytes(), at.bytes()));
        self.at = at;
        self.events += end.events;
        if let Some((oldest, newest)) = end.versions {
            self.newest = self.newest.max(newest);
            self.oldest = oldest;
        }
        (self.next, self.more) = (Some(end.next), end.more);
    }

    /// Writes a page behind the others.
    ///
    /// # Errors
    /// When it cannot be written, or holds what is no event.
    pub fn add<W: Write>(&mut self, writer: &mut Writer<W>, page: &Page) -> anyhow::Result<()> {
        for (version, event) in &page.events {
            if event.starts_with(KIND_START) {
                bail!("event {version} does not begin as events do");
            }
            writer.push(event)?;
        }
        let versions = page.events.first().zip(page.events.last()).map(|((oldest, _), (newest, _))| (*oldest, *newest));
        let events = page.events.len() as u64;
        let end = PageEnd { kind: PageKind::Page, next: page.next, more: page.more, versions, events };
        writer.push(&serde_json::to_vec(&end)?)?;
        writer.seal()?;
        self.note(&end, writer.position().clone());
        Ok(())
    }

    /// Gives each event to `each`, oldest first. The file has been checked by whoever read or wrote it.
    ///
    /// # Errors
    /// When the file cannot be read, or `each` fails.
    pub fn in_order(&self, path: &Path, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut file = BufReader::with_capacity(256 * 1024, File::open(path)?);
        let mut line = Vec::new();
        for (start, end) in self.places.iter().rev() {
            file.seek(SeekFrom::Start(*start))?;
            let mut page = (&mut file).take(end - start);
            loop {
                line.clear();
                if page.read_until(b'\n', &mut line)? == 0 {
                    break;
                }
                if !line.starts_with(KIND_START) {
                    each(line.strip_suffix(b"\n").unwrap_or(&line))?;
                }
            }
        }
        Ok(())
    }
}

fn last_line(chunk: &[u8]) -> Option<&[u8]> {
    chunk.strip_suffix(b"\n")?.rsplit(|byte| *byte == b'\n').next()
}
