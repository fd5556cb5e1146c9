//! `deskfeed erase`: content becomes blank on every replica, in its place, and nothing else changes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::support::{
    Client, TestDesk,
    db_proxy::{Commit, DbProxy},
    postgres::{self, ERASER},
    process::{self, Ended},
};

/// What stands for an erased image (docs/api.md).
const NO_IMAGE: &str = "https://erased.invalid/";
/// Nothing that was erased may hold any of these.
const SECRETS: [&str; 3] = ["secret", "Mr Smith", "face.png"];

async fn erase_at(url: &str, arguments: &[&str]) -> Ended {
    let url = postgres::as_role(url, ERASER);
    process::run(&[&["erase", "--database-url", &url], arguments].concat()).await
}

/// Erases as the role of `deploy/roles.sql`; it must succeed.
async fn erase(desk: &TestDesk, arguments: &[&str]) -> String {
    let ended = erase_at(&desk.url, &[arguments, &["--yes"]].concat()).await;
    assert_eq!(ended.code, Some(0), "{} {}", ended.out, ended.err);
    ended.out
}

/// The record: session, what was asked (1 a session, 2 a customer) and its id, messages, who.
async fn record(desk: &TestDesk) -> Vec<(String, i16, String, i32, String)> {
    sqlx::query_as(
        "select s.session_id, e.asked, e.asked_id, e.messages, e.erased_by
         from erasures e join sessions s using (session_key) order by e.erasure",
    )
    .fetch_all(&mut desk.sql().await)
    .await
    .expect("the record")
}

fn line(session: &str, asked: i16, id: &str, messages: i32) -> (String, i16, String, i32, String) {
    (session.to_owned(), asked, id.to_owned(), messages, ERASER.to_owned())
}

/// Two replicas, two agents, two gateways; sessions of Mr Smith and of others, one of them queued.
struct World {
    desk: TestDesk,
    ann: Client,
    bob: Client,
    web: Client,
    app: Client,
}

impl World {
    async fn start() -> Self {
        let desk = TestDesk::with(2, &[]).await;
        let (ann, bob) = (desk.agent("ann").await, desk.agent("bob").await);
        let (web, app) = (desk.gateway("web").await, desk.gateway("app").await);
        let open = async |gateway: &Client, session: &str, customer: &str, to: Option<&str>| {
            let opened = json!({
                "SessionId": session, "FromId": customer, "FromName": "Mr Smith", "FromImage": "https://a.example/face.png", "ToId": to
            });
            gateway.post("/session/open", opened).await.ok();
        };
        open(&web, "s1", "smith", Some("ann")).await;
        open(&web, "other", "jones", Some("ann")).await;
        open(&app, "namesake", "smith", Some("bob")).await;
        web.send_id("s1", "m1", "a secret").await.ok();
        ann.send_id("s1", "m2", "your secret is safe").await.ok();
        let image = json!({"SessionId": "s1", "Id": "m3", "ContentType": 1, "Content": "https://a.example/secret.png"});
        web.post("/message/send", image).await.ok();
        web.send_id("other", "m4", "kept").await.ok();
        ann.transfer("s1", "bob").await.ok();
        app.send_id("namesake", "m5", "kept, too").await.ok();
        for agent in [&ann, &bob] {
            agent.post("/agent/presence", json!({"Status": "away"})).await.ok();
        }
        open(&web, "s2", "smith", None).await;
        web.send_id("s2", "m6", "a secret that nobody has read").await.ok();
        ann.query("c=3&wait=0").await.ok();
        Self { desk, ann, bob, web, app }
    }

    /// Everything that anybody can read of any replica: of the tails, which are warm, of the table, and the lists.
    async fn all(&self) -> Vec<(String, Value)> {
        let mut answers = Vec::new();
        for replica in 0..2 {
            for (name, reader) in [("ann", &self.ann), ("bob", &self.bob), ("web", &self.web), ("app", &self.app)] {
                let reader = reader.at(&self.desk.base(replica));
                for path in [
                    "/message/query?a=0&wait=9&limit=1000",
                    "/message/query?a=0&wait=0&limit=1000",
                    "/message/query?a=0&wait=0&t=Message",
                    "/message/query?b=now&limit=1000",
                    "/message/query?wait=0",
                    "/session/list",
                    "/session/history?SessionId=s1",
                    "/session/history?SessionId=other",
                ] {
                    answers.push((format!("{name} {replica} {path}"), reader.get(path).await.json()));
                }
            }
        }
        answers
    }
}

/// An answer with what an erasure of sessions blanks made blank.
fn blanked(answer: &Value, sessions: &[&str]) -> Value {
    match answer {
        Value::Array(items) => Value::Array(items.iter().map(|item| blanked(item, sessions)).collect()),
        Value::Object(members) if members.contains_key("Data") => {
            let mut event = answer.clone();
            event["Data"] = blanked(&event["Data"], sessions);
            event
        }
        // An event's data, or a line of a list.
        Value::Object(members) if members.get("SessionId").is_some_and(|id| sessions.iter().any(|s| id == s)) => {
            let mut data = answer.clone();
            // From is the agent on what agents write; the customer is To then.
            let customer = if data["ToId"] == "smith" { "To" } else { "From" };
            for name in [format!("{customer}Name"), format!("{customer}Image")] {
                data.as_object_mut().expect("an object").remove(&name);
            }
            for member in ["Message", "LastMessage"] {
                if let Some(messages) = data.get_mut(member) {
                    *messages = without_content(messages);
                }
            }
            data
        }
        other => other.clone(),
    }
}

/// Messages without what was said in them.
fn without_content(messages: &Value) -> Value {
    match messages {
        Value::Array(items) => Value::Array(items.iter().map(without_content).collect()),
        Value::Object(members) if members.contains_key("ContentType") => {
            let mut message = messages.clone();
            message["Content"] = if message["ContentType"] == "1" { json!(NO_IMAGE) } else { json!("") };
            message
        }
        other => other.clone(),
    }
}

/// Absent and null are the same (wire contract).
fn without_nulls(answer: &Value) -> Value {
    match answer {
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        Value::Object(members) => members
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.clone(), without_nulls(value)))
            .collect::<serde_json::Map<String, Value>>()
            .into(),
        other => other.clone(),
    }
}

#[tokio::test]
async fn every_replica_shows_what_is_erased_as_blank_and_nothing_else_changes() {
    let world = World::start().await;
    let before = world.all().await;
    assert!(SECRETS.iter().all(|secret| before.iter().any(|(_, answer)| answer.to_string().contains(secret))));
    assert!(before.iter().all(|(path, answer)| answer.is_array() || path.contains("history")), "{before:?}");
    let status = async || {
        let status = world.ann.get("/feed/status").await.ok();
        ["Head", "Oldest", "Epoch", "Unacked"].map(|member| status[member].clone())
    };
    let status_before = status().await;

    let said = erase(&world.desk, &["--session", "s1"]).await;
    assert!(said.contains("1 sessions (by gateway: web: 1), 3 messages to blank"), "{said}");
    assert!(said.contains("Blanked 3 messages"), "{said}");
    for ((path, before), (_, after)) in before.iter().zip(world.all().await) {
        let expected = match path {
            path if path.contains("SessionId=s1") => without_content(before),
            _ => blanked(before, &["s1"]),
        };
        assert_eq!(without_nulls(&after), without_nulls(&expected), "{path}");
    }
    assert_eq!(status().await, status_before);
    assert_eq!(record(&world.desk).await, [line("s1", 1, "s1", 3)]);

    // What comes afterwards is not erased, and comes with no name; the gateway still knows whose it is.
    let head = world.bob.query("a=0&wait=0&limit=1000").await.next();
    world.web.at(&world.desk.base(1)).send("s1", "news").await.ok();
    for replica in 0..2 {
        let news = world.bob.at(&world.desk.base(replica)).query(&format!("a={head}&wait=10")).await;
        assert_eq!(news.contents(), ["news"]);
        let data = &news.event(0)["Data"];
        assert_eq!((&data["FromId"], &data["FromName"]), (&json!("smith"), &Value::Null));
    }
    world.desk.stop().await;
}

#[tokio::test]
async fn a_customer_is_erased_in_all_sessions_or_in_those_of_one_gateway() {
    let world = World::start().await;
    let of_web = erase(&world.desk, &["--customer", "smith", "--gateway", "web"]).await;
    assert!(of_web.contains("2 sessions (by gateway: web: 2), 4 messages to blank"), "{of_web}");
    assert!(world.app.query("a=0&wait=0").await.text.contains("Mr Smith"), "another gateway's customer of that id");

    // The queued session is assigned, and comes with nothing but blanks.
    let head = world.bob.query("a=0&wait=0&limit=1000").await.next();
    world.bob.post("/agent/presence", json!({"Status": "online"})).await.ok();
    let assigned = world.bob.query(&format!("a={head}&wait=10")).await;
    assert_eq!(assigned.types(), ["AddSession"]);
    let data = assigned.event(0)["Data"].clone();
    assert_eq!((&data["FromName"], &data["Message"][0]["Content"]), (&Value::Null, &json!("")));
    assert_eq!((&data["FromId"], &data["Message"][0]["Id"]), (&json!("smith"), &json!("m6")));

    let rest = erase(&world.desk, &["--customer", "smith"]).await;
    assert!(rest.contains("3 sessions (by gateway: app: 1, web: 2), 1 messages to blank"), "{rest}");
    let everything: String = world.all().await.iter().map(|(_, answer)| answer.to_string()).collect();
    assert!(!everything.contains("secret"));
    assert!(everything.contains("kept") && !everything.contains("kept, too"), "others are left alone");
    let recorded = record(&world.desk).await;
    assert_eq!(recorded[..2], [line("s1", 2, "smith", 3), line("s2", 2, "smith", 1)]);
    assert_eq!(recorded[2..], [("s1", 0), ("namesake", 1), ("s2", 0)].map(|(id, count)| line(id, 2, "smith", count)));

    for unknown in
        [vec!["--session", "smith"], vec!["--customer", "s1"], vec!["--customer", "jones", "--gateway", "app"]]
    {
        let ended = erase_at(&world.desk.url, &[&unknown[..], &["--yes"]].concat()).await;
        assert_ne!(ended.code, Some(0));
        assert!(ended.err.contains("there is no such session"), "{unknown:?}: {}", ended.err);
    }
    world.desk.stop().await;
}

#[tokio::test]
async fn nothing_is_erased_without_a_yes() {
    let world = World::start().await;
    let asked = erase_at(&world.desk.url, &["--session", "s1"]).await;
    assert_ne!(asked.code, Some(0));
    assert!(asked.out.contains("3 messages to blank") && asked.err.contains("--yes"), "{} {}", asked.out, asked.err);
    for wrong in [vec![], vec!["--session", "s1", "--customer", "smith"], vec!["--session", "s1", "--gateway", "web"]] {
        assert_ne!(erase_at(&world.desk.url, &[&wrong[..], &["--yes"]].concat()).await.code, Some(0), "{wrong:?}");
    }
    // Who may not, does not.
    for role in [postgres::APPLICATION, postgres::READONLY, postgres::MONITOR] {
        let url = postgres::as_role(&world.desk.url, role);
        let ended = process::run(&["erase", "--database-url", &url, "--session", "s1", "--yes"]).await;
        assert_ne!(ended.code, Some(0), "{role}");
    }
    assert_eq!(record(&world.desk).await, []);
    assert!(world.ann.query("a=0&wait=0").await.text.contains("a secret"));
    world.desk.stop().await;
}

/// A session with `count` messages, in batches.
async fn fill(web: &Client, session: &str, count: usize) {
    web.open_to(session, "ann").await.ok();
    let numbers: Vec<usize> = (0..count).collect();
    for batch in numbers.chunks(1000) {
        let messages: Vec<Value> = batch
            .iter()
            .map(|number| json!({"SessionId": session, "Id": format!("{session}-{number}"), "Content": format!("secret {number}")}))
            .collect();
        web.post("/message/send", json!(messages)).await.ok();
    }
}

/// All texts of Ann's feed, from the tail where that may be told from.
async fn texts(ann: &Client) -> Vec<String> {
    texts_by(ann, "wait=9").await
}

/// All texts of Ann's feed; who does not wait is told what the table has, but for pages with more behind them.
async fn texts_by(ann: &Client, wait: &str) -> Vec<String> {
    let (mut texts, mut after) = (Vec::new(), 0);
    loop {
        let page = ann.query(&format!("a={after}&{wait}&limit=1000")).await;
        texts.extend(page.contents());
        after = page.next();
        if !page.more() {
            return texts;
        }
    }
}

#[tokio::test]
async fn an_erasure_that_was_ended_early_goes_on_where_it_was() {
    let desk = TestDesk::start().await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    fill(&web, "long", 1200).await;
    fill(&web, "short", 3).await;
    let proxy = DbProxy::before(&desk.url).await;

    // Before its first commit: nothing has happened.
    proxy.at_next_commit(Commit::IsCut);
    let cut = erase_at(&proxy.url, &["--session", "long", "--yes"]).await;
    assert_ne!(cut.code, Some(0));
    assert!(cut.err.contains("when 0 messages were blank; run the same command again"), "{}", cut.err);
    assert_eq!(record(&desk).await, []);

    // After it: a part is blank, and there is a record of just that part.
    proxy.at_next_commit(Commit::AnswerIsCut);
    assert_ne!(erase_at(&proxy.url, &["--session", "long", "--yes"]).await.code, Some(0));
    assert_eq!(record(&desk).await, [line("long", 1, "long", 500)]);
    // The command that would have waited until every replica shows it has ended; its notification is there.
    let until = Instant::now() + Duration::from_secs(30);
    let half = loop {
        let half = texts_by(&ann, "wait=0").await;
        if half[..500].iter().all(String::is_empty) {
            break half;
        }
        assert!(Instant::now() < until, "what is blank in the table is not shown so");
    };
    assert!(half[500..].iter().all(|text| text.starts_with("secret")));

    let said = erase(&desk, &["--session", "long"]).await;
    assert!(said.contains("700 messages to blank"), "{said}");
    assert_eq!(
        record(&desk).await,
        [line("long", 1, "long", 500), line("long", 1, "long", 500), line("long", 1, "long", 200)]
    );
    let whole = texts(&ann).await;
    assert_eq!(whole.len(), 1203);
    assert!(whole[..1200].iter().all(String::is_empty) && whole[1200..] == ["secret 0", "secret 1", "secret 2"]);

    // Once more changes nothing, and is on record.
    let again = erase(&desk, &["--session", "long"]).await;
    assert!(again.contains("0 messages to blank"), "{again}");
    assert_eq!(texts(&ann).await, whole);
    assert_eq!(record(&desk).await[3..], [line("long", 1, "long", 0)]);
    desk.stop().await;
}

#[tokio::test]
async fn what_came_before_the_command_is_blank_while_more_comes() {
    let desk = TestDesk::with(2, &[]).await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    fill(&web, "busy", 700).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let writers: Vec<_> = (0..2)
        .map(|replica| {
            let (web, stop) = (web.at(&desk.base(replica)), stop.clone());
            tokio::spawn(async move {
                let mut sent = Vec::new();
                while !stop.is_cancelled() {
                    let text = format!("news {replica} {}", sent.len());
                    web.send("busy", &text).await.ok();
                    sent.push(text);
                }
                sent
            })
        })
        .collect();
    let parked = tokio::spawn({
        // Reads all the time, of one replica, from the tail.
        let (ann, stop) = (ann.at(&desk.base(1)), stop.clone());
        async move {
            let (mut versions, mut after) = (Vec::new(), 0);
            while !stop.is_cancelled() {
                let page = ann.query(&format!("a={after}&wait=1&limit=1000")).await;
                versions.extend(page.versions());
                after = page.next();
            }
            versions
        }
    });
    let until = tokio::time::Instant::now() + process::START;
    while texts(&ann).await.len() < 750 {
        assert!(tokio::time::Instant::now() < until, "nothing is sent");
    }

    let before = texts(&ann).await.len();
    erase(&desk, &["--session", "busy"]).await;
    for replica in 0..2 {
        let shown = texts(&ann.at(&desk.base(replica))).await;
        assert!(shown[..before].iter().all(String::is_empty), "what came before is blank on replica {replica}");
        let first = shown.iter().position(|text| !text.is_empty()).expect("it goes on afterwards");
        assert!(shown[first..].iter().all(|text| text.starts_with("news")), "all that came later is kept");
    }
    stop.cancel();
    let mut sent = 0;
    for writer in writers {
        sent += writer.await.expect("no panic").len();
    }
    assert_eq!(texts_by(&ann, "wait=0").await.len(), 700 + sent, "nothing is lost, nothing new is made");
    let versions = parked.await.expect("no panic");
    assert!(versions.len() > 700 && versions.windows(2).all(|pair| pair[0] < pair[1]), "each once, in order");
    desk.stop().await;
}

#[tokio::test]
async fn a_repeated_id_gets_its_first_answer_when_the_message_is_erased() {
    let desk = TestDesk::with(2, &[]).await;
    let (_ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    let uuid = "0190f5fe-7a3c-7cc1-9f2b-1f2e3d4c5b6a";
    let (first, second) = (web.send_id("s1", "m1", "text").await.ok(), web.send_id("s1", uuid, "text").await.ok());
    web.send_id("s1", "empty", "").await.ok();
    erase(&desk, &["--session", "s1"]).await;
    web.send_id("s1", "later", "").await.ok();
    for replica in 0..2 {
        let web = web.at(&desk.base(replica));
        assert_eq!(web.send_id("s1", "m1", "text").await.ok(), first);
        assert_eq!(web.send_id("s1", uuid, "text").await.ok(), second);
        // What was always empty, and is not erased, is told apart.
        assert_eq!(web.send_id("s1", "later", "").await.status, 200);
        assert_eq!(web.send_id("s1", "later", "text").await.code(), 40901);
    }
    let history = web.get("/session/history?SessionId=s1").await.ok();
    assert_eq!(history.as_array().expect("messages").len(), 4, "nothing is stored twice: {history}");
    desk.stop().await;
}

/// A replica that has lost the database must not tell from its memory what the others show as blank.
#[tokio::test]
async fn a_replica_that_is_cut_off_shows_nothing_that_was_erased() {
    use crate::support::{
        db_proxy::Mode,
        desk::{base, start_replica},
    };
    let desk = TestDesk::start().await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    web.send("s1", "a secret").await.ok();
    let proxy = DbProxy::before(&desk.url).await;
    let cut_off = start_replica(&proxy.url, &[]).await;
    let there = ann.at(&base(&cut_off));
    assert_eq!(there.query("a=2&wait=0").await.contents(), ["a secret"]);
    assert_eq!(there.query("a=2&wait=1").await.contents(), ["a secret"], "of the tail");

    proxy.set(Mode::Blackhole);
    assert_eq!(there.query("a=2&wait=1").await.contents(), ["a secret"], "for a moment it goes on");
    erase(&desk, &["--session", "s1"]).await;
    let refused = there.query("a=2&wait=1").await;
    assert_eq!(refused.code(), 50300);
    proxy.set(Mode::Pass);
    let until = tokio::time::Instant::now() + process::START;
    loop {
        let answer = there.query("a=2&wait=1").await;
        if answer.status == 200 {
            assert_eq!(answer.contents(), [""]);
            break;
        }
        assert!(tokio::time::Instant::now() < until, "it never comes back");
    }
    cut_off.stop().await;
    desk.stop().await;
}

#[tokio::test]
async fn the_eraser_can_blank_and_nothing_more() {
    let world = World::start().await;
    let mut eraser = PgConnection::connect(&postgres::as_role(&world.desk.url, ERASER)).await.expect("it gets in");
    let forged = sqlx::raw_sql("update erasable set content = 'never said'").execute(&mut eraser).await;
    assert!(forged.expect_err("it is refused").to_string().contains("is append-only"));
    eraser.close().await.expect("it closes");
    world.desk.stop().await;
}
