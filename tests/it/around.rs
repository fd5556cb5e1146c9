//! Health, description, draining, the time zone.

use std::time::Duration;

use http::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{Client, TestDesk, client::finish, desk};

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn health_and_description_need_no_token() {
    let desk = TestDesk::start().await;
    let plain = reqwest::Client::builder().no_proxy().build().expect("a client");
    for (path, content_type) in [
        ("/healthz", "text/plain"),
        ("/readyz", "text/plain"),
        ("/metrics", "text/plain"),
        ("/openapi.json", "application/json"),
    ] {
        for value in [None, Some("Bearer nonsense")] {
            let mut request = plain.get(format!("{}{path}", desk.base(0)));
            if let Some(value) = value {
                request = request.header("authorization", value);
            }
            let answer = finish(request).await.expect("an answer");
            assert_eq!(answer.status, 200, "{path}");
            assert!(answer.header("content-type").starts_with(content_type), "{path}");
            assert!(!answer.text.is_empty(), "{path}");
        }
        let head = plain.head(format!("{}{path}", desk.base(0)));
        assert_eq!(finish(head).await.expect("an answer").text, "", "{path}");
    }
}

#[tokio::test]
async fn ready_means_that_the_schema_fits() {
    let desk = TestDesk::start().await;
    assert_eq!(desk.admin.get("/readyz").await.status, 200);
    let mut sql = desk.sql().await;
    sqlx::raw_sql("insert into _sqlx_migrations (version, description, success, checksum, execution_time) values (9999, 'of the future', true, '', 0)")
        .execute(&mut sql)
        .await
        .expect("a migration from the future");
    assert_eq!(desk.admin.get("/readyz").await.status, 200, "one that it can work with");
    sqlx::raw_sql("update store set oldest_program = 9999").execute(&mut sql).await.expect("one that it cannot");
    let answer = desk.admin.get("/readyz").await;
    assert_eq!((answer.code(), answer.header("retry-after")), (50300, "1"));
    assert_eq!(desk.admin.get("/healthz").await.status, 200);
    let gone = "delete from _sqlx_migrations where version = 9999; update store set oldest_program = 1";
    sqlx::raw_sql(gone).execute(&mut sql).await.expect("it goes again");
    assert_eq!(desk.admin.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn times_are_in_the_configured_zone() {
    let desk = TestDesk::with(1, &["--timezone", "Asia/Shanghai"]).await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    let sent = web.send_id("s1", "m1", "text").await.ok();
    let mut sql = desk.sql().await;
    let expected: String = sqlx::query_scalar(
        "select to_char(created_at at time zone 'Asia/Shanghai', 'YYYY-MM-DD HH24:MI:SS') from messages",
    )
    .fetch_one(&mut sql)
    .await
    .expect("the message");
    assert_eq!(sent["CreateTime"], json!(expected));
    assert_eq!(ann.feed().await[1]["Data"]["Message"][0]["CreateTime"], json!(expected));
    assert_eq!(ann.query("b=now").await.event(1)["Data"]["Message"][0]["CreateTime"], json!(expected));
    assert_eq!(ann.get("/session/history?SessionId=s1").await.ok()[0]["CreateTime"], json!(expected));
    let opened: String = sqlx::query_scalar(
        "select to_char(opened_at at time zone 'Asia/Shanghai', 'YYYY-MM-DD HH24:MI:SS') from sessions",
    )
    .fetch_one(&mut sql)
    .await
    .expect("the session");
    assert_eq!(ann.get("/session/list").await.ok()[0]["OpenTime"], json!(opened));
    // Another zone shows the same moment otherwise.
    let utc = TestDesk::on(desk.url.clone(), 1, &[]).await;
    let shown = ann.at(&utc.base(0)).feed().await[1]["Data"]["Message"][0]["CreateTime"].clone();
    let parse = |text: &str| chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").expect("a time");
    let (there, here) = (parse(&expected), parse(shown.as_str().expect("a text")));
    assert_eq!((there - here).num_hours(), 8);
}

#[tokio::test]
async fn stopping_answers_parked_polls_and_finishes_what_was_sent() {
    let desk = TestDesk::with(2, &[]).await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    ann.query("wait=0&c=1").await.ok();
    let spawn = |client: &Client, query: &str| {
        let (client, query) = (client.clone(), query.to_owned());
        tokio::spawn(async move { client.query(&query).await })
    };
    let parked =
        [spawn(&ann, "a=2&wait=60"), spawn(&ann, "wait=60"), spawn(&ann, "a=now&wait=60"), spawn(&web, "a=2&wait=60")];
    // A poll of each kind has been looked at when a later request on the same replica was answered,
    // or it comes while the service drains; what it is told then is the same.
    ann.query("b=now").await.ok();
    let sending: Vec<_> = (0..20)
        .map(|number| {
            let web = web.clone();
            tokio::spawn(async move {
                web.try_post(
                    "/message/send",
                    &json!({"SessionId": "s1", "Id": format!("m{number}"), "Content": "text"}),
                )
                .await
            })
        })
        .collect();
    let mut kept = Vec::new();
    let mut sending = sending.into_iter();
    kept.push(sending.next().expect("one").await.expect("no panic").expect("an answer").ok()["Id"].clone());
    timeout(PATIENCE, desk.replicas[0].stop()).await.expect("it stops");
    for sent in sending {
        if let Ok(answer) = sent.await.expect("no panic")
            && answer.status == 200
        {
            kept.push(answer.json()["Id"].clone());
        }
    }
    for poll in parked {
        let answer = timeout(PATIENCE, poll).await.expect("at once").expect("no panic");
        assert_eq!(answer.status, 200);
        assert!(answer.next() >= 2);
    }
    assert!(ann.try_get("/healthz").await.is_err(), "nobody listens there any more");
    // The other replica goes on and has everything that was answered.
    let events = ann.at(&desk.base(1)).query("a=2&wait=0").await.events();
    for id in kept {
        assert!(events.iter().any(|event| event["Data"]["Message"][0]["Id"] == id), "{id}");
    }
}

#[tokio::test]
async fn a_parked_poll_of_a_service_that_stops_is_answered_with_nothing() {
    let desk = TestDesk::start().await;
    let ann = desk.agent("ann").await;
    let parked = ["a=0&wait=60", "wait=60"].map(|query| {
        let ann = ann.clone();
        tokio::spawn(async move { ann.query(query).await })
    });
    // One connection, one after the other: when this is answered, those above were accepted.
    ann.query("a=0&wait=1").await.ok();
    timeout(PATIENCE, desk.replicas[0].stop()).await.expect("it stops");
    for poll in parked {
        let answer = timeout(PATIENCE, poll).await.expect("at once").expect("no panic");
        assert_eq!((answer.events().len(), answer.next(), answer.more()), (0, 0, false));
    }
}

#[tokio::test]
async fn a_restart_changes_nothing_that_a_client_can_see() {
    let desk = TestDesk::start().await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    let first = web.send_id("s1", "m1", "text").await.ok();
    ann.query("wait=0&c=1").await.ok();
    let (before, epoch) = (ann.feed().await, ann.query("a=0&wait=0").await.header("feed-epoch").to_owned());
    desk.replicas[0].stop().await;
    let restarted = desk::start_replica(&desk.url, &[]).await;
    let (ann, web) = (ann.at(&desk::base(&restarted)), web.at(&desk::base(&restarted)));
    assert_eq!(ann.feed().await, before);
    assert_eq!(ann.query("wait=0").await.versions(), [3]);
    assert_eq!(ann.query(&format!("a=3&wait=0&epoch={epoch}")).await.header("feed-epoch"), epoch);
    assert_eq!(web.send_id("s1", "m1", "text").await.ok(), first);
    let bad = finish(ann.request(Method::GET, "/message/query?a=4&wait=0")).await.expect("an answer");
    assert_eq!(bad.code(), 41001);
}

#[tokio::test]
async fn a_connection_that_was_made_before_the_stop_gets_its_answer() {
    let desk = TestDesk::start().await;
    let ann = desk.agent("ann").await;
    let parked = tokio::spawn({
        let ann = ann.clone();
        async move { ann.query("a=0&wait=60").await }
    });
    let address = desk.replicas[0].address();
    let mut early = Vec::new();
    for _ in 0..20 {
        early.push(TcpStream::connect(address).await.expect("it listens"));
    }
    ann.query("a=0&wait=1").await.ok();
    let stop = async { timeout(PATIENCE, desk.replicas[0].stop()).await.expect("it stops") };
    let ask = async {
        // Answered because of the stop, which all connections are told at the same time.
        timeout(PATIENCE, parked).await.expect("at once").expect("no panic").ok();
        for stream in &mut early {
            stream.write_all(b"GET /feed/status HTTP/1.1\r\nHost: desk\r\n\r\n").await.expect("it is taken");
        }
        for stream in &mut early {
            let mut answer = String::new();
            timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("it ends").expect("no reset");
            assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("50300"), "{answer:?}");
        }
    };
    tokio::join!(stop, ask);
}

/// A token's text, for requests that are written by hand.
async fn token_text(desk: &TestDesk, agent: &str) -> String {
    let made = desk.admin.post("/admin/token", json!({"Role": "agent", "Subject": agent})).await.ok();
    made["Token"].as_str().expect("a text").to_owned()
}

fn by_hand(path: &str, token: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: desk\r\nAuthorization: Bearer {token}\r\n{more}\r\n")
}

/// Reads until all of `wanted` have come, in this order.
async fn read_until(stream: &mut TcpStream, wanted: &[&str]) -> String {
    let mut text = String::new();
    let has_all = |text: &str| {
        let mut rest = text;
        wanted.iter().all(|part| rest.split_once(part).is_some_and(|(_, after)| (rest = after, true).1))
    };
    while !has_all(&text) {
        let mut bytes = [0; 4096];
        let count = timeout(PATIENCE, stream.read(&mut bytes)).await.unwrap_or_else(|_| panic!("only {text:?}"));
        let count = count.expect("no reset");
        assert!(count > 0, "it ends after {text:?}");
        text.push_str(std::str::from_utf8(&bytes[..count]).expect("text"));
    }
    text
}

#[tokio::test]
async fn a_parked_poll_shares_its_connection_with_requests_before_and_after_it() {
    let desk = TestDesk::start().await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    let token = token_text(&desk, "ann").await;
    web.open_to("s1", "ann").await.ok();
    let head = ann.query("a=0&wait=0").await.next();
    let mut stream = TcpStream::connect(desk.replicas[0].address()).await.expect("it listens");
    let (health, poll) =
        (by_hand("/healthz", &token, ""), by_hand(&format!("/message/query?a={head}&wait=60"), &token, ""));
    // All at once: what comes after the poll is read while it waits.
    stream.write_all(format!("{health}{poll}{health}").as_bytes()).await.expect("it is taken");
    let first = read_until(&mut stream, &["HTTP/1.1 200 OK", "\r\n\r\nok\n"]).await;
    assert_eq!(first.matches("HTTP/1.1").count(), 1, "the poll has nothing to tell yet: {first}");
    web.send("s1", "the first text").await.ok();
    let rest = read_until(&mut stream, &["\"the first text\"", "HTTP/1.1 200 OK", "\r\n\r\nok\n"]).await;
    assert_eq!(rest.matches("HTTP/1.1").count(), 2, "{rest}");
    assert!(rest.contains("\r\ndate: ") && rest.contains("\r\ncontent-type: application/json"), "{rest}");

    // The connection goes on: another poll that waits, one at once, a fault, and one that is to be the last.
    for (number, content) in [(1, "the second text"), (2, "the third text")] {
        let poll = by_hand(&format!("/message/query?a={}&wait=60", head + number), &token, "");
        let (answer, _) = tokio::join!(
            async {
                stream.write_all(poll.as_bytes()).await.expect("it is taken");
                read_until(&mut stream, &[content]).await
            },
            web.send("s1", content)
        );
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    stream.write_all(by_hand("/message/query?a=99&wait=60", &token, "").as_bytes()).await.expect("it is taken");
    read_until(&mut stream, &["HTTP/1.1 410 ", "41001"]).await;
    let last = by_hand(&format!("/message/query?a={}&wait=1", head + 3), &token, "Connection: close\r\n");
    stream.write_all(last.as_bytes()).await.expect("it is taken");
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("it ends").expect("no reset");
    assert!(answer.contains("connection: close") && answer.ends_with("\r\n\r\n[]"), "{answer}");
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_poll() {
    let desk = TestDesk::with(1, &["--polls-per-token", "1"]).await;
    desk.agent("ann").await;
    let token = token_text(&desk, "ann").await;
    let ann = Client::new(&desk.base(0), &token);
    let mut stream = TcpStream::connect(desk.replicas[0].address()).await.expect("it listens");
    let poll = by_hand("/message/query?a=0&wait=60", &token, "");
    stream.write_all(poll.as_bytes()).await.expect("it is taken");
    let until = tokio::time::Instant::now() + PATIENCE;
    // Until it is parked, others get through; one of them may have been in its way.
    while finish(ann.request(Method::GET, "/message/query?a=0&wait=0")).await.expect("an answer").status == 200 {
        assert!(tokio::time::Instant::now() < until, "it is never parked");
        if stream.try_read(&mut [0; 4096]).is_ok() {
            stream.write_all(poll.as_bytes()).await.expect("it is taken");
        }
    }
    drop(stream);
    while finish(ann.request(Method::GET, "/message/query?a=0&wait=0")).await.expect("an answer").status != 200 {
        assert!(tokio::time::Instant::now() < until, "the poll of a client that is gone goes on");
    }
}
