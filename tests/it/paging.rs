//! Pages: by `a`, by `b`, in instant mode, of lists and histories. Whatever the limits and filters,
//! they say the same as the whole.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{Client, TestDesk, client::Reply, random::Random};

const PATIENCE: Duration = Duration::from_secs(60);
const FILTERS: [&str; 7] =
    ["", "AddSession", "Message", "DelSession", "AddSession,Message", "message;delsession", "AddSession，DelSession"];

/// Does something at random to the desk's sessions; refusals are part of it.
async fn happen(random: &mut Random, web: &Client, agents: &[Client], sessions: usize) {
    let session = format!("s{}", random.below(sessions));
    let (agent, other) = (random.pick(agents).clone(), ["ann", "bob"][random.below(2)]);
    match random.below(12) {
        0..2 => drop(web.open_to(&session, other).await),
        2 => drop(agent.transfer(&session, other).await),
        3 => drop(agent.session("close", &session).await),
        4..7 => drop(agent.send(&session, "from the agent").await),
        _ => drop(web.send(&session, "from the customer").await),
    }
}

/// All pages of `a` mode from `after` on, each with its own limit.
async fn pages_after(random: &mut Random, client: &Client, types: &str, mut after: i64) -> (Vec<Value>, i64) {
    let mut events = Vec::new();
    loop {
        let limit = random.below(12) + 1;
        let page = client.query(&format!("a={after}&wait=0&limit={limit}&t={types}")).await;
        check_page(&page, limit);
        assert!(page.next() >= after);
        assert!(page.versions().iter().all(|version| *version > after && *version <= page.next()));
        after = page.next();
        events.extend(page.events());
        if !page.more() {
            return (events, after);
        }
    }
}

/// All pages of `b` mode, put in order.
async fn pages_before(random: &mut Random, client: &Client, types: &str, mut before: String) -> Vec<Value> {
    let mut events = Vec::new();
    loop {
        let limit = random.below(12) + 1;
        let page = client.query(&format!("b={before}&limit={limit}&t={types}")).await;
        check_page(&page, limit);
        before = page.next().to_string();
        events.splice(0..0, page.events());
        if !page.more() {
            return events;
        }
    }
}

fn check_page(page: &Reply, limit: usize) {
    let versions = page.versions();
    assert!(versions.len() <= limit);
    assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
    assert!(!page.more() || versions.len() == limit, "more, but not full");
}

fn filtered(all: &[Value], types: &str) -> Vec<Value> {
    let types = types.to_lowercase();
    let wanted =
        |event: &&Value| types.is_empty() || types.contains(&event["e"].as_str().expect("a type").to_lowercase());
    all.iter().filter(wanted).cloned().collect()
}

#[tokio::test]
async fn pages_by_a_and_by_b_are_the_whole_feed() {
    let mut random = Random::of("pages_by_a_and_by_b_are_the_whole_feed");
    let desk = TestDesk::with(2, &[]).await;
    let agents = [desk.agent("ann").await, desk.agent("bob").await];
    let web = desk.gateway("web").await;
    for round in 0..4 {
        for _ in 0..50 {
            happen(&mut random, &web, &agents, 6 + round).await;
        }
        for client in agents.iter().chain([&web]) {
            let client = client.at(&desk.base(random.below(2)));
            let all = client.feed().await;
            let head = client.query("a=now&wait=0").await.next();
            for types in FILTERS {
                let wanted = filtered(&all, types);
                let (events, next) = pages_after(&mut random, &client, types, 0).await;
                assert_eq!((events, next), (wanted.clone(), head), "{types}");
                let from = if random.chance(50) { "now".to_owned() } else { (head + 1).to_string() };
                assert_eq!(pages_before(&mut random, &client, types, from).await, wanted, "{types}");
                // From the middle, both ways.
                let middle = i64::try_from(random.below(200)).expect("small").min(head);
                let (newer, _) = pages_after(&mut random, &client, types, middle).await;
                let mut both = pages_before(&mut random, &client, types, (middle + 1).to_string()).await;
                both.extend(newer);
                assert_eq!(both, wanted, "{types} around {middle}");
            }
        }
    }
}

#[tokio::test]
async fn readers_of_a_growing_feed_miss_nothing() {
    let mut random = Random::of("readers_of_a_growing_feed_miss_nothing");
    let desk = TestDesk::with(2, &[]).await;
    let agents = [desk.agent("ann").await, desk.agent("bob").await];
    let web = desk.gateway("web").await;
    web.open_to("last", "ann").await.ok();
    let readers: Vec<_> = FILTERS
        .into_iter()
        .filter(|types| types.is_empty() || types.to_lowercase().contains("message"))
        .flat_map(|types| [(types, 0), (types, 1)])
        .map(|(types, replica)| {
            let (ann, mut random) = (agents[0].at(&desk.base(replica)), Random::of(types));
            tokio::spawn(async move {
                let (mut after, mut events) = (0, Vec::new());
                loop {
                    let (limit, wait) = (random.below(5) + 1, random.below(2) * 10);
                    let page = ann.query(&format!("a={after}&limit={limit}&wait={wait}&t={types}")).await;
                    after = page.next();
                    events.extend(page.events());
                    if page.contents().iter().any(|content| content == "the end") {
                        return (types, events);
                    }
                }
            })
        })
        .collect();
    for _ in 0..250 {
        let replica = random.below(2);
        let at = |client: &Client| client.at(&desk.base(replica));
        happen(&mut random, &at(&web), &[at(&agents[0]), at(&agents[1])], 8).await;
    }
    web.send("last", "the end").await.ok();
    let all = agents[0].feed().await;
    for reader in readers {
        let (types, events) = timeout(PATIENCE, reader).await.expect("it reaches the end").expect("no panic");
        assert_eq!(events, filtered(&all, types), "{types}");
    }
    for types in FILTERS {
        assert_eq!(pages_before(&mut random, &agents[0], types, "now".to_owned()).await, filtered(&all, types));
    }
}

#[tokio::test]
async fn instant_pages_with_acknowledgements_give_everything() {
    let mut random = Random::of("instant_pages_with_acknowledgements_give_everything");
    let desk = TestDesk::start().await;
    let agents = [desk.agent("ann").await, desk.agent("bob").await];
    let web = desk.gateway("web").await;
    let (mut given, mut acked) = (BTreeSet::new(), BTreeSet::<i64>::new());
    for _ in 0..40 {
        happen(&mut random, &web, &agents, 6).await;
        let page = agents[0].query(&format!("wait=0&limit={}", random.below(6) + 1)).await;
        assert!(page.versions().iter().all(|version| !acked.contains(version)), "acknowledged before");
        given.extend(page.versions());
        let acks: Vec<i64> = page.versions().into_iter().filter(|_| random.chance(60)).collect();
        let list = acks.iter().map(ToString::to_string).collect::<Vec<_>>().join([",", ";", "，"][random.below(3)]);
        agents[0].query_post(json!({"a": "now", "wait": 0, "c": list})).await.ok();
        acked.extend(acks);
    }
    loop {
        let page = agents[0].query("wait=0&limit=7").await;
        given.extend(page.versions());
        let list = page.versions().iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        agents[0].query(&format!("a=0&wait=0&limit=1&c={list}")).await.ok();
        if !page.more() {
            break;
        }
    }
    let all: Vec<Value> = agents[0].feed().await;
    assert!(all.iter().map(|event| event["Version"].as_i64().expect("a version")).eq(given), "all, each in the end");
    assert_eq!(agents[0].query("wait=0").await.events().len(), 0);
}

#[tokio::test]
async fn a_sessions_history_is_paged_from_its_end() {
    let desk = TestDesk::start().await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    web.open_to("s2", "ann").await.ok();
    for number in 1..=25 {
        if number % 5 == 0 { &ann } else { &web }
            .send_id("s1", &format!("m{number}"), &format!("text {number}"))
            .await
            .ok();
        web.send_id("s2", &format!("other{number}"), "other").await.ok();
    }
    let ids = |page: &Reply| -> Vec<String> {
        page.ok()
            .as_array()
            .expect("a list")
            .iter()
            .map(|message| message["Id"].as_str().expect("an id").to_owned())
            .collect()
    };
    let expected: Vec<String> = (1..=25).map(|number| format!("m{number}")).collect();
    for client in [&ann, &web, &desk.admin] {
        let mut before = String::new();
        let mut whole: Vec<String> = Vec::new();
        loop {
            let page = client.get(&format!("/session/history?SessionId=s1&limit=7{before}")).await;
            whole.splice(0..0, ids(&page));
            if !page.more() {
                break;
            }
            before = format!("&b={}", page.header("feed-next"));
        }
        assert_eq!(whole, expected);
    }
    let page = ann.get("/session/history?SessionId=s1").await;
    let entry = page.ok()[4].clone();
    let fields: Vec<&String> = entry.as_object().expect("an object").keys().collect();
    assert_eq!(fields, ["Content", "ContentType", "CreateTime", "Id", "Type"]);
    assert_eq!((&entry["Type"], &entry["Content"]), (&json!(1), &json!("text 5")));
    // By version, as the events showed it.
    let version =
        ann.feed().await.iter().find(|event| event["Data"]["Message"][0]["Id"] == "m10").expect("m10")["Version"]
            .clone();
    assert_eq!(ids(&ann.get(&format!("/session/history?SessionId=s1&b={version}&limit=2")).await), ["m8", "m9"]);
    for (query, code) in [
        ("", 40000),
        ("SessionId=", 40000),
        ("SessionId=nosuch", 40401),
        ("SessionId=s1&limit=0", 40000),
        ("SessionId=s1&limit=1001", 40000),
        ("SessionId=s1&b=nosuch", 40000),
        ("SessionId=s1&b=other1", 40000),
    ] {
        assert_eq!(ann.get(&format!("/session/history?{query}")).await.code(), code, "{query}");
    }
    ann.session("close", "s1").await.ok();
    assert_eq!(ids(&ann.get("/session/history?SessionId=s1&limit=1000").await), expected, "after the end, too");
}

#[tokio::test]
async fn sessions_are_listed_newest_first_for_whom_they_concern() {
    let desk = TestDesk::start().await;
    let (ann, bob) = (desk.agent("ann").await, desk.agent("bob").await);
    let (web, other) = (desk.gateway("web").await, desk.gateway("other").await);
    for number in 1..=12 {
        let gateway = if number % 4 == 0 { &other } else { &web };
        gateway.open_to(&format!("s{number}"), if number % 3 == 0 { "bob" } else { "ann" }).await.ok();
    }
    web.send_id("s1", "m1", "hello").await.ok();
    web.send_id("s1", "m2", "last").await.ok();
    ann.session("close", "s2").await.ok();
    for id in ["ann", "bob"] {
        desk.admin.post("/admin/agent", json!({"Id": id, "Status": "away"})).await.ok();
    }
    bob.session("release", "s3").await.ok();
    web.open("s13").await.ok();
    let ids = |page: &Reply| -> Vec<u64> {
        let line = |line: &Value| line["SessionId"].as_str().expect("an id")[1..].parse().expect("a number");
        page.ok().as_array().expect("a list").iter().map(line).collect()
    };
    let whole = async |client: &Client, query: &str, limit: usize| {
        let (mut all, mut before) = (Vec::new(), String::new());
        loop {
            let page = client.get(&format!("/session/list?limit={limit}{query}{before}")).await;
            all.extend(ids(&page));
            if !page.more() {
                return all;
            }
            before = format!("&b={}", page.header("feed-next"));
        }
    };
    for limit in [1, 2, 5, 13, 1000] {
        assert_eq!(whole(&ann, "", limit).await, [11, 10, 8, 7, 5, 4, 2, 1]);
        assert_eq!(whole(&ann, "&status=closed", limit).await, [2]);
        assert_eq!(whole(&ann, "&status=queued", limit).await, [0_u64; 0]);
        assert_eq!(whole(&bob, "&status=open", limit).await, [12, 9, 6]);
        assert_eq!(whole(&other, "", limit).await, [12, 8, 4]);
        assert_eq!(whole(&web, "&status=queued", limit).await, [13, 3]);
        assert_eq!(whole(&desk.admin, "", limit).await, (1..=13).rev().collect::<Vec<u64>>());
        assert_eq!(whole(&desk.admin, "&status=open", limit).await, [12, 11, 10, 9, 8, 7, 6, 5, 4, 1]);
    }
    let line = ann.get("/session/list?b=s2").await.ok()[0].clone();
    for field in [
        "SessionId",
        "SessionType",
        "Status",
        "FromId",
        "FromName",
        "FromImage",
        "ToId",
        "ToName",
        "OpenTime",
        "CloseTime",
        "LastMessage",
    ] {
        assert!(line.get(field).is_some(), "{field}: {line}");
    }
    assert_eq!(
        (&line["SessionId"], &line["ToName"], &line["CloseTime"]),
        (&json!("s1"), &json!("Agent ann"), &Value::Null)
    );
    assert_eq!((&line["LastMessage"]["Id"], &line["LastMessage"]["Content"]), (&json!("m2"), &json!("last")));
    let closed = ann.get("/session/list?status=closed").await.ok()[0].clone();
    assert!(closed["CloseTime"].is_string() && closed["LastMessage"].is_null(), "{closed}");
    for query in ["status=nosuch", "status=Open", "limit=0", "limit=1001", "limit=x", "b=nosuch", "b=%00"] {
        assert_eq!(ann.get(&format!("/session/list?{query}")).await.code(), 40000, "{query}");
    }
}
