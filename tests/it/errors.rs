//! Every number of the table of errors, and the form of a problem.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Client, TestDesk, client::finish};

#[tokio::test]
async fn paths_and_methods() {
    let desk = TestDesk::start().await;
    for path in
        ["/nosuch", "/message", "/message/query/", "//message/query", "/message/query/x", "/admin", "/%00", "/..%2f"]
    {
        for method in [Method::GET, Method::POST, Method::DELETE] {
            let answer = finish(desk.admin.request(method, path)).await.expect("an answer");
            assert_eq!(answer.code(), 40400, "{path}");
        }
    }
    for (path, allowed) in [
        ("/message/query", "GET, HEAD, POST"),
        ("/message/send", "POST"),
        ("/session/open", "POST"),
        ("/session/close", "POST"),
        ("/session/release", "POST"),
        ("/session/transfer", "POST"),
        ("/session/list", "GET, HEAD"),
        ("/session/history", "GET, HEAD"),
        ("/feed/status", "GET, HEAD"),
        ("/agent/presence", "POST"),
        ("/admin/agent", "GET, HEAD, POST"),
        ("/admin/gateway", "GET, HEAD, POST"),
        ("/admin/token", "GET, HEAD, POST"),
        ("/admin/token/revoke", "POST"),
        ("/healthz", "GET, HEAD"),
        ("/readyz", "GET, HEAD"),
        ("/metrics", "GET, HEAD"),
        ("/openapi.json", "GET, HEAD"),
    ] {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE"] {
            if allowed.split(", ").any(|one| one == method) {
                continue;
            }
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            let answer = finish(desk.admin.request(method.clone(), path)).await.expect("an answer");
            assert_eq!((answer.code(), answer.header("allow")), (40500, allowed), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn content_types() {
    let desk = TestDesk::start().await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    let body = r#"{"SessionId":"s1","Content":"x"}"#;
    for good in ["application/json", "Application/JSON; charset=UTF-8", "application/json;charset=\"utf-8\"; x=y"] {
        web.post_text("/message/send", good, body).await.ok();
    }
    web.post_text("/message/send", "application/x-www-form-urlencoded; charset=utf-8", "SessionId=s1&Content=x")
        .await
        .ok();
    for bad in [
        "text/plain",
        "text/json",
        "application/json; charset=gbk",
        "application/xml",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "",
        ";",
        "\u{e9}",
    ] {
        for path in ["/message/send", "/message/query", "/session/close"] {
            assert_eq!(web.post_text(path, bad, body).await.code(), 41500, "{bad} {path}");
        }
    }
    let without = web.request(Method::POST, "/message/send").body(body);
    assert_eq!(finish(without).await.expect("an answer").code(), 41500);
    assert_eq!(ann.feed().await.len(), 5);
}

#[tokio::test]
async fn a_url_may_be_16_kib_long() {
    let desk = TestDesk::start().await;
    let ann = desk.agent("ann").await;
    let path =
        |length: usize| format!("/message/query?wait=0&c={}", "1".repeat(length - "/message/query?wait=0&c=".len()));
    for length in [16 * 1024 - 1, 16 * 1024] {
        assert_eq!(ann.get(&path(length)).await.events().len(), 0);
    }
    assert_eq!(ann.get(&path(16 * 1024 + 1)).await.code(), 40000);
    assert_eq!(ann.get(&path(60 * 1024)).await.code(), 40000);
}

#[tokio::test]
async fn too_many_requests_or_polls() {
    let desk = TestDesk::with(1, &["--polls-per-token", "2", "--requests-per-second", "50"]).await;
    let (ann, bob) = (desk.agent("ann").await, desk.agent("bob").await);
    let poll = |query: &'static str| {
        let ann = ann.clone();
        tokio::spawn(async move {
            // It may find the room taken by the one below; so seldom that the requests themselves are not too many.
            loop {
                let answer = ann.query(query).await;
                if answer.status == StatusCode::OK {
                    return answer;
                }
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        })
    };
    let parked = [poll("a=0&wait=30"), poll("a=0&wait=30")];
    let refused = async {
        loop {
            let answer = ann.query("wait=0").await;
            if answer.status != StatusCode::OK {
                return answer;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let refused = refused.await;
    assert_eq!((refused.code(), refused.header("retry-after")), (42900, "1"));
    // `b` is not held, and other tokens are not concerned.
    ann.query("b=now").await.ok();
    bob.query("a=0&wait=0").await.ok();
    desk.admin.post("/session/open", json!({"FromId": "c", "ToId": "ann"})).await.ok();
    for poll in parked {
        assert_eq!(poll.await.expect("no panic").events().len(), 1);
    }
    assert_eq!(ann.query("a=0&wait=0").await.events().len(), 1, "room again");

    let mut codes = Vec::new();
    while codes.len() < 2000 && codes.last() != Some(&StatusCode::TOO_MANY_REQUESTS) {
        codes.push(bob.query("b=now").await.status);
    }
    if codes.last() == Some(&StatusCode::TOO_MANY_REQUESTS) {
        let answer = bob.query("b=now").await;
        if answer.status != StatusCode::OK {
            assert_eq!((answer.code(), answer.header("retry-after")), (42900, "1"));
        }
    } else {
        panic!("2000 requests in a row and none too many");
    }
    assert_ne!(ann.query("b=now").await.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn history_that_is_not_there() {
    let desk = TestDesk::start().await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    for number in 0..8 {
        web.send("s1", &format!("text {number}")).await.ok();
    }
    let epoch = ann.query("a=0&wait=0").await.header("feed-epoch").to_owned();
    ann.query(&format!("a=10&wait=0&epoch={epoch}")).await.ok();
    for query in [
        "a=11&wait=0",
        "a=11&wait=60",
        "a=9223372036854775807",
        "a=0&epoch=other",
        "b=now&epoch=other",
        "epoch=other",
        &format!("a=11&epoch={epoch}"),
    ] {
        let answer = ann.query(query).await;
        assert_eq!(answer.code(), 41001, "{query}");
        assert_eq!((&answer.json()["head"], &answer.json()["epoch"]), (&json!(10), &json!(epoch)), "{query}");
    }
    assert_eq!(ann.query_post(json!({"a": 0, "epoch": "other"})).await.code(), 41001);
    assert_eq!(ann.query(&format!("b=9999&epoch={epoch}")).await.events().len(), 9, "b may lie anywhere");

    // What an archiving of events below version 6 would leave behind, as far as readers can tell.
    let mut sql = desk.sql().await;
    sqlx::query("update store set oldest_version = 6").execute(&mut sql).await.expect("it can be set");
    let later = TestDesk::on(desk.url.clone(), 1, &[]).await;
    let ann = ann.at(&later.base(0));
    for after in [1, 2, 4] {
        let answer = ann.query(&format!("a={after}&wait=0")).await;
        assert_eq!((answer.code(), &answer.json()["oldest"]), (41000, &json!(6)), "{after}");
    }
    ann.query("a=0&wait=0").await.ok();
    assert_eq!(ann.query("a=5&wait=0").await.versions(), [6, 7, 8, 9, 10]);
    assert_eq!(ann.get("/feed/status").await.ok()["Oldest"], 6);
    assert_eq!(ann.query("a=@2000-01-01T00:00:00Z&wait=0").await.versions(), [6, 7, 8, 9, 10]);
}

/// A table that another transaction holds on to, and one that is not there any more.
#[tokio::test]
async fn faults_of_the_database() {
    let desk = TestDesk::start().await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    let mut sql = desk.sql().await;
    let mut run = async |statement: &'static str| {
        sqlx::raw_sql(statement).execute(&mut sql).await.expect("the test's own statement works");
    };
    run("begin; lock table append_lock in exclusive mode").await;
    let answer = web.send_id("s1", "m1", "text").await;
    assert_eq!((answer.code(), answer.header("retry-after")), (50300, "1"));
    run("rollback").await;
    web.send_id("s1", "m1", "text").await.ok();
    assert_eq!(ann.query("a=0&wait=0").await.contents(), ["text"]);

    run("begin; lock table sessions in access exclusive mode").await;
    let answer = ann.get("/session/list").await;
    assert_eq!((answer.code(), answer.header("retry-after")), (50300, "1"));
    run("rollback").await;
    ann.get("/session/list").await.ok();

    run("alter table sessions rename to planted_name").await;
    let no_internals = |answer: &crate::support::client::Reply| {
        assert_eq!(answer.code(), 50000);
        for word in ["planted", "sessions\"", "relation", "select", "42P01"] {
            assert!(!answer.text.contains(word), "{}", answer.text);
        }
    };
    no_internals(&ann.get("/session/list").await);
    no_internals(&web.open("s2").await);
    run("alter table planted_name rename to sessions").await;
    run("alter table events rename to planted_name").await;
    no_internals(&web.send_id("s1", "m2", "text").await);
    run("alter table planted_name rename to events").await;
    web.send_id("s1", "m2", "text").await.ok();
}

async fn codes_of(client: &Client, requests: &[(&str, Value)]) -> Vec<u64> {
    let mut codes = Vec::new();
    for (path, body) in requests {
        codes.push(client.post(path, body.clone()).await.code());
    }
    codes
}

#[tokio::test]
async fn what_a_role_may_not_do() {
    let desk = TestDesk::start().await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    let admins = [
        ("/admin/agent", json!({"Id": "x"})),
        ("/admin/gateway", json!({"Id": "x"})),
        ("/admin/token", json!({"Role": "admin"})),
        ("/admin/token/revoke", json!({"TokenId": uuid::Uuid::nil().to_string()})),
    ];
    for client in [&ann, &web] {
        assert_eq!(codes_of(client, &admins).await, [40300; 4]);
        for path in ["/admin/agent", "/admin/gateway", "/admin/token"] {
            assert_eq!(client.get(path).await.code(), 40300);
        }
    }
    assert_eq!(codes_of(&ann, &[("/session/open", json!({"FromId": "c"}))]).await, [40300]);
    let owners = [
        ("/session/close", json!({"SessionId": "s1"})),
        ("/session/release", json!({"SessionId": "s1"})),
        ("/session/transfer", json!({"SessionId": "s1", "ToNewId": "ann"})),
        ("/agent/presence", json!({"Status": "away"})),
    ];
    assert_eq!(codes_of(&web, &owners).await, [40300; 4]);
    let sending = [
        ("/message/send", json!({"SessionId": "s1", "Content": "x"})),
        ("/message/send", json!([{"SessionId": "s1", "Content": "x"}])),
    ];
    assert_eq!(codes_of(&desk.admin, &sending).await, [40300; 2]);
    assert_eq!(desk.admin.post("/agent/presence", json!({"Status": "away"})).await.code(), 40300);
}

/// Refused before the body is looked at, and told so all the same.
#[tokio::test]
async fn a_client_that_is_still_sending_gets_to_read_why_not() {
    let desk = TestDesk::start().await;
    let web = desk.gateway("web").await;
    for _ in 0..5 {
        for size in [300 * 1024, 3 * 1024 * 1024, 12 * 1024 * 1024] {
            for (client, method, path, content_type, code) in [
                (&web, Method::POST, "/nosuch", "application/json", 40400),
                (&web, Method::PUT, "/message/send", "application/json", 40500),
                (&web, Method::POST, "/message/send", "text/plain", 41500),
                (&web, Method::POST, "/session/close", "text/plain", 41500),
                (&desk.admin, Method::POST, "/message/send", "application/json", 40300),
                (&Client::new(&desk.base(0), "nobody"), Method::POST, "/message/send", "application/json", 40100),
            ] {
                let request = client.request(method, path).header("content-type", content_type).body(vec![b' '; size]);
                let answer = finish(request).await.unwrap_or_else(|error| panic!("{path} {size}: {error:?}"));
                assert_eq!(answer.code(), code, "{path} {size}");
            }
        }
    }
}
