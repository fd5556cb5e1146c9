//! GET and POST /message/query: the parameters, the headers, the three modes.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::support::{Client, TestDesk};

/// More than any answer may take, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// An agent with one session (version 1; 2 is the gateway's) and messages m1, m2 and so on (3, 4 and so on).
async fn agent_with_messages(desk: &TestDesk, count: usize) -> (Client, Client) {
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    for number in 1..=count {
        web.send_id("s1", &format!("m{number}"), &format!("text {number}")).await.ok();
    }
    (ann, web)
}

#[tokio::test]
async fn a_parked_poll_is_answered_by_the_event_it_waits_for() {
    let desk = TestDesk::start().await;
    let (ann, web) = agent_with_messages(&desk, 0).await;
    for query in ["a=2&wait=60", "a=now&wait=60", "wait=60&c=1", "t=message&wait=60", "after=2&wait=60&t=Message"] {
        let parked = tokio::spawn({
            let ann = ann.clone();
            let query = query.to_owned();
            async move { ann.query(&query).await }
        });
        // `a=now` must begin before the event: the poll is counted when it is parked.
        let sent = async {
            loop {
                if parked.is_finished() {
                    return;
                }
                web.send("s1", "hello").await.ok();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, sent).await.unwrap_or_else(|_| panic!("{query} is not answered"));
        let answer = parked.await.expect("no panic");
        assert_eq!(answer.contents().first().map(String::as_str), Some("hello"), "{query}");
        assert!(answer.next() >= *answer.versions().last().expect("an event"));
        ann.query("a=0&wait=0&c=1-9999").await.ok();
    }
}

#[tokio::test]
async fn an_empty_poll_ends_in_the_last_tenth_of_its_wait() {
    let desk = TestDesk::start().await;
    let ann = desk.agent("ann").await;
    for query in ["a=0&wait=2", "wait=2"] {
        let started = Instant::now();
        let answer = ann.query(query).await;
        let waited = started.elapsed();
        assert_eq!((answer.events().len(), answer.next(), answer.more()), (0, 0, false), "{query}");
        assert!(waited >= Duration::from_millis(1790), "{query}: {waited:?}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_parameter_is_named() {
    let desk = TestDesk::start().await;
    let ann = desk.agent("ann").await;
    let huge = "9223372036854775808";
    for (query, code, named) in [
        ("a=-1", 40000, "`a`"),
        ("a=1.5", 40000, "`a`"),
        ("a=x", 40000, "`a`"),
        ("a=%2B1", 40000, "`a`"),
        (&format!("a={huge}"), 40000, "`a`"),
        (&format!("after={huge}"), 40000, "`a`"),
        ("a=@yesterday", 40000, "`a=@"),
        ("a=@", 40000, "`a=@"),
        ("b=-1", 40000, "`b`"),
        (&format!("b={huge}"), 40000, "`b`"),
        ("b=@2026-01-01T00:00:00Z", 40000, "`b`"),
        ("a=1&after=1", 40000, "`after`"),
        ("a=1&a=1", 40000, "`a`"),
        ("b=1&before=1", 40000, "`before`"),
        ("c=1&acks=1", 40000, "`acks`"),
        ("t=Message&type=Message", 40000, "`type`"),
        ("limit=1&limit=1", 40000, "`limit`"),
        ("wait=0&wait=0", 40000, "`wait`"),
        ("a=1&b=1", 40001, "`a`"),
        ("after=0&before=0", 40001, "`b`"),
        ("limit=0", 40000, "`limit`"),
        ("limit=1001", 40000, "`limit`"),
        ("limit=-1", 40000, "`limit`"),
        ("limit=ten", 40000, "`limit`"),
        ("wait=61", 40000, "`wait`"),
        ("wait=-1", 40000, "`wait`"),
        ("wait=0.5", 40000, "`wait`"),
        ("t=Nonsense", 40000, "Nonsense"),
        ("t=Message,Nonsense", 40000, "Nonsense"),
    ] {
        let answer = ann.query(query).await;
        assert_eq!(answer.code(), code, "{query}");
        let problem = answer.json();
        assert!(problem["detail"].as_str().expect("a text").contains(named), "{query}: {problem}");
        let known = json!(["AddSession", "Message", "DelSession"]);
        assert_eq!(problem.get("known"), query.contains("Nonsense").then_some(&known), "{query}");
    }
    assert_eq!(ann.query("wait=0&limit=1").await.events().len(), 0);
    assert_eq!(ann.query("wait=0&limit=1000&unknown=x&unknown=y&A=b").await.events().len(), 0);
    // An admin has no feed of its own.
    assert_eq!(desk.admin.query("a=0&wait=0").await.code(), 40000);
    assert_eq!(desk.admin.query("a=0&wait=0&feed=nobody").await.code(), 40402);
    assert_eq!(desk.admin.query("a=0&wait=0&feed=no/body").await.code(), 40000);
    assert_eq!(desk.admin.query("a=0&wait=0&feed=ann").await.events().len(), 0);
    assert_eq!(ann.query("a=0&wait=0&feed=ann").await.events().len(), 0);
    desk.agent("bob").await;
    assert_eq!(ann.query("a=0&wait=0&feed=bob").await.code(), 40300);
}

#[tokio::test]
async fn a_begins_where_it_says() {
    let desk = TestDesk::start().await;
    let (ann, web) = agent_with_messages(&desk, 5).await;
    for query in ["a=0&wait=0", "after=0&wait=0", "a=%200%20&wait=0&b=", "after=0&before=&wait=0"] {
        assert_eq!(ann.query(query).await.versions(), [1, 3, 4, 5, 6, 7], "{query}");
    }
    assert_eq!(ann.query("a=4&wait=0").await.versions(), [5, 6, 7]);
    assert_eq!(ann.query("a=7&wait=0").await.versions(), [0; 0]);
    let now = ann.query("a=now&wait=0").await;
    assert_eq!((now.events().len(), now.next()), (0, 7));
    web.send("s1", "later").await.ok();
    assert_eq!(ann.query(&format!("a={}", now.next())).await.contents(), ["later"]);

    let mut sql = desk.sql().await;
    let times: Vec<(i64, String)> = sqlx::query_as(
        "select version, to_char(created_at at time zone 'Asia/Tokyo', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"+09:00\"') from events where version > 2 order by version",
    )
    .fetch_all(&mut sql)
    .await
    .expect("the events");
    for (version, time) in &times {
        for time in [time.clone(), time.replace('+', "%2B")] {
            let answer = ann.query(&format!("a=@{time}&wait=0")).await;
            assert_eq!(answer.versions().first(), Some(version), "{time}");
        }
    }
    assert_eq!(ann.query("a=@2000-01-01T00:00:00Z&wait=0").await.versions().len(), 7);
    for odd in ["0000-01-01T00:00:00Z", "2016-12-31T23:59:60Z"] {
        ann.query(&format!("a=@{odd}&wait=0")).await.ok();
    }
}

#[tokio::test]
async fn a_time_to_come_is_refused_unless_clocks_explain_it() {
    let desk = TestDesk::start().await;
    let (ann, web) = agent_with_messages(&desk, 5).await;
    let ahead = |seconds| (chrono::Utc::now() + chrono::TimeDelta::seconds(seconds)).format("%Y-%m-%dT%H:%M:%S%.3fZ");
    for time in ["9999-12-31T23:59:59Z", "2100-01-01t00:00:00.5z", &ahead(3600).to_string(), &ahead(30).to_string()] {
        let refused = ann.query(&format!("a=@{time}&wait=0")).await;
        assert_eq!(refused.code(), 40000, "{time}");
        assert!(refused.text.contains("`a=@") && refused.text.contains("ahead"), "{}", refused.text);
        // What it is not: a poll that waits.
        assert_eq!(ann.query(&format!("after=@{time}&wait=60")).await.code(), 40000, "{time}");
    }
    let soon = ann.query(&format!("a=@{}&wait=0", ahead(4))).await;
    assert_eq!((soon.events().len(), soon.next()), (0, 7), "as now");
    let poll = tokio::spawn({
        let ann = ann.clone();
        let time = ahead(4).to_string();
        async move { ann.query(&format!("a=@{time}&wait=20&limit=1")).await }
    });
    let mut number = 0;
    while !poll.is_finished() {
        number += 1;
        web.send("s1", &format!("later {number}")).await.ok();
    }
    assert_eq!(poll.await.expect("no panic").events().len(), 1, "what comes from now on is given at once");
}

#[tokio::test]
async fn b_gives_the_newest_page_before_a_version_and_never_waits() {
    let desk = TestDesk::start().await;
    let (ann, _) = agent_with_messages(&desk, 5).await;
    let page = |answer: &crate::support::client::Reply| (answer.versions(), answer.next(), answer.more());
    assert_eq!(page(&ann.query("b=now&limit=2").await), (vec![6, 7], 6, true));
    assert_eq!(page(&ann.query("before=6&limit=2&wait=60").await), (vec![4, 5], 4, true));
    assert_eq!(page(&ann.query("b=4&limit=2").await), (vec![1, 3], 1, false));
    assert_eq!(page(&ann.query("b=1&wait=60").await), (vec![], 0, false));
    assert_eq!(page(&ann.query("b=0&wait=60").await), (vec![], 0, false));
    assert_eq!(page(&ann.query("b=9223372036854775807").await), (vec![1, 3, 4, 5, 6, 7], 1, false));
    assert_eq!(page(&ann.query("b=now&t=AddSession").await), (vec![1], 1, false));
    // What Feed-Next said of an empty page goes on being an empty page.
    assert_eq!(page(&ann.query("b=now&t=DelSession&wait=60").await), (vec![], 0, false));
}

#[tokio::test]
async fn types_are_chosen_in_any_case_and_with_any_separator() {
    let desk = TestDesk::start().await;
    let (ann, _) = agent_with_messages(&desk, 1).await;
    ann.session("close", "s1").await.ok();
    for (types, wanted) in [
        ("t=Message", vec!["Message"]),
        ("type=mESSAGE", vec!["Message"]),
        ("t=addsession,DELSESSION", vec!["AddSession", "DelSession"]),
        ("t=AddSession;DelSession", vec!["AddSession", "DelSession"]),
        ("t=AddSession，Message", vec!["AddSession", "Message"]),
        ("t=Message；%20DelSession；", vec!["Message", "DelSession"]),
        ("t=", vec!["AddSession", "Message", "DelSession"]),
        ("x=1", vec!["AddSession", "Message", "DelSession"]),
    ] {
        for mode in ["a=0", "b=now", "a="] {
            let answer = ann.query(&format!("{mode}&{types}&wait=0")).await;
            assert_eq!(answer.types(), wanted, "{mode}&{types}");
            assert_eq!(answer.next(), if mode == "b=now" { answer.versions()[0] } else { 5 }, "{mode}&{types}");
        }
    }
}

#[tokio::test]
async fn post_takes_the_same_names_as_json_or_a_form() {
    let desk = TestDesk::start().await;
    let (ann, _) = agent_with_messages(&desk, 5).await;
    let expected = ann.query("a=3&limit=2&t=Message&wait=0").await;
    assert_eq!(expected.versions(), [4, 5]);
    for body in [
        json!({"a": 3, "limit": 2, "t": "Message", "wait": 0}),
        json!({"after": "3", "limit": "2", "type": "message", "wait": "0", "Unknown": {"x": []}, "b": null}),
        json!({"a": "3", "limit": 2, "t": ["Message"], "wait": 0, "b": "", "c": []}),
    ] {
        let answer = ann.query_post(body.clone()).await;
        assert_eq!((&answer.text, answer.next(), answer.more()), (&expected.text, 5, true), "{body}");
    }
    assert_eq!(ann.form("/message/query", "a=3&limit=2&t=Message&wait=0").await.text, expected.text);
    assert_eq!(ann.form("/message/query?limit=2&wait=0", "after=3&t=message").await.text, expected.text);
    for (body, code) in [
        (json!({"a": 1, "after": 1}), 40000),
        (json!({"a": 1, "b": 1}), 40001),
        (json!({"a": 1.5}), 40000),
        (json!({"a": true}), 40000),
        (json!({"limit": {}}), 40000),
        (json!({"wait": [1]}), 40000),
        (json!({"a": -1}), 40000),
        (json!({"a": 9_223_372_036_854_775_808_u64}), 40000),
        (json!([]), 40000),
        (json!("a=1"), 40000),
    ] {
        assert_eq!(ann.query_post(body.clone()).await.code(), code, "{body}");
    }
    assert_eq!(ann.form("/message/query?a=1", "a=1").await.code(), 40000);
    // No body at all: instant mode.
    let bare = ann.request(http::Method::POST, "/message/query?wait=0");
    assert_eq!(crate::support::client::finish(bare).await.expect("an answer").versions(), [1, 3, 4, 5, 6, 7]);
}

#[tokio::test]
async fn headers_say_where_to_go_on() {
    let desk = TestDesk::start().await;
    let (ann, web) = agent_with_messages(&desk, 3).await;
    let epoch = ann.query("a=0&wait=0").await.header("feed-epoch").to_owned();
    assert!(!epoch.is_empty());
    for (query, next, more) in [
        ("a=0&wait=0", 5, false),
        ("a=0&wait=0&limit=4", 5, false),
        ("a=0&wait=0&limit=3", 4, true),
        ("a=0&wait=0&t=DelSession", 5, false),
        ("a=0&wait=0&t=AddSession", 5, false),
        ("wait=0", 5, false),
        ("wait=0&limit=1", 1, true),
        ("wait=0&t=DelSession", 5, false),
        ("a=5&wait=0", 5, false),
    ] {
        let answer = ann.query(query).await;
        assert_eq!((answer.next(), answer.more()), (next, more), "{query}");
        assert_eq!(answer.header("feed-epoch"), epoch);
        assert_eq!(answer.header("cache-control"), "no-store");
        assert_eq!(answer.header("content-type"), "application/json");
    }
    // A filtered reader moves on past what it does not want, and past other feeds' events.
    let bob = desk.agent("bob").await;
    web.open_to("s2", "bob").await.ok();
    assert_eq!(ann.query("a=5&wait=0").await.next(), 7);
    assert_eq!(bob.query("a=0&wait=0&t=Message").await.next(), 7);
}

#[tokio::test]
async fn an_answer_stops_at_4_mib() {
    let desk = TestDesk::start().await;
    let (ann, web) = agent_with_messages(&desk, 0).await;
    let content = "x".repeat(64 * 1024);
    for _ in 0..3 {
        let batch: Vec<Value> = (0..30).map(|_| json!({"SessionId": "s1", "Content": content})).collect();
        web.post("/message/send", Value::from(batch)).await.ok();
    }
    // An event without content, behind all that has some.
    ann.session("close", "s1").await.ok();
    let everything = 90 + 2;
    // Of another replica, too, which has to load all of it.
    let second = TestDesk::on(desk.url.clone(), 1, &[]).await;
    for ann in [ann.clone(), ann.at(&second.base(0))] {
        let mut given = Vec::new();
        let mut after = 0;
        loop {
            let answer = ann.query(&format!("a={after}&limit=1000&wait=0")).await;
            assert!(answer.text.len() <= 4 * 1024 * 1024, "{}", answer.text.len());
            given.extend(answer.versions());
            after = answer.next();
            if !answer.more() {
                break;
            }
            assert_eq!(Some(&after), given.last());
            assert!(answer.text.len() > 3 * 1024 * 1024, "cut without need");
        }
        assert_eq!(given.len(), everything);
        let instant = ann.query("limit=1000&wait=0").await;
        assert!(instant.more() && instant.versions() == given[..instant.versions().len()]);
        let newest = ann.query("b=now&limit=1000").await;
        assert!(newest.more() && newest.versions() == given[everything - newest.versions().len()..]);
        assert_eq!(newest.next(), newest.versions()[0]);
    }
}

#[tokio::test]
async fn what_was_answered_to_a_sender_is_there_for_a_reader() {
    let desk = TestDesk::with(2, &[]).await;
    let (ann, web) = agent_with_messages(&desk, 0).await;
    for number in 0..60 {
        let version = web.send("s1", &format!("text {number}")).await.ok()["Version"].as_i64().expect("a version");
        // Here, whether or not it would wait; at another replica, when it does not wait.
        let here = ann.query(&format!("a=0&limit=1000&wait={}", number % 2 * 20)).await;
        assert_eq!((here.versions().last(), here.more()), (Some(&version), false));
        for query in ["a=0&limit=1000&wait=0", "wait=0&limit=1000", "b=now"] {
            let there = ann.at(&desk.base(1)).query(query).await;
            assert_eq!(there.versions().last(), Some(&version), "{query}");
        }
    }
}
