//! From lines to COPY data.

use std::{borrow::Cow, fmt};

use chrono::DateTime;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, Visitor},
};
use uuid::Uuid;

use super::{BadRow, NO_TIMES, POSTGRES_EPOCH_S, US_PER_S, line_start};
use crate::store::archive::tables::{Table, Type};

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
