//! Tokens: who is let in, until when, and where their secrets are not.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row};
use tokio::time::{sleep, timeout};

use crate::support::{
    Client, TestDesk,
    client::finish,
    desk::ADMIN_TOKEN,
    postgres,
    process::{self, Service},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Every path that needs a token, with a method it takes.
const WITH_TOKEN: [(Method, &str); 17] = [
    (Method::GET, "/message/query"),
    (Method::POST, "/message/query"),
    (Method::POST, "/message/send"),
    (Method::POST, "/session/open"),
    (Method::POST, "/session/close"),
    (Method::POST, "/session/release"),
    (Method::POST, "/session/transfer"),
    (Method::GET, "/session/list"),
    (Method::GET, "/session/history"),
    (Method::GET, "/feed/status"),
    (Method::POST, "/agent/presence"),
    (Method::POST, "/admin/agent"),
    (Method::GET, "/admin/agent"),
    (Method::POST, "/admin/gateway"),
    (Method::POST, "/admin/token"),
    (Method::GET, "/admin/token"),
    (Method::POST, "/admin/token/revoke"),
];

#[tokio::test]
async fn without_a_valid_token_nothing_else_is_looked_at() {
    let desk = TestDesk::start().await;
    let plain = reqwest::Client::builder().no_proxy().build().expect("a client");
    let base = desk.base(0);
    let check = async |what: String, request: reqwest::RequestBuilder| {
        let answer = finish(request).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(answer.code(), 40100, "{what}");
        assert_eq!(answer.header("www-authenticate"), "Bearer", "{what}");
    };
    for (method, path) in WITH_TOKEN {
        let url = format!("{base}{path}");
        check(format!("{method} {path}"), plain.request(method.clone(), &url)).await;
        // Whatever else is wrong: the method, the parameters, the type, the body, its size, the URL's length.
        check(format!("PATCH {path}"), plain.request(Method::PATCH, &url)).await;
        check(format!("{path}?"), plain.request(method.clone(), format!("{url}?a=1&b=1&limit=x&%FF"))).await;
        let broken = plain.request(method.clone(), &url).header("content-type", "text/plain").body("{");
        check(format!("body of {path}"), broken).await;
        let long = format!("{url}?c={}", "1,".repeat(10_000));
        check(format!("long {path}"), plain.request(method.clone(), long)).await;
    }
    let url = format!("{base}/message/query?a=0&wait=0");
    let unknown = format!("dfk_agent_{}", "a".repeat(52));
    for value in [
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        ADMIN_TOKEN,
        &format!("Bearer {unknown}"),
        &format!("Bearer {ADMIN_TOKEN}x"),
        &format!("Bearer {}", &ADMIN_TOKEN[1..]),
        &format!("Bearer {}", ADMIN_TOKEN.to_uppercase()),
        &format!("Bearer {ADMIN_TOKEN}, Bearer {ADMIN_TOKEN}"),
        &format!("Token {ADMIN_TOKEN}"),
        "Bearer \u{e9}",
    ] {
        check(value.to_owned(), plain.get(&url).header("authorization", value)).await;
    }
    for name in ["token", "access_token", "Authorization", "authorization"] {
        check(name.to_owned(), plain.get(format!("{url}&{name}={ADMIN_TOKEN}"))).await;
        check(name.to_owned(), plain.get(&url).header("cookie", format!("{name}={ADMIN_TOKEN}"))).await;
    }
    let scheme = plain.get(format!("{url}&feed=nobody")).header("authorization", format!("bearer {ADMIN_TOKEN}"));
    assert_eq!(finish(scheme).await.expect("an answer").code(), 40402, "the scheme's case does not matter");
}

#[tokio::test]
async fn a_large_body_without_a_token_gets_its_401_too() {
    let desk = TestDesk::start().await;
    let plain = reqwest::Client::builder().no_proxy().build().expect("a client");
    for size in [300 * 1024, 9 * 1024 * 1024] {
        let request = plain
            .post(format!("{}/message/send", desk.base(0)))
            .header("content-type", "application/json")
            .body("x".repeat(size));
        assert_eq!(finish(request).await.expect("an answer").code(), 40100, "{size}");
    }
}

#[tokio::test]
async fn tokens_are_made_listed_and_checked() {
    let desk = TestDesk::start().await;
    let ann = desk.agent("ann").await;
    desk.gateway("web").await;
    for (body, code) in [
        (json!({}), 40000),
        (json!({"Role": "boss"}), 40000),
        (json!({"Role": "agent"}), 40000),
        (json!({"Role": "agent", "Subject": ""}), 40000),
        (json!({"Role": "agent", "Subject": "a b"}), 40000),
        (json!({"Role": "agent", "Subject": "nobody"}), 40402),
        (json!({"Role": "agent", "Subject": "web"}), 40905),
        (json!({"Role": "gateway", "Subject": "ann"}), 40905),
        (json!({"Role": "admin", "Subject": "ann"}), 40000),
        (json!({"Role": "admin", "ExpiresIn": 0}), 40000),
        (json!({"Role": "admin", "ExpiresIn": -1}), 40000),
        (json!({"Role": "admin", "ExpiresIn": 1e300}), 40000),
        (json!({"Role": "admin", "ExpiresIn": i64::MAX}), 40000),
    ] {
        assert_eq!(desk.admin.post("/admin/token", body.clone()).await.code(), code, "{body}");
    }
    let (id, admin) = desk.token_made(json!({"Role": "admin", "ExpiresIn": "3600"})).await;
    admin.get("/admin/token").await.ok();
    assert!(admin.token.starts_with("dfk_admin_") && admin.token.len() > 50);
    let list = desk.admin.get("/admin/token").await.ok();
    let listed = list.as_array().expect("a list").iter().find(|token| token["TokenId"] == id.as_str());
    let listed = listed.expect("it is listed");
    for field in ["TokenId", "Role", "Subject", "ExpiresAt", "LastUsed", "Revoked"] {
        assert!(listed.get(field).is_some(), "{field}: {listed}");
    }
    assert_eq!((&listed["Role"], &listed["Revoked"]), (&json!("admin"), &json!(false)));
    assert!(listed["ExpiresAt"].as_str().is_some_and(|time| chrono::DateTime::parse_from_rfc3339(time).is_ok()));
    for secret in [&admin.token, &ann.token] {
        assert!(!list.to_string().contains(secret.as_str()));
    }
    for (method, path) in WITH_TOKEN.iter().filter(|(_, path)| path.starts_with("/admin")) {
        let body = json!({"Id": "x", "Role": "admin", "TokenId": id});
        let answer = finish(ann.request(method.clone(), path).json(&body)).await.expect("an answer");
        assert_eq!(answer.code(), 40300, "{path}");
    }
    for (body, code) in [(json!({}), 40000), (json!({"TokenId": "x"}), 40000)] {
        assert_eq!(desk.admin.post("/admin/token/revoke", body).await.code(), code);
    }
}

#[tokio::test]
async fn agents_and_gateways_share_one_namespace() {
    let desk = TestDesk::start().await;
    let made = desk.admin.post("/admin/agent", json!({"Id": "A.b_c-d@e:9", "Name": "N"})).await.ok();
    assert_eq!(
        (&made["Id"], &made["MaxSessions"], &made["Status"]),
        (&json!("A.b_c-d@e:9"), &json!(50), &json!("online"))
    );
    desk.admin.post("/admin/gateway", json!({"Id": "web", "Name": "Web"})).await.ok();
    assert_eq!(desk.admin.post("/admin/gateway", json!({"Id": "A.b_c-d@e:9"})).await.code(), 40905);
    assert_eq!(desk.admin.post("/admin/agent", json!({"Id": "web"})).await.code(), 40905);
    for path in ["/admin/agent", "/admin/gateway"] {
        for id in ["", "a b", "é", "a/b", "a\u{0}", &"x".repeat(65)] {
            assert_eq!(desk.admin.post(path, json!({"Id": id})).await.code(), 40000, "{path} {id:?}");
        }
        assert_eq!(desk.admin.post(path, json!({"Name": "x"})).await.code(), 40000);
        let id = format!("{}{}", "x".repeat(62), if path == "/admin/agent" { "ag" } else { "gw" });
        desk.admin.post(path, json!({"Id": id})).await.ok();
    }
    for body in [
        json!({"Id": "z", "MaxSessions": -1}),
        json!({"Id": "z", "MaxSessions": "many"}),
        json!({"Id": "z", "Status": "busy"}),
    ] {
        assert_eq!(desk.admin.post("/admin/agent", body.clone()).await.code(), 40000, "{body}");
    }
    // What is not said stays.
    let changed = desk.admin.post("/admin/agent", json!({"Id": "A.b_c-d@e:9", "MaxSessions": "3"})).await.ok();
    assert_eq!((&changed["Name"], &changed["MaxSessions"]), (&json!("N"), &json!(3)));
    assert_eq!(desk.admin.post("/admin/gateway", json!({"Id": "web"})).await.ok(), json!({"Id": "web", "Name": "Web"}));
    let gateways = desk.admin.get("/admin/gateway").await.ok();
    assert_eq!(gateways[0], json!({"Id": "web", "Name": "Web"}));
    for field in ["Id", "Name", "Image", "MaxSessions", "Status", "OpenSessions", "LastSeen"] {
        assert!(desk.admin.get("/admin/agent").await.ok()[0].get(field).is_some(), "{field}");
    }
}

#[tokio::test]
async fn a_gateway_is_made_as_a_whole_or_not_at_all() {
    let desk = TestDesk::start().await;
    let mut holder = desk.sql().await;
    sqlx::raw_sql("begin; lock table gateways in access exclusive mode").execute(&mut holder).await.expect("the lock");
    assert_eq!(desk.admin.post("/admin/gateway", json!({"Id": "web"})).await.code(), 50300);
    sqlx::raw_sql("rollback").execute(&mut holder).await.expect("it is given back");
    let token = json!({"Role": "gateway", "Subject": "web"});
    assert_eq!(desk.admin.post("/admin/token", token.clone()).await.code(), 40402);
    desk.admin.post("/admin/gateway", json!({"Id": "web"})).await.ok();
    desk.admin.post("/admin/token", token).await.ok();
    desk.stop().await;
}

/// Queries until the token is refused.
pub async fn refused(client: &Client) {
    let until_refused = async {
        loop {
            let answer = client.query("b=now").await;
            if answer.status == StatusCode::UNAUTHORIZED {
                return assert_eq!(answer.code(), 40100);
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, until_refused).await.expect("it is refused in the end");
}

#[tokio::test]
async fn a_token_is_good_until_it_expires() {
    let desk = TestDesk::with(2, &[]).await;
    desk.agent("ann").await;
    let (_, short) = desk.token_made(json!({"Role": "agent", "Subject": "ann", "ExpiresIn": 2})).await;
    short.query("b=now").await.ok();
    short.at(&desk.base(1)).query("b=now").await.ok();
    let parked = short.query("a=0&wait=3").await;
    assert_eq!(parked.code(), 40100, "told nothing more");
    assert_eq!(short.query("b=now").await.code(), 40100);
    assert_eq!(short.at(&desk.base(1)).query("b=now").await.code(), 40100);
}

#[tokio::test]
async fn a_revoked_token_ends_everywhere_parked_polls_included() {
    let desk = TestDesk::with(3, &[]).await;
    desk.agent("ann").await;
    let (id, lost) = desk.token_made(json!({"Role": "agent", "Subject": "ann"})).await;
    let kept = desk.token("agent", "ann").await;
    let mut parked = Vec::new();
    for replica in 0..3 {
        for query in ["a=0&wait=60", "wait=60", "a=now&wait=60&t=Message"] {
            let (client, query) = (lost.at(&desk.base(replica)), query.to_owned());
            client.query("b=now").await.ok();
            parked.push(tokio::spawn(async move { client.query(&query).await }));
        }
    }
    let stays = tokio::spawn({
        let kept = kept.at(&desk.base(2));
        async move { kept.query("a=0&wait=3").await }
    });
    let revoked = desk.admin.post("/admin/token/revoke", json!({"TokenId": id})).await.ok();
    assert_eq!(revoked["Revoked"], true);
    for poll in parked {
        let answer = timeout(PATIENCE, poll).await.expect("long before the poll's own end").expect("no panic");
        assert_eq!(answer.code(), 40100);
    }
    for replica in 0..3 {
        refused(&lost.at(&desk.base(replica))).await;
    }
    // Twice is the same as once, and others go on.
    desk.admin.post("/admin/token/revoke", json!({"TokenId": id})).await.ok();
    assert_eq!(stays.await.expect("no panic").events().len(), 0);
    let list = desk.admin.get("/admin/token").await.ok();
    let revoked: Vec<&Value> =
        list.as_array().expect("a list").iter().filter(|token| token["Revoked"] == true).collect();
    assert_eq!((revoked.len(), &revoked[0]["TokenId"]), (1, &json!(id)));
}

#[tokio::test]
async fn no_table_holds_a_token() {
    let desk = TestDesk::start().await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    let (_, admin) = desk.token_made(json!({"Role": "admin"})).await;
    web.open_to("s1", "ann").await.ok();
    web.send_id("s1", "planted", "planted content").await.ok();
    ann.query("wait=0&c=planted").await.ok();
    admin.get("/admin/token").await.ok();
    let mut sql = desk.sql().await;
    let tables: Vec<String> = sqlx::query_scalar("select quote_ident(table_name) from information_schema.tables where table_schema = 'public' and table_type = 'BASE TABLE'")
        .fetch_all(&mut sql)
        .await
        .expect("the tables");
    let mut dump = String::new();
    for table in tables {
        let statement = format!("select to_jsonb(t)::text as line from {table} t");
        for row in sqlx::query(AssertSqlSafe(statement)).fetch_all(&mut sql).await.expect("a dump") {
            dump.push_str(row.get::<&str, _>("line"));
        }
    }
    assert!(dump.contains("planted content") && dump.contains("token_hash"), "the dump holds what there is");
    for secret in [&ann.token, &web.token, &admin.token, &ADMIN_TOKEN.to_owned()] {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert!(!dump.contains(secret.as_str()) && !dump.contains(&hex(secret.as_bytes())));
        assert!(!dump.contains(secret.rsplit('_').next().expect("its random part")));
    }
}

#[tokio::test]
async fn no_log_line_holds_a_token_or_a_message() {
    let url = postgres::as_application(&postgres::new_database().await);
    let mut command = process::command(&["serve", "--listen", "127.0.0.1:0", "--database-url", &url]);
    command.env("DESKFEED_ADMIN_TOKEN", ADMIN_TOKEN).env("DESKFEED_LOG", "trace");
    let service = Service::start(command).await.expect("it starts");
    let admin = Client::new(&service.base, ADMIN_TOKEN);
    admin.post("/admin/agent", json!({"Id": "ann"})).await.ok();
    admin.post("/admin/gateway", json!({"Id": "web"})).await.ok();
    let mut secrets = vec![ADMIN_TOKEN.to_owned(), "planted-content".to_owned()];
    let mut clients = Vec::new();
    for (role, subject) in [("agent", "ann"), ("gateway", "web")] {
        let made = admin.post("/admin/token", json!({"Role": role, "Subject": subject})).await.ok();
        let secret = made["Token"].as_str().expect("a token");
        secrets.push(secret.to_owned());
        clients.push((Client::new(&service.base, secret), made["TokenId"].clone()));
    }
    let (ann, web) = (&clients[0].0, &clients[1].0);
    web.open_to("s1", "ann").await.ok();
    web.send_id("s1", "m1", "planted-content").await.ok();
    web.send_id("s1", "m1", "planted-content again").await.code();
    web.post("/message/send", json!({"SessionId": "planted-content", "Content": 5})).await.code();
    ann.query("a=0&wait=0&c=m1").await.ok();
    ann.session("close", "nosuch").await.code();
    web.session("close", "s1").await.code();
    Client::new(&service.base, "planted-content").query("a=0").await.code();
    ann.get(&format!("/message/query?token={}&a=x", ann.token)).await.code();
    admin.post("/admin/token/revoke", json!({"TokenId": clients[0].1})).await.ok();
    refused(ann).await;
    secrets.extend(url::Url::parse(&url).expect("a URL").password().filter(|text| text.len() > 8).map(str::to_owned));
    let (out, err) = (service.out.clone(), service.err.clone());
    service.terminate().await;
    let log = format!("{}\n{}", out.text(), err.text());
    assert!(log.contains("a token was revoked") && log.contains("a request was denied"), "{log}");
    for secret in secrets {
        let line = log.lines().find(|line| line.contains(&secret));
        assert_eq!(line, None, "{secret}");
    }
}
