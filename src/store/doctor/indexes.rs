//! Indexes that are not used because they are not whole, and ones that are mostly air.

use sqlx::PgConnection;

use super::Result;
use crate::domain::finding::Finding;

const CHECK: &str = "indexes";
/// A small index may be as empty as it likes.
const BYTES_MIN: i64 = 10 * 1024 * 1024;
/// Part of it that need not be there: a warning, and never more. Keys in random order leave three tenths.
const AIR: (f64, f64) = (0.5, 2.0);

pub(super) async fn look(connection: &mut PgConnection) -> Result<Vec<Finding>> {
    let invalid: Vec<String> = sqlx::query_scalar(
        "/* doctor.indexes */
         select i.indexrelid::regclass::text from pg_index i join pg_class c on c.oid = i.indexrelid
         where c.relnamespace = (select relnamespace from pg_class where oid = to_regclass('_sqlx_migrations'))
           and not (i.indisvalid and i.indisready)
         order by 1",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut findings: Vec<Finding> = invalid
        .into_iter()
        .map(|index| {
            Finding::warning(
                CHECK,
                format!("{index} is invalid: it costs every write and serves no read; making it was cut short"),
                format!("drop index concurrently {index}, and make it again (if it comes of a migration: `deskfeed migrate`)"),
            )
        })
        .collect();
    let sizes: Vec<(String, i64, f64)> =
        sqlx::query_as(include_str!("../sql/index_sizes.sql")).bind(BYTES_MIN).fetch_all(connection).await?;
    let looked_at = sizes.len();
    for (index, bytes, needed) in sizes {
        let air = 1.0 - needed / bytes as f64;
        if air >= AIR.0 {
            findings.push(Finding::by_limits(
                CHECK,
                air,
                AIR,
                format!("{index} has {} MiB, of which about {:.0} % are air (an estimate)", bytes >> 20, air * 100.0),
                format!("reindex index concurrently {index}; it needs as much room again while it runs"),
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            CHECK,
            format!("all are valid; of {looked_at} above {} MiB none is mostly air", BYTES_MIN >> 20),
        ));
    }
    Ok(findings)
}
