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
use crate::{
    domain::cursor::Query,
    store::{events, pool::read_deadline},
};

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
    let mut lease = app.live.db.lease().await?;
    let state = read_deadline(events::store_state(&mut lease)).await?;
    let (unacked, seconds) = read_deadline(events::unacked(&mut lease, feed)).await?;
    lease.finish();
    Ok(Json(FeedStatus {
        head: state.head,
        oldest: state.oldest,
        epoch: state.epoch,
        unacked,
        oldest_unacked_seconds: seconds.unwrap_or(0).max(0),
    }))
}
