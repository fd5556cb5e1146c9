//! Looks at the database: a page each, in the form it is answered in. Pages are read on threads of their own if
//! there are any ([`Db::page`]): a page of a thousand events keeps one busy for a millisecond or two.

use std::sync::Arc;

use chrono_tz::Tz;
use sqlx::PgConnection;

use super::answer::{Answer, Events, Found};
use crate::{
    domain::{
        cursor::From,
        event::{self, Keep},
        fault::Fault,
        ids::{FeedId, FeedKey},
    },
    live::feed::Feed,
    store::{
        agents,
        cards::Cards,
        events::{self, Page, Wanted},
        history,
        pool::{Db, Reader},
    },
};

/// The database as polls read it.
pub struct Table {
    db: Db,
    feed: Arc<Feed>,
}

impl Table {
    pub fn new(db: Db, feed: Arc<Feed>) -> Self {
        Self { db, feed }
    }

    /// The newest events before a version, or the newest of all.
    pub async fn before(&self, wanted: Wanted, before: Option<i64>) -> Result<Answer, Fault> {
        let (cards, zone) = (self.feed.cards(), self.feed.zone);
        self.db.page(move |reader| read_before(reader, cards, zone, wanted, before.unwrap_or(i64::MAX))).await
    }

    /// The events after `seen`, for a reader who asked for what comes after `asked`. Decides whether `seen` belongs
    /// to this history.
    pub async fn after(&self, wanted: Wanted, seen: i64, asked: i64) -> Result<Answer, Fault> {
        let (cards, zone) = (self.feed.cards(), self.feed.zone);
        self.db.page(move |reader| read_after(reader, cards, zone, wanted, seen, asked)).await
    }

    /// The events that are not acknowledged, and their versions.
    pub async fn unacked(&self, wanted: Wanted) -> Result<(Answer, Arc<[i64]>), Fault> {
        let (cards, zone) = (self.feed.cards(), self.feed.zone);
        self.db.page(move |reader| read_unacked(reader, cards, zone, wanted)).await
    }

    /// The version after which a reader begins.
    pub async fn begin_of(&self, from: From) -> Result<i64, Fault> {
        Ok(match from {
            From::Version(version) => version,
            From::Now => self.db.read(events::store_state).await?.head,
            From::Time(time) => self.db.read(async |connection| events::version_before(connection, time).await).await?,
        })
    }

    /// Whether a reader who was given everything up to `version` in the history `epoch` can go on. Returns the name
    /// of the present history. Asks the database: what this process has cached may be out of date.
    ///
    /// # Errors
    /// 41001.
    pub async fn check_epoch(&self, epoch: &str, version: i64) -> Result<Arc<str>, Fault> {
        let (lineage, head) = self.db.read(history::lineage).await?;
        if lineage.continues(epoch, version) {
            Ok(Arc::from(lineage.epoch()))
        } else {
            Err(Fault::HistoryUnknown { head, epoch: lineage.epoch().to_owned() })
        }
    }

    /// The key of a feed.
    ///
    /// # Errors
    /// 40402.
    pub async fn feed_of(&self, id: &FeedId) -> Result<FeedKey, Fault> {
        let found = self.db.read(async |connection| agents::find_feed(connection, id.as_str()).await).await?;
        found.map(|(key, _)| key).ok_or_else(|| Fault::NoSuchAgent(id.to_string()))
    }
}

async fn read_before(reader: Reader, cards: Cards, zone: Tz, wanted: Wanted, before: i64) -> Result<Answer, Fault> {
    let read =
        async |connection: &mut PgConnection| Ok((events::read_before(connection, &cards, wanted, before).await?, ()));
    let (page, ()) = reader.read_page(read).await?;
    let list = event::encode_list(page.events().rev(), zone, Keep::Last).map_err(Fault::internal)?;
    let more = page.more || list.count < page.versions().len();
    let next = page.versions().take(list.count).last().unwrap_or(0);
    Ok(Answer { found: Found { events: Events::List(list), next, more }, epoch: Arc::from(page.epoch) })
}

async fn read_after(
    reader: Reader,
    cards: Cards,
    zone: Tz,
    wanted: Wanted,
    seen: i64,
    asked: i64,
) -> Result<Answer, Fault> {
    let read = async |connection: &mut PgConnection| {
        let page = events::read_after(connection, &cards, wanted, seen).await?;
        let state = if seen > page.head { Some(events::store_state(connection).await?) } else { None };
        Ok((page, state))
    };
    let (page, state) = reader.read_page(read).await?;
    if let Some(state) = state.filter(|state| seen > state.head) {
        return Err(Fault::HistoryUnknown { head: state.head, epoch: state.epoch });
    }
    // `a=0` means from the oldest kept.
    if asked != 0 && seen < page.oldest - 1 {
        return Err(Fault::HistoryGone { after: seen, oldest: page.oldest });
    }
    Ok(fitting(&page, zone)?.0)
}

async fn read_unacked(reader: Reader, cards: Cards, zone: Tz, wanted: Wanted) -> Result<(Answer, Arc<[i64]>), Fault> {
    let read = async |connection: &mut PgConnection| Ok((events::read_unacked(connection, &cards, wanted).await?, ()));
    let (page, ()) = reader.read_page(read).await?;
    fitting(&page, zone)
}

/// As much of an ascending page as fits an answer, and its versions.
fn fitting(page: &Page, zone: Tz) -> Result<(Answer, Arc<[i64]>), Fault> {
    let list = event::encode_list(page.events(), zone, Keep::First).map_err(Fault::internal)?;
    let more = page.more || list.count < page.versions().len();
    let versions: Arc<[i64]> = page.versions().take(list.count).collect();
    let next = match versions.last() {
        Some(last) if more => *last,
        _ => page.head,
    };
    let found = Found { events: Events::List(list), next, more };
    Ok((Answer { found, epoch: Arc::from(page.epoch.as_str()) }, versions))
}
