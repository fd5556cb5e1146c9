//! Whether the schema is the one that this program needs.

use sqlx::PgConnection;

use super::Result;
use crate::{
    domain::finding::Finding,
    store::{
        catalog::{self, Difference},
        schema::{self, SchemaState},
    },
};

const CHECK: &str = "migrations";

pub(super) async fn look(connection: &mut PgConnection) -> Result<Vec<Finding>> {
    Ok(match schema::state(connection).await? {
        SchemaState::Current => return differences(connection).await,
        SchemaState::Extended { newest } => vec![Finding::note(
            CHECK,
            format!("the database has migrations up to {newest}, newer than this program, which can work with them"),
            "run the doctor of the newer deskfeed; replace the older replicas",
        )],
        SchemaState::Behind { next } => vec![Finding::critical(
            CHECK,
            format!("migrations from {next} on are not applied: this version does not serve"),
            "run `deskfeed migrate`, or with psql what `deskfeed migrate print` prints",
        )],
        SchemaState::Ahead { newest } => vec![Finding::critical(
            CHECK,
            format!("the database has migrations up to {newest}, and this version cannot work with them"),
            "install the deskfeed that applied them",
        )],
        SchemaState::Different { number } => vec![Finding::critical(
            CHECK,
            format!("migration {number} is recorded differently from this program's file"),
            "compare with `deskfeed migrate status`, and run the deskfeed that applied it",
        )],
    })
}

async fn differences(connection: &mut PgConnection) -> Result<Vec<Finding>> {
    let differences = catalog::differences(connection).await?;
    if differences.is_empty() {
        return Ok(vec![Finding::ok(CHECK, "all are applied, and the schema is what they make")]);
    }
    Ok(differences
        .into_iter()
        .map(|difference| match difference {
            Difference::Extra { object } => Finding::warning(
                CHECK,
                format!("{object} is not of the migrations"),
                "drop it, or move it to a schema of its own",
            ),
            Difference::Missing { object } => Finding::critical(
                CHECK,
                format!("{object} is missing"),
                "make it anew as its migration does (`deskfeed migrate print --from 1`)",
            ),
            Difference::Changed { object, .. } => Finding::critical(
                CHECK,
                format!("{object} is not as the migrations make it"),
                "`deskfeed migrate verify` shows both; change it back",
            ),
        })
        .collect())
}
