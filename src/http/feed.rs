//! `GET /feed/status`: an unread badge.

use axum::{
    Json,
    extract::{RawQuery, State},
};

use super::{
    auth::Holder,
    body::pairs,
    problem::Problem,
    state::App,
    wire::{FeedStatus, ProblemSchema},
};
use crate::{domain::cursor::Query, store::events};

/// Where the caller's feed stands.
#[utoipa::path(get, path = "/feed/status", tag = "feed",
    params(("feed" = Option<String>, Query, description = "Whose feed (admins)")),
    responses((status = 200, body = FeedStatus), (status = "default", body = ProblemSchema, content_type = "application/problem+json")))]
pub async fn status(
    State(app): State<App>,
    Holder(grant): Holder,
    RawQuery(query): RawQuery,
) -> Result<Json<FeedStatus>, Problem> {
    let mut parameters = pairs(query.unwrap_or_default().as_bytes())?;
    parameters.retain(|(name, _)| name == "feed");
    let feed = app.polls.feed(&grant.caller, Query::parse(parameters)?.feed.as_ref()).await?;
    let read = app.db.read(async |connection| {
        Ok((events::store_state(connection).await?, events::unacked(connection, feed).await?))
    });
    let (state, (unacked, seconds)) = read.await?;
    Ok(Json(FeedStatus {
        head: state.head,
        oldest: state.oldest,
        epoch: state.epoch,
        unacked,
        oldest_unacked_seconds: seconds.unwrap_or(0).max(0),
    }))
}
