//! Looks at the table: a page each, and what it is answered as. Where there are threads for pages, they do it
//! ([`crate::store::pool::Db::page`]): a page of a thousand events takes one for a millisecond or two.

use std::sync::Arc;

use super::{Answer, Encoded};
use crate::{
    domain::{
        event::{self, Keep},
        fault::Fault,
    },
    live::relay::Live,
    store::{
        events::{self, Page, Wanted},
        pool::{Lease, read_deadline},
    },
};

/// Before a version, or the newest.
pub async fn before(live: &Arc<Live>, wanted: Wanted, before: Option<i64>) -> Result<Answer, Fault> {
    let of = Arc::clone(live);
    live.db.page(move |lease| read_before(of, lease, wanted, before.unwrap_or(i64::MAX))).await
}

async fn read_before(live: Arc<Live>, mut lease: Lease, wanted: Wanted, before: i64) -> Result<Answer, Fault> {
    let page = read_deadline(events::read_before(&mut lease, &live.cards(), wanted, before)).await?;
    lease.finish_unless(page.cut);
    let list = event::encode_list(page.events().rev(), live.zone, Keep::Last).map_err(Fault::internal)?;
    let more = page.more || list.count < page.versions().len();
    let next = page.versions().take(list.count).last().unwrap_or(0);
    Ok(Answer { events: Encoded::List(list), next, more })
}

/// After `seen`, of which it decides whether it belongs to this history. The reader asked for what comes
/// after `asked`.
pub async fn after(live: &Arc<Live>, wanted: Wanted, seen: i64, asked: i64) -> Result<Answer, Fault> {
    let of = Arc::clone(live);
    live.db.page(move |lease| read_after(of, lease, wanted, seen, asked)).await
}

async fn read_after(live: Arc<Live>, mut lease: Lease, wanted: Wanted, seen: i64, asked: i64) -> Result<Answer, Fault> {
    let page = read_deadline(events::read_after(&mut lease, &live.cards(), wanted, seen)).await?;
    let state = if seen > page.head { Some(read_deadline(events::store_state(&mut lease)).await?) } else { None };
    lease.finish_unless(page.cut);
    if let Some(state) = state.filter(|state| seen > state.head) {
        return Err(Fault::HistoryUnknown { head: state.head, epoch: state.epoch });
    }
    // `a=0` means from the oldest kept.
    if asked != 0 && seen < page.oldest - 1 {
        return Err(Fault::HistoryGone { after: seen, oldest: page.oldest });
    }
    Ok(fitting(&live, &page)?.0)
}

/// What is not acknowledged, and its versions.
pub async fn unacked(live: &Arc<Live>, wanted: Wanted) -> Result<(Answer, Arc<[i64]>), Fault> {
    let of = Arc::clone(live);
    live.db.page(move |lease| read_unacked(of, lease, wanted)).await
}

async fn read_unacked(live: Arc<Live>, mut lease: Lease, wanted: Wanted) -> Result<(Answer, Arc<[i64]>), Fault> {
    let page = read_deadline(events::read_unacked(&mut lease, &live.cards(), wanted)).await?;
    lease.finish_unless(page.cut);
    fitting(&live, &page)
}

/// As much of a rising page as fits an answer, and its versions.
fn fitting(live: &Live, page: &Page) -> Result<(Answer, Arc<[i64]>), Fault> {
    let list = event::encode_list(page.events(), live.zone, Keep::First).map_err(Fault::internal)?;
    let more = page.more || list.count < page.versions().len();
    let versions: Arc<[i64]> = page.versions().take(list.count).collect();
    let next = match versions.last() {
        Some(last) if more => *last,
        _ => page.head,
    };
    Ok((Answer { events: Encoded::List(list), next, more }, versions))
}
