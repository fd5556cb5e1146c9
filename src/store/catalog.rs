//! What the database's schema is really made of, compared with what the migrations make.
//!
//! What they make is written down in `migrations/catalog.txt`, by the statement that reads the
//! database; a test keeps the file true. So a comparison needs no rights but to connect, creates
//! nothing, and works on a standby too.

use std::{collections::BTreeMap, fmt};

use sqlx::PgConnection;

use super::Result;

/// Everything that the migrations make: `kind name: definition`, a line each.
pub const EXPECTED: &str = include_str!("../../migrations/catalog.txt");

/// Something that is not as the migrations make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// The migrations make it, the database does not have it.
    Missing {
        object: String,
    },
    /// The database has it, the migrations do not make it.
    Extra {
        object: String,
    },
    Changed {
        object: String,
        expected: String,
        found: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { object } => write!(f, "missing: {object}"),
            Self::Extra { object } => write!(f, "not of the migrations: {object}"),
            Self::Changed { object, expected, found } => {
                write!(f, "different: {object}\n    expected {expected}\n    found    {found}")
            }
        }
    }
}

/// What the database has, in the form of [`EXPECTED`].
///
/// # Errors
/// When the database cannot be read.
pub async fn read(connection: &mut PgConnection) -> Result<String> {
    let rows: Vec<(String, String, String)> =
        sqlx::query_as(include_str!("sql/catalog.sql")).fetch_all(connection).await?;
    let mut lines: Vec<String> = rows
        .iter()
        .map(|(kind, name, definition)| {
            // PostgreSQL breaks some definitions into lines.
            let words: Vec<&str> = definition.split_whitespace().collect();
            format!("{kind} {name}: {}\n", words.join(" "))
        })
        .collect();
    lines.sort_unstable();
    Ok(lines.concat())
}

/// What differs from what the migrations make.
///
/// # Errors
/// When the database cannot be read.
pub async fn differences(connection: &mut PgConnection) -> Result<Vec<Difference>> {
    Ok(compare(EXPECTED, &read(connection).await?))
}

fn compare(expected: &str, found: &str) -> Vec<Difference> {
    let (expected, found) = (objects(expected), objects(found));
    let mut differences = Vec::new();
    for (object, definition) in &expected {
        match found.get(object) {
            None => differences.push(Difference::Missing { object: (*object).to_owned() }),
            Some(other) if other != definition => differences.push(Difference::Changed {
                object: (*object).to_owned(),
                expected: (*definition).to_owned(),
                found: (*other).to_owned(),
            }),
            Some(_) => {}
        }
    }
    let extra = found.keys().filter(|object| !expected.contains_key(*object));
    differences.extend(extra.map(|object| Difference::Extra { object: (*object).to_owned() }));
    differences
}

fn objects(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once(": ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named() {
        let expected = "column a.b: bigint not null\ntable a: kept\ntrigger a.c: CREATE TRIGGER c\n";
        assert_eq!(compare(expected, expected), []);
        let found = "column a.b: bigint\ntable a: kept\nindex i: CREATE INDEX i\n";
        let told: Vec<String> = compare(expected, found).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "different: column a.b\n    expected bigint not null\n    found    bigint",
                "missing: trigger a.c",
                "not of the migrations: index i"
            ]
        );
    }
}
