//! Routing: who gets a new session, and when the queue moves.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::support::{Client, TestDesk};

const PATIENCE: Duration = Duration::from_secs(30);

async fn owner(web: &Client, session: &str) -> Option<String> {
    web.open(session).await.ok()["ToId"].as_str().map(str::to_owned)
}

async fn put(desk: &TestDesk, agent: Value) -> Value {
    desk.admin.post("/admin/agent", agent).await.ok()
}

#[tokio::test]
async fn a_session_goes_to_the_available_agent_with_the_fewest() {
    let desk = TestDesk::start().await;
    let web = desk.gateway("web").await;
    for (id, max, status) in [("ann", 2, "online"), ("bob", 50, "online"), ("cat", 50, "away"), ("dan", 0, "online")] {
        put(&desk, json!({"Id": id, "MaxSessions": max, "Status": status})).await;
    }
    let mut owners = Vec::new();
    for number in 1..=6 {
        owners.push(owner(&web, &format!("s{number}")).await.expect("an owner"));
    }
    owners[..4].sort();
    assert_eq!(owners, ["ann", "ann", "bob", "bob", "bob", "bob"]);
    // A named agent counts, too, and what is closed does not.
    let bob = desk.token("agent", "bob").await;
    for number in 1..=6 {
        drop(bob.session("close", &format!("s{number}")).await);
    }
    web.open_to("s7", "bob").await.ok();
    web.open_to("s8", "bob").await.ok();
    web.open_to("s9", "bob").await.ok();
    put(&desk, json!({"Id": "ann", "MaxSessions": 3})).await;
    assert_eq!(owner(&web, "s10").await.as_deref(), Some("ann"));
    let agents = desk.admin.get("/admin/agent").await.ok();
    let open: Vec<(&str, i64)> = agents
        .as_array()
        .expect("a list")
        .iter()
        .map(|agent| (agent["Id"].as_str().expect("an id"), agent["OpenSessions"].as_i64().expect("a number")))
        .collect();
    assert_eq!(open, [("ann", 3), ("bob", 3), ("cat", 0), ("dan", 0)]);
}

#[tokio::test]
async fn the_queue_goes_oldest_first_as_soon_as_there_is_room() {
    let desk = TestDesk::start().await;
    let web = desk.gateway("web").await;
    for number in 1..=4 {
        assert_eq!(owner(&web, &format!("s{number}")).await, None);
    }
    web.send_id("s2", "m1", "first").await.ok();
    web.send_id("s2", "m2", "second").await.ok();
    // A new agent.
    put(&desk, json!({"Id": "ann", "MaxSessions": 1})).await;
    let ann = desk.token("agent", "ann").await;
    assert_eq!(ann.query("a=0&wait=20").await.event(0)["Data"]["SessionId"], "s1");
    // Room through a close.
    let closed = ann.session("close", "s1").await.ok()["Version"].clone();
    let next = ann.query(&format!("a={closed}&wait=20")).await.event(0);
    assert_eq!(next["Data"]["SessionId"], "s2");
    let contents: Vec<&Value> =
        next["Data"]["Message"].as_array().expect("a list").iter().map(|message| &message["Content"]).collect();
    assert_eq!(contents, ["first", "second"]);
    // Room through a higher MaxSessions, a transfer, a presence.
    put(&desk, json!({"Id": "ann", "MaxSessions": 2})).await;
    assert_eq!(owner(&web, "s3").await.as_deref(), Some("ann"));
    put(&desk, json!({"Id": "bob", "MaxSessions": 1, "Status": "away"})).await;
    let bob = desk.token("agent", "bob").await;
    assert_eq!(owner(&web, "s4").await, None);
    assert_eq!(bob.post("/agent/presence", json!({"Status": "online"})).await.ok(), json!({"Status": "online"}));
    assert_eq!(owner(&web, "s4").await.as_deref(), Some("bob"));
    bob.session("close", "s4").await.ok();
    assert_eq!(owner(&web, "s5").await.as_deref(), Some("bob"));
    assert_eq!(owner(&web, "s6").await, None);
    put(&desk, json!({"Id": "cat", "MaxSessions": 1, "Status": "away"})).await;
    assert_eq!(ann.transfer("s3", "cat").await.code(), 40903);
    // Away: nothing new, but what is there stays.
    bob.post("/agent/presence", json!({"Status": "away"})).await.ok();
    bob.session("close", "s5").await.ok();
    assert_eq!(owner(&web, "s6").await, None);
    ann.send("s3", "still here").await.ok();
}

#[tokio::test]
async fn a_released_session_keeps_its_place_and_does_not_bounce() {
    let desk = TestDesk::start().await;
    let web = desk.gateway("web").await;
    put(&desk, json!({"Id": "ann", "MaxSessions": 1})).await;
    let ann = desk.token("agent", "ann").await;
    web.open("s1").await.ok();
    ann.post("/agent/presence", json!({"Status": "away"})).await.ok();
    web.open("s2").await.ok();
    ann.session("release", "s1").await.ok();
    assert_eq!((owner(&web, "s1").await, owner(&web, "s2").await), (None, None));
    put(&desk, json!({"Id": "bob", "MaxSessions": 1})).await;
    assert_eq!((owner(&web, "s1").await.as_deref(), owner(&web, "s2").await), (Some("bob"), None));
    // Back to the one who released it, when that agent says anew that it is there.
    let bob = desk.token("agent", "bob").await;
    bob.session("close", "s1").await.ok();
    assert_eq!(owner(&web, "s2").await.as_deref(), Some("bob"));
    bob.session("release", "s2").await.ok();
    assert_eq!(owner(&web, "s2").await, None);
    bob.post("/agent/presence", json!({"Status": "online"})).await.ok();
    assert_eq!(owner(&web, "s2").await.as_deref(), Some("bob"));
}

#[tokio::test]
async fn a_long_queue_is_not_jumped() {
    let desk = TestDesk::start().await;
    let web = desk.gateway("web").await;
    for number in 0..230 {
        web.open(&format!("q{number}")).await.ok();
    }
    // More wait than one transaction assigns.
    put(&desk, json!({"Id": "ann", "MaxSessions": 225})).await;
    web.open("late").await.ok();
    let ann = desk.token("agent", "ann").await;
    let all = async {
        while ann.get("/session/list?limit=1000&status=open").await.ok().as_array().expect("a list").len() < 225 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, all).await.expect("the queue is worked off");
    let order: Vec<String> = ann
        .query("a=0&wait=0&limit=1000&t=AddSession")
        .await
        .events()
        .iter()
        .map(|event| event["Data"]["SessionId"].as_str().expect("an id").to_owned())
        .collect();
    assert_eq!(order, (0..225).map(|number| format!("q{number}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_agent_who_fell_silent_gets_nothing_new() {
    let desk = TestDesk::start().await;
    let web = desk.gateway("web").await;
    let ann = desk.agent("ann").await;
    // Never polled: available.
    assert_eq!(owner(&web, "s1").await.as_deref(), Some("ann"));
    ann.query("a=0&wait=0").await.ok();
    let mut sql = desk.sql().await;
    let seen = async {
        while sqlx::query("update polls_seen set seen_at = now() - interval '91 s'")
            .execute(&mut sql)
            .await
            .expect("it can be set")
            .rows_affected()
            == 0
        {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, seen).await.expect("the poll is noted");
    assert_eq!(owner(&web, "s2").await, None);
    // Named, the agent still gets it: silence concerns routing.
    assert_eq!(web.open_to("s3", "ann").await.ok()["Status"], "open");
    // A poll ends the silence. At another replica: this one has noted ann's polling just now and
    // would not write it again so soon.
    let second = TestDesk::on(desk.url.clone(), 1, &[]).await;
    let after = ann.query("a=now&wait=0").await.next();
    let answer = ann.at(&second.base(0)).query(&format!("a={after}&wait=30&t=AddSession")).await;
    assert_eq!(answer.event(0)["Data"]["SessionId"], "s2");
    let agents = desk.admin.get("/admin/agent").await.ok();
    assert!(agents[0]["LastSeen"].as_str().is_some_and(|time| time.ends_with('Z')), "{agents}");
}

#[tokio::test]
async fn exactly_one_replica_assigns_a_session() {
    let desk = TestDesk::with(3, &[]).await;
    let web = desk.gateway("web").await;
    for number in 0..60 {
        web.at(&desk.base(number % 3)).open(&format!("s{number}")).await.ok();
    }
    let online: Vec<_> = (0..3)
        .map(|replica| {
            let admin = desk.admin.at(&desk.base(replica));
            tokio::spawn(async move {
                admin.post("/admin/agent", json!({"Id": format!("agent{replica}"), "MaxSessions": 20})).await.ok();
            })
        })
        .collect();
    for task in online {
        task.await.expect("no panic");
    }
    let mut seen: Vec<String> = Vec::new();
    let feed = async {
        loop {
            let told = web.query("a=0&wait=0&limit=1000").await.events();
            seen = told.iter().map(|event| event["Data"]["SessionId"].as_str().expect("an id").to_owned()).collect();
            if seen.len() >= 60 {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, feed).await.expect("all are assigned");
    assert_eq!(seen, (0..60).map(|number| format!("s{number}")).collect::<Vec<_>>(), "each once, oldest first");
    for replica in 0..3 {
        let feed = desk.admin.query(&format!("a=0&wait=0&limit=1000&feed=agent{replica}")).await;
        assert_eq!(feed.events().len(), 20);
    }
}

#[tokio::test]
async fn presence_is_the_agents_own() {
    let desk = TestDesk::start().await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    assert_eq!(ann.post("/agent/presence", json!({"Status": "busy"})).await.code(), 40000);
    assert_eq!(ann.post("/agent/presence", json!({})).await.code(), 40000);
    assert_eq!(web.post("/agent/presence", json!({"Status": "away"})).await.code(), 40300);
    assert_eq!(desk.admin.post("/agent/presence", json!({"Status": "away"})).await.code(), 40300);
    assert_eq!(ann.form("/agent/presence", "Status=away").await.ok(), json!({"Status": "away"}));
    assert_eq!(desk.admin.get("/admin/agent").await.ok()[0]["Status"], "away");
}
