//! Looks at the table: a page each, and what it is answered as. Where there are threads for pages, they do it
//! ([`crate::store::pool::Db::page`]): a page of a thousand events takes one for a millisecond or two.

use std::sync::Arc;

use chrono_tz::Tz;
use sqlx::PgConnection;

use super::{Answer, Encoded};
use crate::{
    domain::{
        event::{self, Keep},
        fault::Fault,
    },
    live::relay::Live,
    store::{
        cards::Cards,
        events::{self, Page, Wanted},
        pool::Reader,
    },
};

/// The newest events before a version, or the newest of all.
pub async fn before(live: &Arc<Live>, wanted: Wanted, before: Option<i64>) -> Result<Answer, Fault> {
    let (cards, zone) = (live.cards(), live.zone);
    live.db.page(move |reader| read_before(reader, cards, zone, wanted, before.unwrap_or(i64::MAX))).await
}

async fn read_before(reader: Reader, cards: Cards, zone: Tz, wanted: Wanted, before: i64) -> Result<Answer, Fault> {
    let read =
        async |connection: &mut PgConnection| Ok((events::read_before(connection, &cards, wanted, before).await?, ()));
    let (page, ()) = reader.read_page(read).await?;
    let list = event::encode_list(page.events().rev(), zone, Keep::Last).map_err(Fault::internal)?;
    let more = page.more || list.count < page.versions().len();
    let next = page.versions().take(list.count).last().unwrap_or(0);
    Ok(Answer { events: Encoded::List(list), next, more, epoch: Some(Arc::from(page.epoch)) })
}

/// The events after `seen`, for a reader who asked for what comes after `asked`. Decides whether `seen` belongs to
/// this history.
pub async fn after(live: &Arc<Live>, wanted: Wanted, seen: i64, asked: i64) -> Result<Answer, Fault> {
    let (cards, zone) = (live.cards(), live.zone);
    live.db.page(move |reader| read_after(reader, cards, zone, wanted, seen, asked)).await
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

/// The events that are not acknowledged, and their versions.
pub async fn unacked(live: &Arc<Live>, wanted: Wanted) -> Result<(Answer, Arc<[i64]>), Fault> {
    let (cards, zone) = (live.cards(), live.zone);
    live.db.page(move |reader| read_unacked(reader, cards, zone, wanted)).await
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
    let epoch = Some(Arc::from(page.epoch.as_str()));
    Ok((Answer { events: Encoded::List(list), next, more, epoch }, versions))
}
