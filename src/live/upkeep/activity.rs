//! Records every few seconds, for all requests together, when agents polled and tokens were used; and has queued
//! sessions assigned when an agent may have become available.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{
    desk::command::Command,
    domain::limits,
    live::{
        append::Writer,
        auth::{activity::Activity, freshness::Freshness},
    },
    store::{self, agents, pool::Db, sessions, tokens},
};

/// Runs until `stop`, and records once more before it ends.
pub async fn run(activity: Arc<Activity>, db: Db, freshness: Arc<Freshness>, writer: Writer, stop: CancellationToken) {
    let mut flush = interval(Duration::from_millis(limits::ACTIVITY_FLUSH_MS));
    let mut assign = interval(Duration::from_millis(limits::ASSIGN_SWEEP_MS));
    flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
    assign.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (is_noting, is_stopping) = tokio::select! {
            () = stop.cancelled() => (true, true),
            () = activity.urgent() => (true, false),
            _ = flush.tick() => (true, false),
            _ = assign.tick() => (false, false),
        };
        if is_noting && let Err(error) = note(&activity, &db).await {
            tracing::debug!(error = %error, "polls and token uses were not recorded; the next round will try again");
        }
        if is_stopping {
            return;
        }
        if !freshness.is_in_touch() {
            continue;
        }
        match db.read(sessions::any_queued).await {
            // The writer logs its own failures; the next round tries again.
            Ok(true) => drop(writer.submit(Command::AssignQueued).await),
            Ok(false) => {}
            Err(error) => tracing::debug!(error = %error, "the queue was not looked at; the next round will try again"),
        }
    }
}

async fn note(activity: &Activity, db: &Db) -> store::Result<()> {
    let polls = activity.take_polls();
    let token_ids = activity.take_tokens();
    if polls.is_empty() && token_ids.is_empty() {
        return Ok(());
    }
    let noted = db.change(async |connection| {
        if !polls.is_empty() {
            agents::note_polls(connection, &polls).await?;
        }
        if !token_ids.is_empty() {
            tokens::note_uses(connection, &token_ids).await?;
        }
        Ok(())
    });
    let noted = noted.await;
    if noted.is_err() {
        activity.put_back(&polls, token_ids);
    }
    noted
}
