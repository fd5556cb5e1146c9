//! A row as PostgreSQL's binary COPY has it, and as a line of JSON:
//! `{"table":"acks","first_version":0,"last_version":7,"feed_key":1,"type":0}`. Members are the
//! columns in their order, without those that are null.

use std::{borrow::Cow, fmt, io::Write as _};

use chrono::{DateTime, Datelike};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, Visitor},
};
use uuid::Uuid;

use super::tables::{Table, Type};

/// What COPY data begin with: the signature, no flags, no extension.
pub const COPY_START: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What COPY data end with.
pub const COPY_END: &[u8] = &[0xff, 0xff];

/// PostgreSQL counts time from 2000-01-01, in microseconds.
const POSTGRES_EPOCH_S: i64 = 946_684_800;
const US_PER_S: i64 = 1_000_000;
/// Times that are none, as PostgreSQL has them and writes them.
const NO_TIMES: [(i64, &str); 2] = [(i64::MAX, "infinity"), (i64::MIN, "-infinity")];

/// Data that are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum BadRow {
    #[error("PostgreSQL's COPY data of {table} cannot be read: {what}")]
    Copy { table: &'static str, what: &'static str },
    #[error("a value of {table}.{column} cannot be written: {what}")]
    Value { table: &'static str, column: &'static str, what: &'static str },
    #[error("a line of {table} cannot be read")]
    Line {
        table: &'static str,
        #[source]
        source: serde_json::Error,
    },
}

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

fn write_time(us: i64, second: &mut (i64, String), line: &mut Vec<u8>) -> Result<(), &'static str> {
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

/// Turns lines into COPY data.
#[derive(Debug)]
pub struct ToRows {
    table: &'static Table,
    /// `{"table":"acks"`
    start: String,
}

impl ToRows {
    pub fn new(table: &'static Table) -> Self {
        Self { table, start: line_start(table) }
    }

    /// Whether a line is this table's.
    pub fn knows(&self, line: &[u8]) -> bool {
        line.strip_prefix(self.start.as_bytes()).is_some_and(|rest| matches!(rest.first(), Some(b',' | b'}')))
    }

    /// Adds the row of a line to `rows`.
    ///
    /// # Errors
    /// When the line is not one of this table.
    pub fn turn(&self, line: &[u8], rows: &mut Vec<u8>) -> Result<(), BadRow> {
        let bad = |source| BadRow::Line { table: self.table.name, source };
        let mut json = serde_json::Deserializer::from_slice(line);
        Row { table: self.table, rows }.deserialize(&mut json).map_err(bad)?;
        json.end().map_err(bad)
    }
}

fn line_start(table: &Table) -> String {
    format!(r#"{{"table":"{}""#, table.name)
}

/// A line that is being turned.
struct Row<'a> {
    table: &'static Table,
    rows: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a row of {}", self.table.name)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let columns = self.table.columns;
        self.rows.extend_from_slice(&i16::try_from(columns.len()).unwrap_or(i16::MAX).to_be_bytes());
        let mut filled = 0;
        while let Some(name) = members.next_key::<Name<'de>>()? {
            if name.0 == "table" {
                members.next_value::<Name<'de>>()?;
                continue;
            }
            let skipped = columns[filled..].iter().position(|column| column.name == name.0).ok_or_else(|| {
                A::Error::custom(format!(
                    "{} is not one of its columns, or stands in the wrong place; was this made by a newer deskfeed?",
                    name.0
                ))
            })?;
            self.rows.extend(std::iter::repeat_n(NULL, skipped).flatten());
            filled += skipped + 1;
            members.next_value_seed(Value { r#type: columns[filled - 1].r#type, rows: &mut *self.rows })?;
        }
        self.rows.extend(std::iter::repeat_n(NULL, columns.len() - filled).flatten());
        Ok(())
    }
}

/// The length that says null.
const NULL: [u8; 4] = (-1_i32).to_be_bytes();

/// A text that is not copied when it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// A value that is being turned.
struct Value<'a> {
    r#type: Type,
    rows: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        let rows = self.rows;
        match self.r#type {
            Type::Int2 => put(rows, &i16::deserialize(json)?.to_be_bytes()),
            Type::Int4 => put(rows, &i32::deserialize(json)?.to_be_bytes()),
            Type::Int8 => put(rows, &i64::deserialize(json)?.to_be_bytes()),
            Type::Time => put(rows, &read_time(&Name::deserialize(json)?.0).map_err(D::Error::custom)?.to_be_bytes()),
            Type::Uuid => {
                let text = Name::deserialize(json)?.0;
                put(rows, Uuid::try_parse(&text).map_err(D::Error::custom)?.as_bytes())
            }
            Type::Bytes => {
                let text = Name::deserialize(json)?.0;
                put(rows, &read_bytes(&text).ok_or_else(|| D::Error::custom("bytes are pairs of hexadecimal digits"))?)
            }
            Type::Text => put(rows, Name::deserialize(json)?.0.as_bytes()),
        }
        .ok_or_else(|| D::Error::custom("a value has more bytes than PostgreSQL can take"))
    }
}

fn put(rows: &mut Vec<u8>, value: &[u8]) -> Option<()> {
    rows.extend_from_slice(&i32::try_from(value.len()).ok()?.to_be_bytes());
    rows.extend_from_slice(value);
    Some(())
}

fn read_time(text: &str) -> Result<i64, chrono::ParseError> {
    match NO_TIMES.iter().find(|(_, none)| *none == text) {
        Some((us, _)) => Ok(*us),
        None => Ok(DateTime::parse_from_rfc3339(text)?.timestamp_micros() - POSTGRES_EPOCH_S * US_PER_S),
    }
}

fn read_bytes(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::archive::tables::{Column, TABLES};

    const ALL: &Table = &Table {
        name: "all",
        columns: &[
            Column { name: "small", r#type: Type::Int2 },
            Column { name: "int", r#type: Type::Int4 },
            Column { name: "big", r#type: Type::Int8 },
            Column { name: "time", r#type: Type::Time },
            Column { name: "uuid", r#type: Type::Uuid },
            Column { name: "bytes", r#type: Type::Bytes },
            Column { name: "text", r#type: Type::Text },
        ],
        order: "small",
    };

    /// There and back; gives the COPY data.
    fn rows(table: &'static Table, lines: &[&str]) -> Vec<u8> {
        let to_rows = ToRows::new(table);
        let mut data = COPY_START.to_vec();
        for line in lines {
            assert!(to_rows.knows(line.as_bytes()), "{line}");
            to_rows.turn(line.as_bytes(), &mut data).expect("a line of the table");
        }
        data.extend_from_slice(COPY_END);
        data
    }

    fn lines(table: &'static Table, data: &[u8], piece: usize) -> Vec<String> {
        let (mut to_lines, mut line, mut lines) = (ToLines::new(table), Vec::new(), Vec::new());
        for piece in data.chunks(piece) {
            assert!(!to_lines.is_complete());
            to_lines.feed(piece);
            while to_lines.next(&mut line).expect("rows of the table") {
                lines.push(String::from_utf8(line.clone()).expect("text"));
            }
        }
        assert!(to_lines.is_complete());
        lines
    }

    #[test]
    fn rows_come_back_whatever_pieces_they_come_in() {
        let there = [
            r#"{"table":"all","small":-3,"int":2147483647,"big":-9223372036854775808,"time":"1999-12-31T23:59:59.999999Z","uuid":"0198c0de-0000-7000-8000-00000000abcd","bytes":"00ff10","text":"a \"b\" \\ \n\u0001 中文 🙂"}"#,
            r#"{"table":"all","time":"2026-02-03T04:05:06.000007Z","text":""}"#,
            r#"{"table":"all","small":0,"time":"2026-02-03T04:05:06.100000Z","bytes":""}"#,
            r#"{"table":"all","big":1,"time":"infinity"}"#,
            r#"{"table":"all","time":"-infinity","text":"x"}"#,
            r#"{"table":"all","time":"0001-01-01T00:00:00.000000Z"}"#,
            r#"{"table":"all"}"#,
        ];
        let data = rows(ALL, &there);
        for piece in [1, 2, 3, 7, 64, data.len()] {
            assert_eq!(lines(ALL, &data, piece), there, "pieces of {piece} bytes");
        }
    }

    #[test]
    fn what_is_no_row_is_refused() {
        let to_rows = ToRows::new(ALL);
        for line in [
            "",
            "[]",
            r#"{"table":"all","later":1}"#,
            r#"{"table":"all","int":1,"small":1}"#,
            r#"{"table":"all","int":1,"int":1}"#,
            r#"{"table":"all","small":40000}"#,
            r#"{"table":"all","small":"1"}"#,
            r#"{"table":"all","time":"yesterday"}"#,
            r#"{"table":"all","uuid":"0198c0de"}"#,
            r#"{"table":"all","bytes":"abc"}"#,
            r#"{"table":"all","bytes":"+f"}"#,
            r#"{"table":"all","text":1}"#,
            r#"{"table":"all"} {"table":"all"}"#,
        ] {
            assert!(to_rows.turn(line.as_bytes(), &mut Vec::new()).is_err(), "{line}");
        }
        assert!(!to_rows.knows(br#"{"table":"allies","small":1}"#));

        let mut too_late = ToLines::new(ALL);
        let year = |year: i64| (year - 2000) * 31_556_952 * US_PER_S;
        for (us, fits) in [(year(9998), true), (year(10_001), false), (year(-2), false), (i64::MAX - 1, false)] {
            let written = write_time(us, &mut too_late.second, &mut Vec::new());
            assert_eq!(written.is_ok(), fits, "{us}");
        }
        let mut other = ToLines::new(&TABLES[0]);
        other.feed(&rows(ALL, &[r#"{"table":"all"}"#]));
        assert!(other.next(&mut Vec::new()).is_err(), "another table's rows");
        let mut no_copy = ToLines::new(ALL);
        no_copy.feed(b"no such data at all");
        assert!(no_copy.next(&mut Vec::new()).is_err());
    }
}
