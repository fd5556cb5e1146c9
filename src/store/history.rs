//! The name of the store's history, a part of `Feed-Epoch`.

use sqlx::PgConnection;

use super::Result;

/// Gives the history a new name, so that readers who compare `Feed-Epoch` are told that it may be
/// another one. Services that run notice by themselves.
///
/// # Errors
/// When the database refuses it: only the owner may.
pub async fn rename(connection: &mut PgConnection) -> Result<()> {
    sqlx::query("/* history.rename */ update store set history = gen_random_uuid()").execute(connection).await?;
    Ok(())
}
