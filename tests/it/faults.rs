//! One fault at a time: what is away, late, lost or in the way, and that the service gets over it.

mod answers;
mod commits;
mod evidence;
mod history;
mod ids;
mod replicas;

use std::{collections::HashMap, time::Duration};

use serde_json::json;
use sqlx::{Connection, PgConnection, postgres::PgListener};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::support::{
    Client, TestDesk,
    client::Reply,
    db_proxy::{DbProxy, Mode},
    desk::{base, start_replica},
    postgres, process,
};

/// The promised second, and slack for a machine that has much else to do.
const ABOUT_A_SECOND: Duration = Duration::from_secs(4);
/// Longer than any request but a poll may take, whatever is wrong.
const BOUNDED: Duration = Duration::from_secs(30);

/// Ann, who owns session s1, and its gateway.
async fn ann_and_web(desk: &TestDesk) -> (Client, Client) {
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    (ann, web)
}

/// Polls from `after` on, in a task of its own.
fn park(reader: &Client, after: i64) -> JoinHandle<Reply> {
    park_with(reader, format!("a={after}&wait=60"))
}

/// Polls in a task of its own; again while the token has as many polls open as it may.
fn park_with(reader: &Client, parameters: String) -> JoinHandle<Reply> {
    let reader = reader.clone();
    tokio::spawn(async move {
        loop {
            let reply = reader.query(&parameters).await;
            if reply.status != 429 {
                return reply;
            }
        }
    })
}

/// Waits until a reader has as many polls open as its token may have.
async fn are_parked(reader: &Client) {
    let until = Instant::now() + BOUNDED;
    while reader.query("a=0&wait=0").await.status != 429 {
        assert!(Instant::now() < until, "the polls are not parked");
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> T {
    timeout(limit, work).await.expect("it is done in time")
}

/// Repeats a send until it is answered with 200, as a client does.
async fn send_until_kept(client: &Client, id: &str, text: &str) -> Reply {
    let until = Instant::now() + BOUNDED;
    loop {
        let reply = client.send_id("s1", id, text).await;
        if reply.status == 200 {
            return reply;
        }
        assert_eq!(reply.code(), 50300);
        assert!(Instant::now() < until, "it is never kept");
    }
}

/// Ends backends of the service in the database of `sql`; gives how many.
async fn end_backends(sql: &mut PgConnection, name: &str) -> i64 {
    sqlx::query_scalar(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = $1 and datname = current_database()",
    )
    .bind(name)
    .fetch_one(sql)
    .await
    .expect("they are told to end")
}

/// Waits until a backend of the service waits for a lock.
async fn wait_for_lock_waiter(sql: &mut PgConnection) {
    let until = Instant::now() + BOUNDED;
    loop {
        let waits: bool = sqlx::query_scalar(
            "select exists (select from pg_stat_activity where application_name = 'deskfeed/appends' and datname = current_database() and wait_event_type = 'Lock')",
        )
        .fetch_one(&mut *sql)
        .await
        .expect("PostgreSQL answers");
        if waits {
            return;
        }
        assert!(Instant::now() < until, "nobody waits for the lock");
        tokio::task::yield_now().await;
    }
}

/// Every session's messages are numbered 1, 2, 3 and so on, in the order of their versions.
async fn numbers_are_dense(sql: &mut PgConnection) {
    let numbers: Vec<(i64, i32)> =
        sqlx::query_as("select session_key, message_seq from events where content is not null order by version")
            .fetch_all(sql)
            .await
            .expect("the events can be read");
    let mut last: HashMap<i64, i32> = HashMap::new();
    for (session, number) in &numbers {
        let before = last.insert(*session, *number).unwrap_or(0);
        assert_eq!(*number, before + 1, "session {session}: {numbers:?}");
    }
}

#[tokio::test]
async fn events_arrive_while_listen_connections_keep_ending() {
    let desk = TestDesk::with(2, &[]).await;
    let (ann, web) = ann_and_web(&desk).await;
    let (ann, web) = (ann.at(&desk.base(0)), web.at(&desk.base(1)));
    let mut sql = desk.sql().await;
    let (mut after, mut ended) = (2, 0);
    for round in 0..8 {
        let poll = park(&ann, after);
        ended += end_backends(&mut sql, "deskfeed/listens").await;
        let text = format!("text {round}");
        web.send("s1", &text).await.ok();
        let answer = within(ABOUT_A_SECOND, poll).await.expect("no panic");
        assert_eq!(answer.contents(), [text]);
        after = answer.next();
    }
    assert!(ended >= 4, "the LISTEN connections came back between: {ended}");
    desk.stop().await;
}

#[tokio::test]
async fn events_arrive_when_no_notification_does() {
    let desk = TestDesk::start().await;
    let (ann, web) = ann_and_web(&desk).await;
    let proxy = DbProxy::before(&desk.url).await;
    let deaf = start_replica(&proxy.url, &[]).await;
    let ann = ann.at(&base(&deaf));
    proxy.has_met_listeners(1).await;
    proxy.set(Mode::BlackholeListeners);
    let mut after = 2;
    for round in 0..4 {
        let poll = park(&ann, after);
        let text = format!("text {round}");
        web.send("s1", &text).await.ok();
        let answer = within(ABOUT_A_SECOND, poll).await.expect("no panic");
        assert_eq!(answer.contents(), [text]);
        after = answer.next();
    }
    // Silence is noticed, although the connection never ended.
    let listeners = proxy.listeners();
    proxy.has_met_listeners(listeners + 1).await;
    deaf.stop().await;
    desk.stop().await;
}

#[tokio::test]
async fn an_append_is_notified_to_other_processes() {
    let desk = TestDesk::start().await;
    let (ann, web) = ann_and_web(&desk).await;
    let mut heard = PgListener::connect(&desk.url).await.expect("PostgreSQL answers");
    heard.listen("deskfeed").await.expect("it listens");
    let version = web.send("s1", "text").await.ok()["Version"].as_i64().expect("a version");
    within(BOUNDED, async {
        loop {
            let notification = heard.recv().await.expect("it is heard");
            let head = notification.payload().split(' ').next().and_then(|head| head.parse::<i64>().ok());
            if head >= Some(version) {
                return;
            }
        }
    })
    .await;

    let second = start_replica(&desk.url, &[]).await;
    let elsewhere = ann.at(&base(&second));
    let after = elsewhere.query("a=now&wait=0").await.next();
    let poll = park(&elsewhere, after);
    web.send("s1", "for both").await.ok();
    assert_eq!(within(ABOUT_A_SECOND, poll).await.expect("no panic").contents(), ["for both"]);
    second.stop().await;
    desk.stop().await;
}

#[tokio::test]
async fn rubbish_on_the_channel_changes_nothing() {
    let desk = TestDesk::start().await;
    let (ann, web) = ann_and_web(&desk).await;
    let mut sql = desk.sql().await;
    let long = "x".repeat(7000);
    for payload in ["", "rubbish", "-1", "0", "9223372036854775807", "99999999999999999999", "ping", "\u{1F600}", &long]
    {
        let poll = park(&ann, ann.query("a=0&wait=0&limit=1000").await.next());
        sqlx::query("select pg_notify('deskfeed', $1)").bind(payload).execute(&mut sql).await.expect("it is told");
        let sent = web.send("s1", "text").await.ok();
        let answer = within(ABOUT_A_SECOND, poll).await.expect("no panic");
        assert_eq!(answer.versions(), [sent["Version"].as_i64().expect("a version")], "after {payload:?}");
    }
    let flood = "select pg_notify('deskfeed', n::text) from generate_series(1, 20000) n";
    sqlx::query(flood).execute(&mut sql).await.expect("it is told");
    let poll = park(&ann, 11);
    web.send("s1", "after the flood").await.ok();
    assert_eq!(within(ABOUT_A_SECOND, poll).await.expect("no panic").contents(), ["after the flood"]);
    desk.stop().await;
}

/// What holds while PostgreSQL is away in one way or another, and afterwards.
async fn is_away(away: Mode) {
    let desk = TestDesk::start().await;
    let (ann, web) = ann_and_web(&desk).await;
    let proxy = DbProxy::before(&desk.url).await;
    let cut_off = start_replica(&proxy.url, &["--polls-per-token", "2"]).await;
    let (ann, web) = (ann.at(&base(&cut_off)), web.at(&base(&cut_off)));
    web.send("s1", "before").await.ok();
    web.query("wait=0").await.ok();
    let mut poll = park(&ann, 3);
    let mut instant = park_with(&ann, "wait=60&c=1-3".to_owned());
    are_parked(&ann).await;
    // The polls' own first look is over when looks that began later are.
    for _ in 0..8 {
        ann.get("/feed/status").await.ok();
    }

    proxy.set(away);
    let (sent, read, acked, ready, alive) = within(BOUNDED, async {
        tokio::join!(
            web.send_id("s1", "m1", "during"),
            ann.query("b=now"),
            web.query("wait=0&c=1"),
            ann.get("/readyz"),
            ann.get("/healthz"),
        )
    })
    .await;
    for refused in [sent, read, acked, ready] {
        assert_eq!(refused.code(), 50300);
        assert!(refused.header("retry-after").parse::<u64>().is_ok());
    }
    assert_eq!(alive.status, 200);
    for parked in [&mut poll, &mut instant] {
        let ended = timeout(Duration::ZERO, parked).await;
        assert!(ended.is_err(), "parked polls wait for better times: {ended:?}");
    }

    proxy.set(Mode::Pass);
    let sent = within(BOUNDED, send_until_kept(&web, "m1", "during")).await.ok();
    let answer = within(BOUNDED, poll).await.expect("no panic");
    assert_eq!(answer.contents(), ["during"]);
    assert_eq!(answer.versions(), [sent["Version"].as_i64().expect("a version")]);
    assert_eq!(within(BOUNDED, instant).await.expect("no panic").contents(), ["during"]);
    let until = Instant::now() + BOUNDED;
    while ann.get("/readyz").await.status != 200 {
        assert!(Instant::now() < until, "it is never ready again");
    }
    cut_off.stop().await;
    desk.stop().await;
}

#[tokio::test]
async fn a_postgresql_that_refuses_is_waited_for() {
    is_away(Mode::Refuse).await;
}

#[tokio::test]
async fn a_postgresql_that_is_silent_is_waited_for() {
    is_away(Mode::Blackhole).await;
}

#[tokio::test]
async fn a_stranger_who_keeps_the_append_lock_holds_up_sends_alone_and_not_for_ever() {
    let desk = TestDesk::start().await;
    let (ann, web) = ann_and_web(&desk).await;
    let mut sql = desk.sql().await;
    let mut keeper = desk.sql().await;
    sqlx::raw_sql("begin; lock table append_lock in exclusive mode").execute(&mut keeper).await.expect("the lock");
    let send = tokio::spawn({
        let web = web.clone();
        async move { web.send_id("s1", "m1", "text").await }
    });
    wait_for_lock_waiter(&mut sql).await;
    // Reading and acknowledging go on.
    assert_eq!(within(ABOUT_A_SECOND, ann.query("wait=0&c=1")).await.events().len(), 0);
    assert_eq!(within(BOUNDED, send).await.expect("no panic").code(), 50300);
    keeper.close().await.expect("it closes");
    within(BOUNDED, send_until_kept(&web, "m1", "text")).await;
    assert_eq!(ann.query("wait=0").await.contents(), ["text"]);
    desk.stop().await;
}

#[tokio::test]
async fn a_replica_that_stops_while_it_appends_holds_up_nobody() {
    let desk = TestDesk::start().await;
    let (ann, web) = ann_and_web(&desk).await;
    web.open_to("s2", "ann").await.ok();
    let hung = process::Service::serve(&["--database-url", &postgres::as_application(&desk.url)]).await;
    let (mut sql, mut keeper) = (desk.sql().await, desk.sql().await);
    // The replica's append takes the append lock, then waits for the session's row.
    let take = "begin; select from sessions where session_id = 's1' for update";
    sqlx::raw_sql(take).execute(&mut keeper).await.expect("the row");
    let close = tokio::spawn({
        let ann = ann.at(&hung.base);
        async move { ann.post("/session/close", json!({"SessionId": "s1"})).await }
    });
    wait_for_lock_waiter(&mut sql).await;
    hung.signal(nix::sys::signal::Signal::SIGSTOP);
    // Now its backend has all it wants, and does not wait for the process, which does not go on.
    keeper.close().await.expect("it closes");
    let kept =
        within(Duration::from_secs(10), web.post("/message/send", json!({"SessionId": "s2", "Content": "text"}))).await;
    kept.ok();
    assert_eq!(web.send("s1", "too late").await.code(), 40900);
    hung.signal(nix::sys::signal::Signal::SIGCONT);
    let closed = within(BOUNDED, close).await.expect("no panic").ok();
    let events = ann.query("a=0&wait=0").await;
    assert_eq!(events.types(), ["AddSession", "AddSession", "DelSession", "Message"]);
    assert_eq!(events.versions().get(2).copied(), closed["Version"].as_i64());
    hung.terminate().await;
    desk.stop().await;
}
