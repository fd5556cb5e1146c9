//! Events in partitions by version: appends and reads across their borders, and who makes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::support::{
    Client, TestDesk,
    postgres::{self, APPLICATION, OWNER},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// (first version, first version after it) of each partition.
async fn bounds(url: &str) -> Vec<(i64, i64)> {
    let mut sql = PgConnection::connect(url).await.expect("PostgreSQL answers");
    sqlx::query_as("select first_version, end_version from event_partitions()")
        .fetch_all(&mut sql)
        .await
        .expect("the partitions")
}

#[track_caller]
fn assert_contiguous(bounds: &[(i64, i64)], width: i64) {
    let expected: Vec<(i64, i64)> = (0..).map(|n| (1 + n * width, 1 + (n + 1) * width)).take(bounds.len()).collect();
    assert_eq!(bounds, expected);
}

/// Sends batches with Ids, and some of them again; gives the version of each Id.
async fn send_batches(web: Client, session: String, batches: usize) -> BTreeMap<String, i64> {
    let mut given: BTreeMap<String, i64> = BTreeMap::new();
    for batch in 0..batches {
        // The first Id of all comes with every batch; the others once.
        let ids: Vec<String> =
            (0..5).map(|n| format!("{session}-{}", if n == 0 { 0 } else { batch * 5 + n })).collect();
        let messages: Vec<Value> =
            ids.iter().map(|id| json!({"SessionId": session, "Id": id, "Content": format!("text of {id}")})).collect();
        let answers = web.post("/message/send", json!(messages)).await.ok();
        for (id, answer) in ids.into_iter().zip(answers.as_array().expect("an array")) {
            let version = answer["Version"].as_i64().unwrap_or_else(|| panic!("{id}: {answer}"));
            assert_eq!(*given.entry(id.clone()).or_insert(version), version, "{id} came again");
        }
    }
    given
}

/// Follows a feed until it has seen so many messages; gives (version, Id) of each.
async fn follow(reader: Client, messages: usize) -> Vec<(i64, String)> {
    let (mut seen, mut after) = (Vec::new(), 0);
    let until = Instant::now() + PATIENCE;
    while seen.len() < messages {
        assert!(Instant::now() < until, "{} of {messages} messages", seen.len());
        let page = reader.query(&format!("a={after}&t=Message&limit=37&wait=5")).await;
        for event in page.events() {
            let id = event["Data"]["Message"][0]["Id"].as_str().expect("an Id").to_owned();
            seen.push((event["Version"].as_i64().expect("a version"), id));
        }
        after = page.next();
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_and_readers_cross_borders_all_the_time() {
    const WIDTH: i64 = 40;
    let desk = TestDesk::on(postgres::database_in_partitions(WIDTH).await, 2, &[]).await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    let (senders, batches) = (4, 40);
    let mut sending = JoinSet::new();
    for number in 0..senders {
        let session = format!("s{number}");
        web.open_to(&session, "ann").await.ok();
        sending.spawn(send_batches(web.at(&desk.base(number % 2)), session, batches));
    }
    // The first Id of each sender is one message, however often it comes.
    let expected = senders * (4 * batches + 1);
    let mut reading = JoinSet::new();
    for replica in [0, 1, 0, 1] {
        reading.spawn(follow(ann.at(&desk.base(replica)), expected));
    }
    let given: BTreeMap<i64, String> = sending
        .join_all()
        .await
        .into_iter()
        .flat_map(|given| given.into_iter().map(|(id, version)| (version, id)))
        .collect();
    let given: Vec<(i64, String)> = given.into_iter().collect();
    assert_eq!(given.len(), expected);
    for seen in reading.join_all().await {
        assert_eq!(seen, given, "each message once, in the order of the versions");
    }
    assert!(given.last().expect("messages").0 > 15 * WIDTH, "many borders");
    let mut back = Vec::new();
    let mut before = "now".to_owned();
    loop {
        let page = ann.query(&format!("b={before}&t=Message&limit=53")).await;
        back.splice(0..0, page.versions());
        before = page.next().to_string();
        if !page.more() {
            break;
        }
    }
    assert_eq!(back, given.iter().map(|(version, _)| *version).collect::<Vec<i64>>());
    assert_contiguous(&bounds(&desk.url).await, WIDTH);

    // Every Id is known, from whichever partition, on both replicas.
    for (version, id) in given.iter().step_by(29) {
        let session = id.split('-').next().expect("a session");
        for replica in [0, 1] {
            let again = web.at(&desk.base(replica)).send_id(session, id, &format!("text of {id}")).await;
            assert_eq!(again.ok()["Version"], *version, "{id}");
        }
        assert_eq!(web.send_id(session, id, "another text").await.code(), 40901);
    }
    // A session's history, and acknowledgements by Id, are of all partitions.
    let history = web.get("/session/history?SessionId=s1&limit=1000").await.ok();
    assert_eq!(history.as_array().expect("an array").len(), 4 * batches + 1);
    let acked: Vec<&str> = given.iter().map(|(_, id)| id.as_str()).filter(|id| !id.ends_with('7')).collect();
    ann.query_post(json!({"c": acked.join(","), "wait": 0})).await.ok();
    let left: BTreeSet<String> =
        follow_unacked(&ann).await.into_iter().map(|event| event["Data"]["Message"][0]["Id"].to_string()).collect();
    let expected: BTreeSet<String> =
        given.iter().filter(|(_, id)| id.ends_with('7')).map(|(_, id)| format!("{id:?}")).collect();
    assert_eq!(left, expected);
    desk.stop().await;
}

/// The Messages that instant mode gives.
async fn follow_unacked(reader: &Client) -> Vec<Value> {
    reader.query("t=Message&limit=1000&wait=0").await.events()
}

#[tokio::test]
async fn a_batch_may_need_many_partitions() {
    let desk = TestDesk::on(postgres::database_in_partitions(10).await, 1, &[]).await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    // Two events each.
    let messages: Vec<Value> = (0..300).map(|n| json!({"SessionId": "s1", "Content": format!("{n}")})).collect();
    let answers = ann.post("/message/send", json!(messages)).await.ok();
    let versions: Vec<i64> =
        answers.as_array().expect("an array").iter().map(|answer| answer["Version"].as_i64().expect("one")).collect();
    assert_eq!(versions, (0..300).map(|n| 3 + 2 * n).collect::<Vec<i64>>());
    // The second event of a message shows the content of the first, beyond the border too.
    let page = web.query("a=0&limit=1000&wait=0&t=Message").await;
    assert_eq!(page.contents(), (0..300).map(|n| n.to_string()).collect::<Vec<String>>());
    assert_contiguous(&bounds(&desk.url).await, 10);
    desk.stop().await;
}

#[tokio::test]
async fn the_service_makes_partitions_ahead() {
    let url = postgres::database_in_partitions(100).await;
    let mut owner = PgConnection::connect(&postgres::as_role(&url, OWNER)).await.expect("the owner gets in");
    // Those ahead are gone, and nobody has told the store.
    sqlx::raw_sql("drop table events_101, events_201").execute(&mut owner).await.expect("they are empty");
    let desk = TestDesk::on(url, 2, &[]).await;
    let until = Instant::now() + PATIENCE;
    while bounds(&desk.url).await.len() < 2 {
        assert!(Instant::now() < until, "no partition is made");
        sleep(Duration::from_millis(20)).await;
    }
    assert_contiguous(&bounds(&desk.url).await, 100);
    // A new width is for those to come.
    sqlx::raw_sql("update store set partition_width = 1000").execute(&mut owner).await.expect("the owner may");
    let (_ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    let messages: Vec<Value> = (0..500).map(|_| json!({"SessionId": "s1", "Content": "x"})).collect();
    web.post("/message/send", json!(messages)).await.ok();
    let made = bounds(&desk.url).await;
    assert_eq!(made[..3], [(1, 101), (101, 201), (201, 1201)]);
    desk.stop().await;
}

#[tokio::test]
async fn many_who_make_partitions_at_once_make_each_once() {
    let url = postgres::database_in_partitions(10).await;
    let mut makers = JoinSet::new();
    for _ in 0..8 {
        let url = postgres::as_role(&url, APPLICATION);
        makers.spawn(async move {
            let mut maker = PgConnection::connect(&url).await.expect("the service gets in");
            let made: i32 =
                sqlx::query_scalar("select make_partitions_ahead(500)").fetch_one(&mut maker).await.expect("it may");
            made
        });
    }
    let made: i32 = makers.join_all().await.into_iter().sum();
    let bounds = bounds(&url).await;
    assert_contiguous(&bounds, 10);
    assert_eq!((bounds.len(), made), (52, 49), "for 500 events and two more");
    // Whatever it is asked for, the service does not get more than a batch could need.
    let mut service = PgConnection::connect(&postgres::as_role(&url, APPLICATION)).await.expect("the service gets in");
    let made: i32 = sqlx::query_scalar("select make_partitions_ahead(2000000000)")
        .fetch_one(&mut service)
        .await
        .expect("it is cut down");
    assert!(made <= 2_000, "{made}");
}

#[tokio::test]
async fn a_lock_on_the_table_holds_up_what_needs_it_alone() {
    let desk = TestDesk::on(postgres::database_in_partitions(10).await, 1, &[]).await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    let room = bounds(&desk.url).await.last().expect("partitions").1;
    let mut keeper = desk.sql().await;
    sqlx::raw_sql("begin; lock table only events in share update exclusive mode")
        .execute(&mut keeper)
        .await
        .expect("the lock");
    // As long as there is room, nobody waits.
    for version in 3..room {
        assert_eq!(web.send("s1", "text").await.ok()["Version"], version);
    }
    let refused = web.send_id("s1", "one-more", "text").await;
    assert_eq!((refused.code(), refused.header("retry-after")), (50300, "1"));
    sqlx::raw_sql("rollback").execute(&mut keeper).await.expect("it is given up");
    assert_eq!(web.send_id("s1", "one-more", "text").await.ok()["Version"], room);
    assert_eq!(ann.query("a=0&wait=0&limit=1000&t=Message").await.versions(), (3..=room).collect::<Vec<i64>>());
    desk.stop().await;
}
