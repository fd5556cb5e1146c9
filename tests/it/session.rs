//! /session/open, close, release, transfer: what they answer, and who is told what.

use serde_json::{Value, json};

use crate::support::{Client, TestDesk};

/// An event as the table "Who is told what" shows it: type, session, from, to, reason, messages.
fn told(event: &Value) -> String {
    let data = &event["Data"];
    let text = |name: &str| data[name].as_str().unwrap_or("-").to_owned();
    assert_eq!(data["Type"], i32::from(event["e"] == "DelSession"), "{event}");
    assert_eq!(data.get("Reason").is_some(), event["e"] == "DelSession", "{event}");
    let messages: Vec<String> = data["Message"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|message| format!("{}:{}", message["Type"], message["Id"].as_str().expect("a text")))
        .collect();
    let e = event["e"].as_str().expect("a type");
    format!("{e} {} {}>{} {} [{}]", text("SessionId"), text("FromId"), text("ToId"), text("Reason"), messages.join(" "))
}

async fn new_events(client: &Client, after: i64) -> Vec<String> {
    client.query(&format!("a={after}&wait=0")).await.events().iter().map(told).collect()
}

async fn head(desk: &TestDesk) -> i64 {
    desk.admin.query("a=now&wait=0&feed=ann").await.next()
}

#[tokio::test]
async fn who_is_told_what() {
    let desk = TestDesk::start().await;
    let (ann, bob, web) = (desk.agent("ann").await, desk.agent("bob").await, desk.gateway("web").await);
    let mut at = 0;
    let mut check = async |ann_told: &[&str], bob_told: &[&str], web_told: &[&str]| {
        assert_eq!(new_events(&ann, at).await, ann_told);
        assert_eq!(new_events(&bob, at).await, bob_told);
        assert_eq!(new_events(&web, at).await, web_told);
        at = head(&desk).await;
    };
    // Opened and assigned.
    let opened = web.open_to("s1", "ann").await.ok();
    assert_eq!(opened, json!({"SessionId": "s1", "Status": "open", "ToId": "ann", "Version": 1}));
    check(&["AddSession s1 customer>ann - []"], &[], &["AddSession s1 customer>ann - []"]).await;
    // A customer's message.
    assert_eq!(web.send_id("s1", "m1", "hello").await.ok()["Version"], 3);
    check(&["Message s1 customer>ann - [0:m1]"], &[], &[]).await;
    // An agent's message.
    assert_eq!(ann.send_id("s1", "m2", "hello you").await.ok()["Version"], 4);
    check(&["Message s1 ann>customer - [1:m2]"], &[], &["Message s1 ann>customer - [1:m2]"]).await;
    // Transferred.
    let transferred = ann.transfer("s1", "bob").await.ok();
    assert_eq!((&transferred["Status"], &transferred["ToId"]), (&json!("open"), &json!("bob")));
    check(
        &["DelSession s1 customer>ann transferred []"],
        &["AddSession s1 customer>bob - [0:m1 1:m2]"],
        &["AddSession s1 customer>bob - []"],
    )
    .await;
    // Released to the queue: bob gets it only when he says anew that he is there; ann is available.
    ann.post("/agent/presence", json!({"Status": "away"})).await.ok();
    let released = bob.session("release", "s1").await.ok();
    assert_eq!(released["Status"], "queued");
    check(&[], &["DelSession s1 customer>bob released []"], &[]).await;
    // A message while it waits is told to nobody, and comes with the AddSession.
    assert_eq!(web.send_id("s1", "m3", "anybody?").await.ok()["Version"], 0);
    check(&[], &[], &[]).await;
    ann.post("/agent/presence", json!({"Status": "online"})).await.ok();
    check(&["AddSession s1 customer>ann - [0:m1 1:m2 0:m3]"], &[], &["AddSession s1 customer>ann - []"]).await;
    // Closed.
    let closed = ann.session("close", "s1").await.ok();
    assert_eq!((&closed["SessionId"], &closed["Status"]), (&json!("s1"), &json!("closed")));
    assert_eq!(closed["Version"], head(&desk).await - 1);
    check(&["DelSession s1 customer>ann closed []"], &[], &["DelSession s1 customer>ann closed []"]).await;
    // Closed while queued.
    desk.admin.post("/admin/agent", json!({"Id": "ann", "Status": "away"})).await.ok();
    desk.admin.post("/admin/agent", json!({"Id": "bob", "Status": "away"})).await.ok();
    assert_eq!(web.open("s2").await.ok(), json!({"SessionId": "s2", "Status": "queued", "Version": 0}));
    assert_eq!(desk.admin.session("close", "s2").await.ok()["Status"], "closed");
    check(&[], &[], &["DelSession s2 customer>- closed []"]).await;
}

#[tokio::test]
async fn an_event_shows_names_and_images_of_both_sides() {
    let desk = TestDesk::start().await;
    let web = desk.gateway("web").await;
    let image = "https://example.org/ann.png";
    desk.admin.post("/admin/agent", json!({"Id": "ann", "Name": "安 Ann", "Image": image})).await.ok();
    let ann = desk.token("agent", "ann").await;
    let customer = json!({"SessionId": "会话-1", "SessionType": "7", "FromId": "c@1", "FromName": "Customer \"C\"", "FromImage": "https://example.org/c.png"});
    web.post("/session/open", customer).await.ok();
    ann.send("会话-1", "hi").await.ok();
    let events = ann.feed().await;
    let expected = json!({"Type": 0, "SessionId": "会话-1", "SessionType": 7,
        "FromId": "c@1", "FromName": "Customer \"C\"", "FromImage": "https://example.org/c.png",
        "ToId": "ann", "ToName": "安 Ann", "ToImage": image, "Message": []});
    assert_eq!(events[0]["Data"], expected);
    let data = &events[1]["Data"];
    assert_eq!((&data["FromName"], &data["FromImage"]), (&json!("安 Ann"), &json!(image)));
    assert_eq!((&data["ToId"], &data["ToName"]), (&json!("c@1"), &json!("Customer \"C\"")));
    let message = data["Message"][0].as_object().expect("an object");
    assert_eq!(message.keys().collect::<Vec<_>>(), ["Content", "ContentType", "CreateTime", "Id", "Type"]);
    assert_eq!((&message["ContentType"], &message["Type"]), (&json!("0"), &json!(1)));
    // What is known of an agent changes for events to come only.
    desk.admin.post("/admin/agent", json!({"Id": "ann", "Name": "Ann 2"})).await.ok();
    ann.send("会话-1", "again").await.ok();
    let names: Vec<Value> = ann.feed().await.iter().skip(1).map(|event| event["Data"]["FromName"].clone()).collect();
    assert_eq!(names, ["安 Ann", "Ann 2"]);
}

#[tokio::test]
async fn an_addsession_brings_the_last_20_messages_oldest_first() {
    let desk = TestDesk::start().await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    desk.agent("bob").await;
    let bob = desk.token("agent", "bob").await;
    web.open_to("s1", "ann").await.ok();
    let mut sent = 0;
    for (count, expected) in [(1, 1..=1), (18, 1..=19), (1, 1..=20), (1, 2..=21), (30, 32..=51)] {
        for _ in 0..count {
            sent += 1;
            web.send_id("s1", &format!("m{sent}"), "text").await.ok();
        }
        let version = ann.transfer("s1", "bob").await.ok()["Version"].as_i64().expect("a version");
        let added = bob.query(&format!("a={}&wait=0&t=AddSession", version - 1)).await.event(0);
        let ids: Vec<&str> = added["Data"]["Message"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|message| message["Id"].as_str().expect("a text"))
            .collect();
        assert_eq!(ids, expected.map(|number| format!("m{number}")).collect::<Vec<_>>());
        bob.transfer("s1", "ann").await.ok();
    }
}

#[tokio::test]
async fn repetitions_get_the_same_answer_and_no_second_event() {
    let desk = TestDesk::with(2, &[]).await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    let bob = desk.agent("bob").await;
    let again = |client: &Client| client.at(&desk.base(1));
    let opened = web.open_to("s1", "ann").await.ok();
    assert_eq!(again(&web).open_to("s1", "bob").await.ok(), opened, "as it is");
    assert_eq!(web.open("s1").await.ok(), opened);
    let transferred = ann.transfer("s1", "bob").await.ok();
    assert_eq!(again(&ann).transfer("s1", "bob").await.ok(), transferred);
    web.send("s1", "text").await.ok();
    assert_eq!(ann.transfer("s1", "bob").await.ok(), transferred);
    let now = web.open("s1").await.ok();
    assert_eq!((&now["Status"], &now["ToId"]), (&json!("open"), &json!("bob")));
    // Something else has happened: no repetition any more.
    bob.transfer("s1", "ann").await.ok();
    let before = head(&desk).await;
    assert_ne!(ann.transfer("s1", "bob").await.ok(), transferred);
    assert!(head(&desk).await > before);

    desk.admin.post("/admin/agent", json!({"Id": "ann", "Status": "away"})).await.ok();
    let released = bob.session("release", "s1").await.ok();
    assert_eq!(again(&bob).session("release", "s1").await.ok(), released);
    assert_eq!(web.open("s1").await.ok(), json!({"SessionId": "s1", "Status": "queued", "Version": 0}));
    desk.admin.post("/admin/agent", json!({"Id": "ann", "Status": "online"})).await.ok();
    assert_eq!(bob.session("release", "s1").await.ok(), released, "assigned to ann meanwhile");

    let closed = ann.session("close", "s1").await.ok();
    let before = head(&desk).await;
    assert_eq!(again(&ann).session("close", "s1").await.ok(), closed);
    assert_eq!(head(&desk).await, before);
    assert_eq!(desk.admin.session("close", "s1").await.code(), 40900, "another caller's is no repetition");
    assert_eq!(bob.session("close", "s1").await.code(), 40301);
}

#[tokio::test]
async fn only_the_owner_and_admins_direct_a_session() {
    let desk = TestDesk::start().await;
    let (ann, bob) = (desk.agent("ann").await, desk.agent("bob").await);
    let (web, other) = (desk.gateway("web").await, desk.gateway("other").await);
    web.open_to("s1", "ann").await.ok();
    let before = head(&desk).await;
    for operation in ["close", "release"] {
        assert_eq!(bob.session(operation, "s1").await.code(), 40301, "{operation}");
        assert_eq!(web.session(operation, "s1").await.code(), 40300, "{operation}");
        assert_eq!(ann.session(operation, "nosuch").await.code(), 40401, "{operation}");
        assert_eq!(ann.post(&format!("/session/{operation}"), json!({})).await.code(), 40000, "{operation}");
    }
    assert_eq!(bob.transfer("s1", "bob").await.code(), 40301);
    assert_eq!(web.transfer("s1", "bob").await.code(), 40300);
    assert_eq!(ann.transfer("nosuch", "bob").await.code(), 40401);
    assert_eq!(ann.transfer("s1", "nobody").await.code(), 40402);
    assert_eq!(ann.transfer("s1", "web").await.code(), 40402);
    assert_eq!(ann.transfer("s1", "ann").await.code(), 40902);
    assert_eq!(desk.admin.transfer("s1", "ann").await.code(), 40902);
    assert_eq!(bob.send("s1", "text").await.code(), 40301);
    assert_eq!(other.send("s1", "text").await.code(), 40301);
    assert_eq!(desk.admin.send("s1", "text").await.code(), 40300);
    assert_eq!(other.open_to("s1", "ann").await.code(), 40301);
    assert_eq!(ann.open("s9").await.code(), 40300);
    assert_eq!(web.open_to("s9", "nobody").await.code(), 40402);
    for reader in [&bob, &other] {
        assert_eq!(reader.get("/session/history?SessionId=s1").await.code(), 40301);
    }
    desk.admin.post("/admin/agent", json!({"Id": "bob", "Status": "away"})).await.ok();
    assert_eq!(ann.transfer("s1", "bob").await.code(), 40903);
    assert_eq!(web.open_to("s9", "bob").await.code(), 40903);
    desk.admin.post("/admin/agent", json!({"Id": "bob", "Status": "online", "MaxSessions": 0})).await.ok();
    assert_eq!(ann.transfer("s1", "bob").await.code(), 40903);
    assert_eq!(web.open_to("s9", "bob").await.code(), 40903);
    assert_eq!(head(&desk).await, before, "what was refused left no trace");

    // Admins may; and the old owner may not any more.
    desk.admin.post("/admin/agent", json!({"Id": "bob", "MaxSessions": 1})).await.ok();
    desk.admin.transfer("s1", "bob").await.ok();
    assert_eq!(ann.send("s1", "text").await.code(), 40301);
    assert_eq!(ann.session("close", "s1").await.code(), 40301);
    assert_eq!(ann.transfer("s1", "bob").await.code(), 40301);
    assert_eq!(ann.get("/session/history?SessionId=s1").await.code(), 40301);
    bob.send("s1", "text").await.ok();
    assert_eq!(desk.admin.session("release", "s1").await.ok()["Status"], "queued");
    desk.admin.session("close", "s1").await.ok();
    for (answer, name) in [
        (web.send("s1", "text").await, "send"),
        (desk.admin.session("release", "s1").await, "release"),
        (desk.admin.transfer("s1", "ann").await, "transfer"),
        (web.open("s1").await, "open"),
    ] {
        assert_eq!(answer.code(), 40900, "{name}");
    }
}

#[tokio::test]
async fn open_checks_what_it_is_given() {
    let desk = TestDesk::start().await;
    let web = desk.gateway("web").await;
    for body in [
        json!({}),
        json!({"FromId": ""}),
        json!({"FromId": null}),
        json!({"FromId": 7}),
        json!({"FromId": "c", "SessionType": "x"}),
        json!({"FromId": "c", "SessionType": 1.5}),
        json!({"FromId": "c", "SessionType": 2_147_483_648_i64}),
        json!({"FromId": "c", "SessionId": "x\u{0}"}),
        json!({"FromId": "c\u{0}"}),
        json!({"FromId": "c", "FromName": "\u{0}"}),
        json!({"FromId": "c", "SessionId": "x".repeat(129)}),
        json!({"FromId": "c", "SessionId": []}),
    ] {
        assert_eq!(web.post("/session/open", body.clone()).await.code(), 40000, "{body}");
    }
    let made = web.post("/session/open", json!({"FromId": "c", "SessionId": "", "ToId": "", "Unknown": 1})).await.ok();
    let id = uuid::Uuid::parse_str(made["SessionId"].as_str().expect("a text")).expect("a UUID");
    assert_eq!(id.get_version_num(), 7);
    assert_eq!((&made["Status"], &made["Version"]), (&json!("queued"), &json!(0)));
    let longest = "x".repeat(128);
    web.open(&longest).await.ok();
    assert_eq!(web.form("/session/open", "SessionId=f1&FromId=c&SessionType=3").await.ok()["Status"], "queued");
    let line = web.get("/session/list?limit=1").await.ok()[0].clone();
    assert_eq!((&line["SessionId"], &line["SessionType"]), (&json!("f1"), &json!(3)));
    // An admin's session has no gateway.
    let ann = desk.agent("ann").await;
    desk.admin.open_to("a1", "ann").await.ok();
    assert_eq!(ann.feed().await.iter().filter(|event| event["Data"]["SessionId"] == "a1").count(), 1);
    assert_eq!(desk.admin.open("a1").await.ok()["Status"], "open");
    assert_eq!(web.open("a1").await.code(), 40301);
}

#[tokio::test]
async fn an_admin_may_take_a_session_from_the_queue() {
    let desk = TestDesk::start().await;
    let web = desk.gateway("web").await;
    desk.admin.post("/admin/agent", json!({"Id": "ann", "Status": "away"})).await.ok();
    let ann = desk.token("agent", "ann").await;
    web.open("s1").await.ok();
    web.send_id("s1", "m1", "text").await.ok();
    assert_eq!(ann.transfer("s1", "ann").await.code(), 40301);
    assert_eq!(desk.admin.session("release", "s1").await.ok()["Status"], "queued", "as it is");
    assert_eq!(desk.admin.transfer("s1", "ann").await.code(), 40903);
    desk.admin.post("/admin/agent", json!({"Id": "bob"})).await.ok();
    assert_eq!(web.open("s1").await.ok()["ToId"], "bob");
    let bob = desk.token("agent", "bob").await;
    assert_eq!(new_events(&bob, 0).await, ["AddSession s1 customer>bob - [0:m1]"]);
}
