//! Reads and begins the histories of the store (table `histories`).

use sqlx::PgConnection;
use uuid::Uuid;

use super::Result;
use crate::domain::lineage::{History, Lineage};

/// Formats a history's name for clients (`Feed-Epoch`).
pub fn epoch(name: Uuid) -> String {
    name.simple().to_string()
}

/// Reads all histories, and the newest version.
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

/// The newest history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newest {
    pub ordinal: i32,
    pub epoch: String,
    pub first_version: i64,
    /// Whether it began on this server and timeline. If not, the server was promoted or restored since, and the next
    /// append begins a new history. `None` on a standby.
    pub is_own: Option<bool>,
}

/// Reads the newest history.
///
/// # Errors
/// When the database cannot be read.
pub async fn newest(connection: &mut PgConnection) -> Result<Newest> {
    // The same as current_timeline(), which only the owner may call.
    let (ordinal, name, first_version, is_own): (i32, Uuid, i64, Option<bool>) = sqlx::query_as(
        "/* history.newest */
         select ordinal, name, first_version,
                case when not pg_is_in_recovery()
                     then system_identifier = (select system_identifier from pg_control_system())
                          and timeline = ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer
                end
         from histories order by ordinal desc limit 1",
    )
    .fetch_one(connection)
    .await?;
    Ok(Newest { ordinal, epoch: epoch(name), first_version, is_own })
}

/// Begins a new history by hand, so that readers who are ahead of the newest version get 41001 whatever is appended
/// next. Running services notice by themselves.
///
/// # Errors
/// When the database refuses it.
pub async fn renew(connection: &mut PgConnection) -> Result<()> {
    sqlx::query("/* history.renew */ select next_history(true)").execute(connection).await?;
    Ok(())
}
