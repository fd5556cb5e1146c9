//! Reads a sealed file, and gives nothing of it that was not checked.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{CHUNK_BYTES_MAX, END_START, End, FORMAT, Header, Position, SEAL_START, Seal, Unreadable, hex, split_sum};

/// Longer than any first or last line.
const OUTER_LINE_BYTES_MAX: u64 = 64 * 1024;

/// A sealed file that is being read.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    header: Header,
    /// After the last chunk that was given.
    at: Position,
    chunk: Vec<u8>,
}

impl Reader {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// When it is none of ours, or newer than this program.
    pub fn open(path: &Path) -> Result<Self, Unreadable> {
        let path = path.to_owned();
        let failed = |source| Unreadable::Io { path: path.clone(), source };
        let mut file = BufReader::with_capacity(256 * 1024, File::open(&path).map_err(failed)?);
        let mut line = Vec::new();
        (&mut file).take(OUTER_LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(failed)?;
        let header = header(&line, &path)?;
        let at = Position { bytes: line.len() as u64, ..Position::default() };
        Ok(Self { path, file, header, at, chunk: Vec::new() })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Where the last chunk that was given ends.
    pub fn position(&self) -> &Position {
        &self.at
    }

    /// How many bytes have been read and checked.
    pub fn bytes(&self) -> u64 {
        self.at.bytes
    }

    /// How many bytes the file has.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn size(&self) -> Result<u64, Unreadable> {
        let failed = |source| Unreadable::Io { path: self.path.clone(), source };
        Ok(self.file.get_ref().metadata().map_err(failed)?.len())
    }

    /// The lines of the next chunk, checked; none after the last. Whatever follows the last line of
    /// the file is damage.
    ///
    /// # Errors
    /// When the file is cut off, or not as it was written.
    pub fn next_chunk(&mut self) -> Result<Option<&[u8]>, Unreadable> {
        self.chunk.clear();
        let mut lines = 0;
        loop {
            let start = self.chunk.len();
            let room = (CHUNK_BYTES_MAX + 1 - start) as u64;
            let read = (&mut self.file).take(room).read_until(b'\n', &mut self.chunk);
            read.map_err(|source| Unreadable::Io { path: self.path.clone(), source })?;
            if self.chunk.len() > CHUNK_BYTES_MAX {
                return Err(self.damaged("it does not end"));
            }
            if self.chunk.len() == start || self.chunk.last() != Some(&b'\n') {
                return Err(Unreadable::CutOff { path: self.path.clone(), chunks: self.at.chunks });
            }
            if self.chunk[start..].starts_with(SEAL_START) {
                self.check_seal(start, lines)?;
                self.chunk.truncate(start);
                return Ok(Some(&self.chunk));
            }
            if self.chunk[start..].starts_with(END_START) {
                self.check_end(start)?;
                return Ok(None);
            }
            lines += 1;
        }
    }

    fn check_seal(&mut self, start: usize, lines: u64) -> Result<(), Unreadable> {
        let (held, line) = self.chunk.split_at(start);
        self.at.sum.update(held);
        if split_sum(line).is_none_or(|(_, sum)| sum != hex(self.at.sum.clone()).as_bytes()) {
            return Err(self.damaged("its lines are not those that were sealed"));
        }
        let seal: Option<Seal> = serde_json::from_slice(line).ok();
        if seal.is_none_or(|seal| seal.chunk != self.at.chunks + 1 || seal.lines != lines) {
            return Err(self.damaged("its seal is another chunk's"));
        }
        self.at.sum.update(line);
        self.at.bytes += self.chunk.len() as u64;
        self.at.chunks += 1;
        Ok(())
    }

    fn check_end(&mut self, start: usize) -> Result<(), Unreadable> {
        if start > 0 {
            return Err(self.damaged("it has no seal"));
        }
        if split_sum(&self.chunk).is_none_or(|(_, sum)| sum != hex(self.at.sum.clone()).as_bytes()) {
            return Err(self.damaged("the last line is another file's"));
        }
        let more = self.file.fill_buf().map_err(|source| Unreadable::Io { path: self.path.clone(), source })?;
        if !more.is_empty() {
            return Err(self.damaged("something follows the last line"));
        }
        self.at.bytes += self.chunk.len() as u64;
        Ok(())
    }

    /// Chunks are counted from 1.
    fn damaged(&self, what: &'static str) -> Unreadable {
        Unreadable::Damaged { path: self.path.clone(), chunk: self.at.chunks + 1, what }
    }

    /// The last line, read ahead of everything else: a file that is cut off is known at once. What
    /// it says is confirmed when [`Reader::next_chunk`] gets there.
    ///
    /// # Errors
    /// When the file has no last line.
    pub fn end(&self) -> Result<End, Unreadable> {
        let failed = |source| Unreadable::Io { path: self.path.clone(), source };
        let mut file = File::open(&self.path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        file.seek(SeekFrom::Start(bytes.saturating_sub(OUTER_LINE_BYTES_MAX))).map_err(failed)?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail).map_err(failed)?;
        let line = tail.strip_suffix(b"\n").and_then(|tail| tail.rsplit(|byte| *byte == b'\n').next());
        line.filter(|line| line.starts_with(END_START))
            .and_then(|line| serde_json::from_slice(line).ok())
            .ok_or_else(|| Unreadable::CutOff { path: self.path.clone(), chunks: self.at.chunks })
    }
}

fn header(line: &[u8], path: &Path) -> Result<Header, Unreadable> {
    /// What every format's header has.
    #[derive(Deserialize)]
    struct AnyHeader {
        kind: String,
        format: u32,
        deskfeed: String,
    }
    let not_ours = || Unreadable::NotOurs(path.to_owned());
    let line_end = line.last().filter(|byte| **byte == b'\n');
    line_end.ok_or_else(not_ours)?;
    let any: AnyHeader = serde_json::from_slice(line).map_err(|_| not_ours())?;
    if any.kind != "header" {
        return Err(not_ours());
    }
    if any.format > FORMAT {
        return Err(Unreadable::Newer { path: path.to_owned(), format: any.format, deskfeed: any.deskfeed });
    }
    let damaged = |what| Unreadable::Damaged { path: path.to_owned(), chunk: 0, what };
    let is_whole = split_sum(line).is_some_and(|(start, sum)| sum == hex(Sha256::new_with_prefix(start)).as_bytes());
    if !is_whole {
        return Err(damaged("the header is not as it was written"));
    }
    serde_json::from_slice(line).map_err(|_| damaged("the header cannot be read"))
}
