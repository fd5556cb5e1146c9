//! Retention: whole partitions of old events are detached, by the owner of the tables.
//!
//! **Order.** First the oldest version that is kept moves (`keep_events_from`, one transaction under
//! the append lock): from its commit on, who reads from before it is answered 41000, and every replica
//! is notified. Then the partitions are detached, oldest first, each by DETACH PARTITION CONCURRENTLY,
//! which waits for the transactions that use `events` and keeps nobody waiting. So no reader ever
//! meets a hole, wherever this is interrupted; what is left undone is found and finished by the next run.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, Row};
use tokio::time::{Instant, sleep};

use super::{
    Result,
    barrier::{self, Barrier},
    events::{self, StoreState},
};
use crate::domain::limits;

/// Two who detach at once would meet at one partition. Arbitrary, but the same for all of ours.
const RETENTION_LOCK: i64 = 0x6465_736b_6b65_6570;

/// How long one waits for another: a server's process outlives its client by a moment.
const RETENTION_WAIT: Duration = Duration::from_secs(3);

/// A partition of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its name, as SQL has it.
    pub name: String,
    pub first_version: i64,
    /// The first version after it.
    pub end_version: i64,
    /// It was begun to be detached.
    pub detaching: bool,
    pub bytes: i64,
    pub oldest: Option<(i64, DateTime<Utc>)>,
    pub newest: Option<(i64, DateTime<Utc>)>,
}

impl Partition {
    /// Versions are dense.
    pub fn events(&self) -> i64 {
        self.oldest.zip(self.newest).map_or(0, |((oldest, _), (newest, _))| newest - oldest + 1)
    }
}

/// What is to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Everything: only what was begun is finished.
    All,
    /// Events from this time on.
    Since(DateTime<Utc>),
    /// So many of the newest events.
    Events(i64),
    /// Events from this version on.
    From(i64),
}

/// What becomes of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    Goes,
    /// Its events are not kept any more; it is to be detached.
    WasBegun,
    /// With the reason.
    Stays(String),
}

/// Whom it concerns that events go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Concerned {
    pub open_sessions: i64,
    pub closed_sessions: i64,
    pub unacknowledged_events: i64,
    pub their_feeds: i64,
}

/// What retention would do.
#[derive(Debug)]
pub struct Plan {
    pub state: StoreState,
    pub partitions: Vec<(Partition, Fate)>,
    /// The first version that is kept then, if it moves.
    pub keep_from: Option<i64>,
    pub concerned: Concerned,
    /// Tables that were detached earlier, and their bytes.
    pub detached: Vec<(String, i64)>,
}

impl Plan {
    /// The partitions to detach, oldest first.
    pub fn to_detach(&self) -> impl Iterator<Item = &Partition> {
        self.partitions.iter().filter(|(_, fate)| !matches!(fate, Fate::Stays(_))).map(|(partition, _)| partition)
    }
}

/// Finds out what can go.
///
/// # Errors
/// When the database cannot be read.
pub async fn plan(connection: &mut PgConnection, keep: Keep) -> Result<Plan> {
    let state = events::store_state(connection).await?;
    let keep_from = match keep {
        Keep::All => None,
        Keep::From(version) => Some(version),
        Keep::Events(count) => Some(state.head.saturating_sub(count).saturating_add(1)),
        Keep::Since(time) => Some(events::version_before(connection, time).await? + 1),
    };
    let partitions = partitions(connection).await?;
    let mut fates: Vec<Fate> = partitions.iter().map(|partition| judge(partition, &state, keep_from)).collect();
    let mut boundary = None;
    // The newest beginning of a partition before which nothing is needed.
    while let Some(last) = fates.iter().rposition(|fate| *fate == Fate::Goes) {
        let Some(next) = partitions.get(last + 1) else { break };
        let waiting = sessions_in_need(connection, next.first_version).await?;
        if waiting.is_empty() {
            boundary = Some(next.first_version);
            break;
        }
        fates[last] = Fate::Stays(format!("messages that no agent was told of: {}", waiting.join(", ")));
    }
    let concerned = match boundary {
        Some(version) => concerned(connection, version).await?,
        None => Concerned::default(),
    };
    let detached = detached(connection).await?;
    let partitions = partitions.into_iter().zip(fates).collect();
    Ok(Plan { state, partitions, keep_from: boundary, concerned, detached })
}

/// What becomes of a partition, as far as it and the store's state can tell.
fn judge(partition: &Partition, state: &StoreState, keep_from: Option<i64>) -> Fate {
    let stays = |reason: &str| Fate::Stays(reason.to_owned());
    if partition.detaching || partition.end_version <= state.oldest {
        return Fate::WasBegun;
    }
    if partition.first_version > state.head {
        return stays("for events to come");
    }
    if partition.end_version > state.head {
        return stays("has the newest event");
    }
    match keep_from {
        Some(keep_from) if partition.end_version <= keep_from => Fate::Goes,
        _ => stays("kept"),
    }
}

async fn partitions(connection: &mut PgConnection) -> Result<Vec<Partition>> {
    let rows = sqlx::query(include_str!("sql/partitions.sql")).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let event = |version: Option<i64>, at: Option<DateTime<Utc>>| version.zip(at);
            Ok(Partition {
                name: row.try_get(0)?,
                first_version: row.try_get(1)?,
                end_version: row.try_get(2)?,
                detaching: row.try_get(3)?,
                bytes: row.try_get(4)?,
                oldest: event(row.try_get(5)?, row.try_get(6)?),
                newest: event(row.try_get(7)?, row.try_get(8)?),
            })
        })
        .collect()
}

async fn sessions_in_need(connection: &mut PgConnection, version: i64) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(
        "/* retention.sessions_in_need */ select session_id from sessions_in_need_of_events_before($1) limit 5",
    )
    .bind(version)
    .fetch_all(connection)
    .await?)
}

async fn concerned(connection: &mut PgConnection, version: i64) -> Result<Concerned> {
    let (open_sessions, closed_sessions, unacknowledged_events, their_feeds) =
        sqlx::query_as(include_str!("sql/concerned.sql")).bind(version).fetch_one(connection).await?;
    Ok(Concerned { open_sessions, closed_sessions, unacknowledged_events, their_feeds })
}

/// Tables that were partitions of events once.
///
/// # Errors
/// When the database cannot be read.
pub async fn detached(connection: &mut PgConnection) -> Result<Vec<(String, i64)>> {
    Ok(sqlx::query_as(
        "/* retention.detached */
         select c.oid::regclass::text, pg_total_relation_size(c.oid) from pg_class c
         where c.relnamespace = (select relnamespace from pg_class where oid = to_regclass('events'))
           and c.relkind = 'r' and not c.relispartition and c.relname ~ '^events_[0-9]+$'
         order by length(c.relname), c.relname",
    )
    .fetch_all(connection)
    .await?)
}

/// Whether the connection's role owns the tables.
///
/// # Errors
/// When the database cannot be read.
pub async fn is_owner(connection: &mut PgConnection) -> Result<bool> {
    Ok(sqlx::query_scalar(
        "/* retention.is_owner */ select pg_has_role(relowner, 'usage') from pg_class where oid = 'events'::regclass",
    )
    .fetch_one(connection)
    .await?)
}

/// Makes the connection the only one that detaches, for as long as it lasts. False when another is,
/// and goes on being it for a while.
///
/// # Errors
/// When the database cannot be read.
pub async fn begin(connection: &mut PgConnection) -> Result<bool> {
    let until = Instant::now() + RETENTION_WAIT;
    // Not pg_advisory_lock: whoever waits in it has a snapshot, which DETACH ... FINALIZE would wait for.
    loop {
        let locked: bool = sqlx::query_scalar("/* retention.begin */ select pg_try_advisory_lock($1)")
            .bind(RETENTION_LOCK)
            .fetch_one(&mut *connection)
            .await?;
        if locked || Instant::now() >= until {
            return Ok(locked);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Moves the oldest version that is kept to the beginning of a partition; from then on readers
/// behind it are told. Gives that version: one more than asked for where an agent's message would be
/// cut in two.
///
/// # Errors
/// When events before it are still needed, or the database refuses it.
pub async fn keep_from(connection: &mut PgConnection, version: i64) -> Result<i64> {
    let limits = format!("set statement_timeout = 0; set lock_timeout = {}", limits::DB_LOCK_MS);
    sqlx::raw_sql(AssertSqlSafe(limits)).execute(&mut *connection).await?;
    barrier::committed(connection, Barrier::AfterWarning, async |connection| {
        Ok(sqlx::query_scalar("/* retention.keep_from */ select keep_events_from($1)")
            .bind(version)
            .fetch_one(connection)
            .await?)
    })
    .await
}

/// The statement that detaches a partition, or finishes what was begun.
pub fn detach_statement(partition: &Partition) -> String {
    let how = if partition.detaching { "finalize" } else { "concurrently" };
    format!("alter table events detach partition {} {how}", partition.name)
}

/// Detaches a partition. Waits for the transactions that use `events`, however long that takes.
///
/// # Errors
/// When the database refuses it.
pub async fn detach(connection: &mut PgConnection, partition: &Partition) -> Result<()> {
    sqlx::raw_sql("set statement_timeout = 0; set lock_timeout = 0").execute(&mut *connection).await?;
    sqlx::raw_sql(AssertSqlSafe(detach_statement(partition))).execute(connection).await?;
    Ok(())
}

/// Drops what was detached.
///
/// # Errors
/// When the database refuses it.
pub async fn drop_detached(connection: &mut PgConnection, partition: &Partition) -> Result<()> {
    let statement = format!("/* retention.drop_detached */ drop table {}", partition.name);
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_partitions_go_and_never_the_one_with_the_head() {
        let state =
            |oldest, head| StoreState { head, oldest, epoch: String::new(), begins_at: 1, revocations: 0, erasures: 0 };
        let fates = |oldest, head, keep_from| -> String {
            [1, 11, 21, 31]
                .map(|first_version| Partition {
                    name: String::new(),
                    first_version,
                    end_version: first_version + 10,
                    detaching: false,
                    bytes: 0,
                    oldest: None,
                    newest: None,
                })
                .iter()
                .map(|partition| match judge(partition, &state(oldest, head), keep_from) {
                    Fate::Goes => 'g',
                    Fate::WasBegun => 'b',
                    Fate::Stays(reason) => reason.chars().next().expect("a reason"),
                })
                .collect()
        };
        assert_eq!(fates(1, 25, None), "kkhf");
        assert_eq!(fates(1, 25, Some(10)), "kkhf");
        assert_eq!(fates(1, 25, Some(11)), "gkhf");
        assert_eq!(fates(1, 25, Some(20)), "gkhf");
        assert_eq!(fates(1, 25, Some(i64::MAX)), "gghf");
        assert_eq!(fates(1, 20, Some(i64::MAX)), "ghff");
        assert_eq!(fates(1, 21, Some(i64::MAX)), "gghf");
        assert_eq!(fates(1, 0, Some(i64::MAX)), "ffff");
        // One more than the boundary, where an agent's message would have been cut in two.
        assert_eq!(fates(12, 25, Some(1)), "bkhf");
    }
}
