//! Ids that clients give and Ids that the service makes.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use super::ann_and_web;
use crate::support::{
    TestDesk,
    steps::{USUAL, within},
};

/// The Id that a message without one has when it is given this version at this time (microseconds since 1970): a
/// UUIDv7 of the time with the version in place of random bits. `made_message_id` in the database says so.
fn made(version: i64, us: i64) -> Uuid {
    let (ms, rest) = (us.div_euclid(1000).unsigned_abs(), us.rem_euclid(1000).unsigned_abs() * 4096 / 1000);
    Uuid::from_u64_pair(ms << 16 | 7 << 12 | rest, 1 << 63 | version.unsigned_abs())
}

async fn now_us(sql: &mut PgConnection) -> i64 {
    let now: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()").fetch_one(sql).await.expect("a time");
    now.timestamp_micros()
}

fn message(id: &str) -> Value {
    json!({"SessionId": "s1", "Id": id, "Content": format!("text of {id}")})
}

#[tokio::test]
async fn ids_that_the_service_may_make_later_are_refused() {
    let desk = TestDesk::with(2, &[]).await;
    let (_, web) = ann_and_web(&desk).await;
    let mut sql = desk.sql().await;
    let now = now_us(&mut sql).await;
    let ahead = [3, 4, 5, 100, 1_000_000, 1_000_000_000_000]
        .into_iter()
        .flat_map(|version| [1_000_000, 60_000_000, 3_600_000_000].map(|later| made(version, now + later).to_string()));
    let ahead: Vec<String> = ahead.collect();
    for id in &ahead {
        let refused = within("a send", USUAL, web.post("/message/send", message(id))).await;
        assert!(refused.status != 200, "{id} was taken");
        assert_eq!(refused.code(), 40000, "{id}: {}", refused.text);
        assert!(refused.json()["detail"].as_str().is_some_and(|detail| detail.contains("Id")), "{}", refused.text);
    }
    // In a batch each by itself; others are kept, whatever their neighbours are.
    let batch: Vec<Value> = ahead.iter().map(|id| message(id)).chain([message("good")]).collect();
    let answers = within("a batch", USUAL, web.at(&desk.base(1)).post("/message/send", json!(batch))).await.ok();
    for answer in &answers.as_array().expect("a list")[..ahead.len()] {
        assert_eq!(answer["code"], 40000, "{answer}");
    }
    assert_eq!(answers[ahead.len()]["Version"], 3);
    desk.stop().await;
}

/// The gateway guesses the Ids that messages without one will have.
#[tokio::test]
async fn two_messages_never_have_one_id() {
    let desk = TestDesk::start().await;
    let (ann, web) = ann_and_web(&desk).await;
    let mut sql = desk.sql().await;
    for _ in 0..3 {
        let (now, next): (i64, i64) = (now_us(&mut sql).await, web.query("a=0&wait=0").await.next() + 1);
        // Each may come to be the Id of the message after the batch.
        let guesses: Vec<Value> =
            (0..1000).map(|guess| message(&made(next + 1000, now + 50_000 + guess).to_string())).collect();
        within("guesses", USUAL, web.post("/message/send", json!(guesses))).await.ok();
        within("a send", USUAL, web.send("s1", "without an Id")).await.ok();
    }
    let twice: i64 = sqlx::query_scalar("select count(*) - count(distinct coalesce(id::text, id_text)) from messages")
        .fetch_one(&mut sql)
        .await
        .expect("a count");
    let guessed: i64 = sqlx::query_scalar("select count(*) from messages where content like 'text of %'")
        .fetch_one(&mut sql)
        .await
        .expect("a count");
    assert_eq!((twice, guessed), (0, 0), "messages whose Id another has, guesses that were kept");
    assert_eq!(ann.query("b=now").await.contents().len(), 3);
    desk.stop().await;
}

#[tokio::test]
async fn ordinary_ids_are_taken() {
    let desk = TestDesk::start().await;
    let (_, web) = ann_and_web(&desk).await;
    let mut ids = vec![
        "01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned(),
        "01JDN8Y5Z4QW6Y7T8R9E0P1A2B".to_owned(),
        "order-4711/1".to_owned(),
        "wamid.HBgLMTIzNDU2Nzg5MFUCABEYEjA".to_owned(),
        "00000000-0000-0000-0000-000000000000".to_owned(),
        "6BA7B810-9DAD-11D1-80B4-00C04FD430C8".to_owned(),
        "{6ba7b810-9dad-11d1-80b4-00c04fd430c8}".to_owned(),
    ];
    for _ in 0..100 {
        ids.extend([Uuid::now_v7().to_string(), Uuid::new_v4().to_string(), Uuid::new_v4().simple().to_string()]);
    }
    let batch: Vec<Value> = ids.iter().map(|id| message(id)).collect();
    let answers = within("a batch", USUAL, web.post("/message/send", json!(batch))).await.ok();
    for (id, answer) in ids.iter().zip(answers.as_array().expect("a list")) {
        assert_eq!(answer["Id"], id.as_str(), "{answer}");
    }
    desk.stop().await;
}

/// A client that keeps the Id that it was answered, and repeats with it.
#[tokio::test]
async fn an_id_that_the_service_gave_is_that_message_at_every_replica() {
    let desk = TestDesk::with(2, &[]).await;
    let (ann, web) = ann_and_web(&desk).await;
    let there = web.at(&desk.base(1));
    there.send("s1", "there").await.ok();
    for round in 0..10 {
        let text = format!("text {round}");
        let first = web.send("s1", &text).await.ok();
        let id = first["Id"].as_str().expect("an Id");
        // At once at the other replica, which may not have heard of it.
        let again = within("again", USUAL, there.send_id("s1", id, &text)).await.ok();
        assert_eq!(again, first);
        assert_eq!(there.send_id("s1", id, "another text").await.code(), 40901);
        assert_eq!(within("again", USUAL, web.send_id("s1", id, &text)).await.ok(), first);
    }
    assert_eq!(ann.query("a=0&wait=0&t=Message").await.events().len(), 11, "each once");
    desk.stop().await;
}
