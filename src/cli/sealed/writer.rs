//! Writes a sealed file.

use std::io::{self, Write};

use sha2::{Digest, Sha256};

use super::{CHUNK_BYTES, End, Header, Position, Seal, summed_line};

/// A sealed file that is being written.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    at: Position,
    /// Lines that are not written yet.
    chunk: Vec<u8>,
    lines: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(mut out: W, header: &Header) -> io::Result<Self> {
        let line = summed_line("header", header, |start| Sha256::new_with_prefix(start))?;
        out.write_all(line.as_bytes())?;
        let at = Position { bytes: line.len() as u64, ..Position::default() };
        Ok(Self::continue_at(out, at))
    }

    /// Continues a file; `out` stands at `at`, and nothing is behind it.
    pub fn continue_at(out: W, at: Position) -> Self {
        Self { out, at, chunk: Vec::with_capacity(CHUNK_BYTES * 2), lines: 0 }
    }

    /// Where the last sealed chunk ends.
    pub fn position(&self) -> &Position {
        &self.at
    }

    /// Adds a line, given without its newline.
    ///
    /// # Errors
    /// When a chunk is full and cannot be written.
    pub fn push(&mut self, line: &[u8]) -> io::Result<()> {
        self.chunk.extend_from_slice(line);
        self.chunk.push(b'\n');
        self.lines += 1;
        if self.chunk.len() >= CHUNK_BYTES { self.seal() } else { Ok(()) }
    }

    /// Ends the chunk, if there is anything in it, and writes it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn seal(&mut self) -> io::Result<()> {
        if self.lines == 0 {
            return Ok(());
        }
        let lines = self.chunk.len();
        self.at.sum.update(&self.chunk);
        self.at.chunks += 1;
        let seal = summed_line("seal", &Seal { chunk: self.at.chunks, lines: self.lines }, |_| self.at.sum.clone())?;
        self.chunk.extend_from_slice(seal.as_bytes());
        self.out.write_all(&self.chunk)?;
        self.at.sum.update(&self.chunk[lines..]);
        self.at.bytes += self.chunk.len() as u64;
        self.chunk.clear();
        self.lines = 0;
        Ok(())
    }

    /// Writes the last line. Gives what was written to, and how many bytes the file has.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn end(mut self, end: &End) -> io::Result<(W, u64)> {
        self.seal()?;
        let line = summed_line("end", end, |_| self.at.sum)?;
        self.out.write_all(line.as_bytes())?;
        self.out.flush()?;
        Ok((self.out, self.at.bytes + line.len() as u64))
    }
}
