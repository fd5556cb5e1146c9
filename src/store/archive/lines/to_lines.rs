//! From COPY data to lines.

use std::io::Write as _;

use chrono::{DateTime, Datelike};
use uuid::Uuid;

use super::{BadRow, COPY_START, NO_TIMES, POSTGRES_EPOCH_S, US_PER_S, line_start};
use crate::store::archive::tables::{Table, Type};

/// Turns COPY data, in whatever pieces they come, into lines.
#[derive(Debug)]
pub struct ToLines {
    table: &'static Table,
    /// `{"table":"acks"`
    start: String,
    /// `,"feed_key":` for each column.
    members: Vec<String>,
    data: Vec<u8>,
    /// What of `data` has been turned.
    turned: usize,
    started: bool,
    ended: bool,
    /// The last second that was written, and how: events of one second come together.
    second: (i64, String),
}

impl ToLines {
    pub fn new(table: &'static Table) -> Self {
        Self {
            table,
            start: line_start(table),
            members: table.columns.iter().map(|column| format!(r#","{}":"#, column.name)).collect(),
            data: Vec::new(),
            turned: 0,
            started: false,
            ended: false,
            second: (i64::MIN, String::new()),
        }
    }

    /// Takes in the next piece.
    pub fn feed(&mut self, piece: &[u8]) {
        self.data.drain(..self.turned);
        self.turned = 0;
        self.data.extend_from_slice(piece);
    }

    /// Puts the next line into `line`, if all of its row is there.
    ///
    /// # Errors
    /// When the data are not this table's rows, or a value has no JSON.
    pub fn next(&mut self, line: &mut Vec<u8>) -> Result<bool, BadRow> {
        let data = std::mem::take(&mut self.data);
        let mut rest = Rest { table: self.table.name, data: &data[self.turned..] };
        let turned = self.turn(&mut rest, line);
        let left = rest.data.len();
        if let Ok(Some(())) = turned {
            self.turned = data.len() - left;
        }
        self.data = data;
        turned.map(|line| line.is_some())
    }

    /// None when the data end before the row does.
    fn turn(&mut self, rest: &mut Rest<'_>, line: &mut Vec<u8>) -> Result<Option<()>, BadRow> {
        if self.ended {
            return Ok(None);
        }
        if !self.started {
            let Some(start) = rest.take(COPY_START.len()) else { return Ok(None) };
            if start != COPY_START {
                return Err(rest.bad("it begins otherwise"));
            }
            self.turned += COPY_START.len();
            self.started = true;
        }
        let Some(columns) = rest.take_array().map(i16::from_be_bytes) else { return Ok(None) };
        if columns == -1 {
            self.ended = true;
            return Ok(None);
        }
        if usize::try_from(columns) != Ok(self.table.columns.len()) {
            return Err(rest.bad("a row has other columns"));
        }
        line.clear();
        line.extend_from_slice(self.start.as_bytes());
        for (column, member) in self.table.columns.iter().zip(&self.members) {
            let Some(bytes) = rest.take_array().map(i32::from_be_bytes) else { return Ok(None) };
            let Ok(bytes) = usize::try_from(bytes) else { continue };
            let Some(value) = rest.take(bytes) else { return Ok(None) };
            line.extend_from_slice(member.as_bytes());
            write_value(column.r#type, value, &mut self.second, line).map_err(|what| BadRow::Value {
                table: self.table.name,
                column: column.name,
                what,
            })?;
        }
        line.push(b'}');
        Ok(Some(()))
    }

    /// Whether all data came, to their end.
    pub fn is_complete(&self) -> bool {
        self.ended
    }
}

/// COPY data that are not turned yet.
struct Rest<'a> {
    table: &'static str,
    data: &'a [u8],
}

impl<'a> Rest<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.data.split_at_checked(bytes)?;
        self.data = rest;
        Some(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N).and_then(|taken| taken.try_into().ok())
    }

    fn bad(&self, what: &'static str) -> BadRow {
        BadRow::Copy { table: self.table, what }
    }
}

fn write_value(r#type: Type, value: &[u8], second: &mut (i64, String), line: &mut Vec<u8>) -> Result<(), &'static str> {
    const OTHER_LENGTH: &str = "it has another length than its type";
    // Writing into a Vec cannot fail.
    let unwritten = |_| "it cannot be written";
    let int8 = || value.try_into().map(i64::from_be_bytes).map_err(|_| OTHER_LENGTH);
    match r#type {
        Type::Int2 => {
            let int = value.try_into().map(i16::from_be_bytes).map_err(|_| OTHER_LENGTH)?;
            serde_json::to_writer(line, &int).map_err(unwritten)
        }
        Type::Int4 => {
            let int = value.try_into().map(i32::from_be_bytes).map_err(|_| OTHER_LENGTH)?;
            serde_json::to_writer(line, &int).map_err(unwritten)
        }
        Type::Int8 => serde_json::to_writer(line, &int8()?).map_err(unwritten),
        Type::Time => write_time(int8()?, second, line),
        Type::Uuid => {
            let uuid = Uuid::from_slice(value).map_err(|_| OTHER_LENGTH)?;
            line.push(b'"');
            line.extend_from_slice(uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes());
            line.push(b'"');
            Ok(())
        }
        Type::Bytes => {
            line.push(b'"');
            for byte in value {
                write!(line, "{byte:02x}").map_err(|_| "it cannot be written")?;
            }
            line.push(b'"');
            Ok(())
        }
        Type::Text => {
            let text = str::from_utf8(value).map_err(|_| "it is not UTF-8; the database must have encoding UTF8")?;
            serde_json::to_writer(line, text).map_err(unwritten)
        }
    }
}

pub(super) fn write_time(us: i64, second: &mut (i64, String), line: &mut Vec<u8>) -> Result<(), &'static str> {
    if let Some((_, text)) = NO_TIMES.iter().find(|(none, _)| *none == us) {
        line.push(b'"');
        line.extend_from_slice(text.as_bytes());
        line.push(b'"');
        return Ok(());
    }
    let (s, us) = (us.div_euclid(US_PER_S) + POSTGRES_EPOCH_S, us.rem_euclid(US_PER_S));
    if second.0 != s || second.1.is_empty() {
        let time = DateTime::from_timestamp(s, 0).ok_or("the time is out of the calendar")?;
        if !(1..=9999).contains(&time.year()) {
            return Err("it is before the year 1 or after the year 9999");
        }
        *second = (s, time.format("\"%Y-%m-%dT%H:%M:%S.").to_string());
    }
    line.extend_from_slice(second.1.as_bytes());
    write!(line, "{us:06}Z\"").map_err(|_| "it cannot be written")
}
