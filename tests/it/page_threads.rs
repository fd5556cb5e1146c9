//! Pages of the table have threads and connections of their own.

use std::{future::pending, time::Duration};

use deskfeed::{
    domain::fault::Fault,
    store::{self, pool::Db},
};
use tokio::{sync::oneshot, task::JoinSet, time::timeout};

use crate::support::{desk::page_threads, postgres};

const PATIENCE: Duration = Duration::from_secs(30);
/// Of which pages have five.
const READERS: u32 = 8;

async fn db() -> Db {
    let url = postgres::as_application(&postgres::new_database().await);
    Db::with_page_threads(&url, READERS, page_threads()).expect("a URL")
}

async fn read_page(db: &Db) {
    let page = db.page(|reader| async move { Ok(reader.read(async |_| Ok(())).await?) });
    page.await.expect("a page is read");
}

#[tokio::test]
async fn a_page_that_nobody_waits_for_is_given_up() {
    let db = db().await;
    // More than there are connections: each must have come back.
    for _ in 0..2 * READERS {
        let (begun, begins) = oneshot::channel();
        let (held, dropped) = oneshot::channel::<()>();
        let page = db.page(move |reader| async move {
            let read = reader.read(async move |_| {
                let _held = held;
                begun.send(()).expect("the test listens");
                pending::<store::Result<()>>().await
            });
            Ok(read.await?)
        });
        tokio::select! {
            ended = page => panic!("it has ended: {ended:?}"),
            begun = timeout(PATIENCE, begins) => begun.expect("it begins").expect("it begins"),
        }
        timeout(PATIENCE, dropped).await.expect("it is dropped").expect_err("nothing is sent");
    }
}

#[tokio::test]
async fn pages_and_all_else_do_not_wait_for_each_other() {
    let db = db().await;
    let mut others = JoinSet::new();
    for _ in 0..3 {
        let (begun, begins) = oneshot::channel();
        let db = db.clone();
        others.spawn(async move {
            let read = db.read(async move |_| {
                begun.send(()).expect("the test listens");
                pending::<store::Result<()>>().await
            });
            read.await
        });
        timeout(PATIENCE, begins).await.expect("it begins").expect("a connection");
    }
    let refused = db.read(async |_| Ok(())).await.expect_err("all else has three");
    assert!(refused.is_outage(), "{refused}");
    for _ in 0..READERS {
        read_page(&db).await;
    }
    let (open, _) = db.readers();
    assert!((4..=READERS).contains(&open), "three and those of the pages, not {open}");
}

#[tokio::test]
async fn a_page_that_panics_is_one_failure() {
    let db = db().await;
    let page = db.page(|_reader| async { panic!("as the test wants") });
    let failed: Result<(), Fault> = page.await;
    assert!(matches!(failed, Err(Fault::Internal(_))), "{failed:?}");
    read_page(&db).await;
}
