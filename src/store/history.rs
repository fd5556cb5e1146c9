//! The histories of the store: see the table `histories`.

use sqlx::PgConnection;
use uuid::Uuid;

use super::Result;
use crate::domain::lineage::{History, Lineage};

/// How clients are shown a history's name (`Feed-Epoch`).
pub fn epoch(name: Uuid) -> String {
    name.simple().to_string()
}

/// All histories, and the newest version.
///
/// # Errors
/// When the database cannot be read.
pub async fn lineage(connection: &mut PgConnection) -> Result<(Lineage, i64)> {
    let rows: Vec<(Uuid, i64, i64)> = sqlx::query_as(
        "/* history.lineage */
         select h.name, h.first_version, greatest(coalesce((select max(version) from events), 0), s.oldest_version - 1)
         from histories h cross join store s order by h.ordinal",
    )
    .fetch_all(connection)
    .await?;
    let head = rows.first().map_or(0, |row| row.2);
    let histories = rows.into_iter().map(|(name, first_version, _)| History { epoch: epoch(name), first_version });
    Ok((Lineage::new(histories.collect()), head))
}

/// Begins a new history by hand, so that readers who are ahead of the newest version are told so, whatever is
/// appended next. Services that run notice by themselves.
///
/// # Errors
/// When the database refuses it.
pub async fn renew(connection: &mut PgConnection) -> Result<()> {
    sqlx::query("/* history.renew */ select next_history(true)").execute(connection).await?;
    Ok(())
}
