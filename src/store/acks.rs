//! Recording acknowledgements, those of many requests together.

use std::collections::{BTreeMap, HashMap, HashSet};

use sqlx::PgConnection;

use super::Result;
use crate::domain::{
    acks::{Range, Stretch, merge},
    cursor::Ack,
    ids::{FeedKey, MessageId},
};

/// One event type of one feed.
type Lane = (i32, i16);

/// What one feed acknowledges.
#[derive(Debug)]
pub struct FeedAcks<'a> {
    pub feed: FeedKey,
    pub acks: &'a [Ack],
}

/// Records acknowledgements in one transaction. What they do not find is ignored.
///
/// # Errors
/// When the database refuses it; nothing is recorded then, or (a lost connection) it is not known.
pub async fn record(connection: &mut PgConnection, requests: &[FeedAcks<'_>]) -> Result<()> {
    sqlx::raw_sql("begin").execute(&mut *connection).await?;
    let done = record_in_transaction(connection, requests).await;
    let end = if done.is_ok() { "commit" } else { "rollback" };
    let ended = sqlx::raw_sql(end).execute(connection).await;
    done?;
    ended?;
    Ok(())
}

async fn record_in_transaction(connection: &mut PgConnection, requests: &[FeedAcks<'_>]) -> Result<()> {
    let feeds: Vec<i32> = requests.iter().map(|request| request.feed.0).collect();
    // Two requests for one feed, on any replica, go one after the other; in the order of the keys,
    // so that two replicas never wait for each other.
    sqlx::query("/* acks.record */ select from feeds where feed_key = any ($1) order by feed_key for no key update")
        .bind(&feeds)
        .execute(&mut *connection)
        .await?;
    let ranges = resolve(connection, requests).await?;
    let stretches = probe(connection, &ranges).await?;
    if stretches.is_empty() {
        return Ok(());
    }
    let stored = stored_near(connection, &stretches).await?;
    let mut removed: (Vec<i32>, Vec<i16>, Vec<i64>) = Default::default();
    let mut put: (Vec<i32>, Vec<i16>, Vec<i64>, Vec<i64>) = Default::default();
    for (lane, stretches) in &stretches {
        let change = merge(stored.get(lane).map_or(&[], Vec::as_slice), stretches);
        for first in change.remove {
            removed.0.push(lane.0);
            removed.1.push(lane.1);
            removed.2.push(first);
        }
        for range in change.put {
            put.0.push(lane.0);
            put.1.push(lane.1);
            put.2.push(range.first);
            put.3.push(range.last);
        }
    }
    if put.0.is_empty() {
        return Ok(());
    }
    sqlx::query(include_str!("sql/put_acks.sql"))
        .bind(removed.0)
        .bind(removed.1)
        .bind(removed.2)
        .bind(put.0)
        .bind(put.1)
        .bind(put.2)
        .bind(put.3)
        .execute(connection)
        .await?;
    Ok(())
}

/// Ranges of versions to acknowledge, by lane.
type LaneRanges = HashSet<(Lane, i64, i64)>;

/// Finds out what each acknowledgement means to its feed.
async fn resolve(connection: &mut PgConnection, requests: &[FeedAcks<'_>]) -> Result<LaneRanges> {
    let items: Vec<(i32, &Ack)> =
        requests.iter().flat_map(|request| request.acks.iter().map(|ack| (request.feed.0, ack))).collect();
    let by_version = find_versions(connection, &items).await?;
    let by_id = find_ids(connection, &items, &by_version).await?;
    let mut ranges = LaneRanges::new();
    for (position, (feed, ack)) in items.iter().enumerate() {
        // All digits: a version before an Id. A range: an Id before a range. (See `Ack`.)
        let events = by_version.get(&position).or_else(|| by_id.get(&position));
        match (events, ack) {
            (Some(events), _) => {
                ranges.extend(events.iter().map(|(r#type, version)| ((*feed, *r#type), *version, *version)));
            }
            (None, Ack::Range { first, last }) => ranges.extend((0..3).map(|r#type| ((*feed, r#type), *first, *last))),
            (None, _) => {}
        }
    }
    Ok(ranges)
}

/// Events (type, version) by the position of the acknowledgement that names them.
type Named = HashMap<usize, Vec<(i16, i64)>>;

async fn find_versions(connection: &mut PgConnection, items: &[(i32, &Ack)]) -> Result<Named> {
    let versions: Vec<(i32, i32, i64)> = items
        .iter()
        .enumerate()
        .filter_map(|(position, (feed, ack))| match ack {
            Ack::Version(version) => Some((i32::try_from(position).ok()?, *feed, *version)),
            _ => None,
        })
        .collect();
    if versions.is_empty() {
        return Ok(Named::new());
    }
    let rows: Vec<(i32, i16, i64)> = sqlx::query_as(
        "/* acks.find_versions */
         select a.position, e.type, e.version
         from unnest($1::int[], $2::int[], $3::bigint[]) a (position, feed_key, version)
         cross join lateral (
             select * from events where version >= a.version and version <= a.version order by version limit 1
         ) e
         where e.feed_key = a.feed_key",
    )
    .bind(versions.iter().map(|v| v.0).collect::<Vec<i32>>())
    .bind(versions.iter().map(|v| v.1).collect::<Vec<i32>>())
    .bind(versions.iter().map(|v| v.2).collect::<Vec<i64>>())
    .fetch_all(connection)
    .await?;
    Ok(named(rows))
}

async fn find_ids(connection: &mut PgConnection, items: &[(i32, &Ack)], known: &Named) -> Result<Named> {
    let ids: Vec<(i32, i32, MessageId)> = items
        .iter()
        .enumerate()
        .filter(|(position, _)| !known.contains_key(position))
        .filter_map(|(position, (feed, ack))| {
            let id = match ack {
                Ack::Id(id) => id.clone(),
                Ack::Version(version) => MessageId::Text(version.to_string()),
                Ack::Range { first, last } => MessageId::Text(format!("{first}-{last}")),
            };
            Some((i32::try_from(position).ok()?, *feed, id))
        })
        .collect();
    if ids.is_empty() {
        return Ok(Named::new());
    }
    let rows: Vec<(i32, i16, i64)> = sqlx::query_as(include_str!("sql/find_acked_ids.sql"))
        .bind(ids.iter().map(|i| i.0).collect::<Vec<i32>>())
        .bind(ids.iter().map(|i| i.1).collect::<Vec<i32>>())
        .bind(ids.iter().map(|i| i.2.columns().0).collect::<Vec<Option<uuid::Uuid>>>())
        .bind(ids.iter().map(|i| i.2.columns().1).collect::<Vec<Option<&str>>>())
        .bind(ids.iter().map(|i| i.2.version_made_of()).collect::<Vec<Option<i64>>>())
        .fetch_all(connection)
        .await?;
    Ok(named(rows))
}

fn named(rows: Vec<(i32, i16, i64)>) -> Named {
    let mut named = Named::new();
    for (position, r#type, version) in rows {
        if let Ok(position) = usize::try_from(position) {
            named.entry(position).or_default().push((r#type, version));
        }
    }
    named
}

/// Narrows ranges to the events that exist, and finds their neighbours.
async fn probe(connection: &mut PgConnection, ranges: &LaneRanges) -> Result<BTreeMap<Lane, Vec<Stretch>>> {
    let mut stretches: BTreeMap<Lane, Vec<Stretch>> = BTreeMap::new();
    if ranges.is_empty() {
        return Ok(stretches);
    }
    type Row = (i32, i16, i64, i64, Option<i64>, Option<i64>);
    let rows: Vec<Row> = sqlx::query_as(include_str!("sql/probe_acks.sql"))
        .bind(ranges.iter().map(|r| r.0.0).collect::<Vec<i32>>())
        .bind(ranges.iter().map(|r| r.0.1).collect::<Vec<i16>>())
        .bind(ranges.iter().map(|r| r.1).collect::<Vec<i64>>())
        .bind(ranges.iter().map(|r| r.2).collect::<Vec<i64>>())
        .fetch_all(connection)
        .await?;
    for (feed, r#type, first, last, before, after) in rows {
        stretches.entry((feed, r#type)).or_default().push(Stretch { first, last, before, after });
    }
    Ok(stretches)
}

/// The stored ranges that overlap or neighbour the stretches.
async fn stored_near(
    connection: &mut PgConnection,
    stretches: &BTreeMap<Lane, Vec<Stretch>>,
) -> Result<HashMap<Lane, Vec<Range>>> {
    let spans: Vec<(Lane, i64, i64)> = stretches
        .iter()
        .map(|(lane, stretches)| {
            let first = stretches.iter().map(|s| s.first).min().unwrap_or(0);
            let last = stretches.iter().map(|s| s.last).max().unwrap_or(0);
            (*lane, first, last)
        })
        .collect();
    let rows: Vec<(i32, i16, i64, i64)> = sqlx::query_as(include_str!("sql/acks_near.sql"))
        .bind(spans.iter().map(|s| s.0.0).collect::<Vec<i32>>())
        .bind(spans.iter().map(|s| s.0.1).collect::<Vec<i16>>())
        .bind(spans.iter().map(|s| s.1).collect::<Vec<i64>>())
        .bind(spans.iter().map(|s| s.2).collect::<Vec<i64>>())
        .fetch_all(connection)
        .await?;
    let mut stored: HashMap<Lane, Vec<Range>> = HashMap::new();
    for (feed, r#type, first, last) in rows {
        stored.entry((feed, r#type)).or_default().push(Range { first, last });
    }
    Ok(stored)
}
