//! A row as PostgreSQL's binary COPY has it, and as a line of JSON:
//! `{"table":"acks","first_version":0,"last_version":7,"feed_key":1,"type":0}`. Members are the
//! columns in their order, without those that are null.

mod to_lines;
mod to_rows;

pub use self::{to_lines::ToLines, to_rows::ToRows};
use super::tables::Table;

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

/// What every line of a table begins with.
fn line_start(table: &Table) -> String {
    format!(r#"{{"table":"{}""#, table.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::archive::tables::{Column, TABLES, Type};

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

        let year = |year: i64| (year - 2000) * 31_556_952 * US_PER_S;
        for (us, fits) in [(year(9998), true), (year(10_001), false), (year(-2), false), (i64::MAX - 1, false)] {
            let written = to_lines::write_time(us, &mut (i64::MIN, String::new()), &mut Vec::new());
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
