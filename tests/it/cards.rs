//! What a replica keeps when the history changes: no card that a slow read brings, no pooled connection, no
//! connection of a lane.

use std::{sync::Arc, time::Duration};

use deskfeed::{
    domain::ids::{ProfileKey, SessionKey},
    store::{cards::CardCache, pool::Db},
};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::time::{Instant, timeout};

use crate::support::{TestDesk, postgres};

const BOUNDED: Duration = Duration::from_secs(20);

async fn run(sql: &mut PgConnection, statements: &str) {
    sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(sql).await.expect("it is done");
}

/// A read that has its snapshot and does not come to its end: of the old primary, as it were.
#[tokio::test]
async fn a_slow_read_of_an_earlier_history_is_not_cached() {
    let desk = TestDesk::start().await;
    desk.agent("ann").await;
    desk.gateway("web").await.open_to("s1", "ann").await.ok();
    let mut sql = desk.sql().await;
    run(
        &mut sql,
        "create schema slow;
         create view slow.sessions as select * from public.sessions where pg_advisory_lock_shared(7)::text is not null;
         create view slow.profiles as select * from public.profiles where pg_advisory_lock_shared(7)::text is not null",
    )
    .await;
    let session: i64 = sqlx::query_scalar("select session_key from sessions").fetch_one(&mut sql).await.expect("one");
    let profile: i32 = sqlx::query_scalar("select profile_key from profiles").fetch_one(&mut sql).await.expect("one");

    let cache: Arc<CardCache> = Arc::default();
    for (sessions, profiles) in [(vec![SessionKey(session)], vec![]), (vec![], vec![ProfileKey(profile)])] {
        let (mut slow, mut holder) = (desk.sql().await, desk.sql().await);
        run(&mut slow, "set search_path = slow, public").await;
        run(&mut holder, "select pg_advisory_lock(7)").await;
        let reading = tokio::spawn({
            let (cards, sessions, profiles) = (cache.cards(), sessions.clone(), profiles.clone());
            async move { cards.load(&mut slow, &sessions, &profiles).await }
        });
        let until = Instant::now() + BOUNDED;
        while !sqlx::query_scalar::<_, bool>("select exists (select from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database()))")
            .fetch_one(&mut sql)
            .await
            .expect("PostgreSQL answers")
        {
            assert!(Instant::now() < until, "the read does not wait");
        }
        // The new history gives the same keys to others.
        run(&mut sql, "update sessions set from_name = 'another'; update profiles set name = 'another'").await;
        cache.clear(0);
        run(&mut holder, "select pg_advisory_unlock(7)").await;
        // It may be refused.
        drop(timeout(BOUNDED, reading).await.expect("it goes on").expect("no panic"));

        let cards = cache.cards();
        cards.load(&mut sql, &sessions, &profiles).await.expect("it is read");
        for key in sessions {
            assert_eq!(cards.session(key).expect("it is there").from_name.as_deref(), Some("another"));
        }
        for key in profiles {
            assert_eq!(cards.profile(key).expect("it is there").name.as_deref(), Some("another"));
        }
        run(&mut sql, "update profiles set name = null").await;
    }
    desk.stop().await;
}

#[tokio::test]
async fn pooled_connections_that_are_replaced_are_used_no_more() {
    let db = Db::new(&postgres::as_application(&postgres::new_database().await), 1).expect("a URL");
    let backend = async || {
        let read = db.read(async |connection| {
            Ok(sqlx::query_scalar::<_, i32>("select pg_backend_pid()").fetch_one(connection).await?)
        });
        read.await.expect("PostgreSQL answers")
    };
    let before = backend().await;
    assert_eq!(backend().await, before, "it is pooled");
    db.replace_connections();
    let after = backend().await;
    assert_ne!(after, before);
    // Those made at the very moment are replaced, too.
    let until = Instant::now() + BOUNDED;
    while backend().await != backend().await {
        assert!(Instant::now() < until, "it is pooled no more");
    }
}

#[tokio::test]
async fn lanes_leave_connections_of_an_earlier_history() {
    let desk = TestDesk::start().await;
    desk.agent("ann").await;
    let web = desk.gateway("web").await;
    web.open_to("s1", "ann").await.ok();
    let mut sql = desk.sql().await;
    let lanes = "select coalesce(array_agg(pid order by pid), '{}') from pg_stat_activity
                 where application_name = 'deskfeed/appends' and datname = current_database()";
    let before: Vec<i32> = sqlx::query_scalar(lanes).fetch_one(&mut sql).await.expect("PostgreSQL answers");
    assert!(!before.is_empty());

    // Restored in place: the newest event is gone, and the history has the name that it had.
    run(
        &mut sql,
        "begin;
         alter table events disable trigger all;
         delete from events where version = (select max(version) from events);
         alter table events enable always trigger events_are_kept;
         commit",
    )
    .await;
    let until = Instant::now() + BOUNDED;
    for n in 2.. {
        let sent = web.open_to(&format!("s{n}"), "ann").await;
        let now: Vec<i32> = sqlx::query_scalar(lanes).fetch_one(&mut sql).await.expect("PostgreSQL answers");
        if sent.status == 200 && now.iter().all(|pid| !before.contains(pid)) {
            break;
        }
        assert!(Instant::now() < until, "{}, over connections of before", sent.text);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    desk.stop().await;
}
