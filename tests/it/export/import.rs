//! `deskfeed import`: all of it or nothing, into an empty store, where everybody goes on.

use std::{fs, process::Stdio};

use serde_json::json;
use sqlx::Executor;
use tokio::time::Instant;

use super::world::{World, connect, exported, import, imported, path, rows, split_header, until_a_command_waits};
use crate::support::{
    Client, TestDesk, postgres,
    process::{self, command},
};

/// Nothing at all, as after the migrations.
fn assert_empty(rows: &[(&str, i64)]) {
    for (table, count) in rows {
        assert_eq!(*count, i64::from(*table == "store"), "{table}");
    }
}

#[tokio::test]
async fn a_round_trip_gives_the_same_bytes() {
    let world = World::start("round-trip").await;
    world.fill().await;
    world.rest().await;
    let file = world.export("there.ndjson").await;
    let url = postgres::new_database().await;
    imported(&url, &file).await;
    let (there, back) = (fs::read(&file).expect("the file"), exported(&url, &world.folder.file("back.ndjson")).await);
    let ((there_header, there), (back_header, back)) = (split_header(&there), split_header(&back));
    assert!(there == back);
    let changed: Vec<&str> = there_header
        .as_object()
        .expect("an object")
        .keys()
        .filter(|member| there_header[member.as_str()] != back_header[member.as_str()])
        .map(String::as_str)
        .collect();
    assert_eq!(changed, ["epoch", "made_at", "sha256"]);

    // An empty store makes the trip too.
    let (none, still_none) = (postgres::new_database().await, postgres::new_database().await);
    let file = world.folder.file("none.ndjson");
    let there = exported(&none, &file).await;
    imported(&still_none, &file).await;
    assert_empty(&rows(&still_none).await);
    let back = exported(&still_none, &world.folder.file("none-back.ndjson")).await;
    assert!(split_header(&there).1 == split_header(&back).1);
}

/// What somebody reads who was at `version`.
async fn reads(client: &Client, session: &str, version: i64) -> Vec<(String, String, String)> {
    let mut answers = Vec::new();
    for path in [
        format!("/message/query?a={version}&wait=0&limit=1000"),
        "/message/query?a=0&wait=0&limit=7".to_owned(),
        "/message/query?a=0&wait=0&t=AddSession,DelSession".to_owned(),
        format!("/message/query?b={version}&limit=5"),
        "/message/query?b=now&limit=1000".to_owned(),
        "/message/query?wait=0&limit=1000".to_owned(),
        "/session/list?status=open".to_owned(),
        "/session/list?status=closed".to_owned(),
        format!("/session/history?SessionId={session}&limit=1000"),
    ] {
        let answer = client.get(&path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        let next = answer.headers.get("feed-next").map_or("", |next| next.to_str().expect("a number"));
        answers.push((path, answer.text.clone(), next.to_owned()));
    }
    answers
}

#[tokio::test]
async fn readers_and_writers_go_on_where_they_were() {
    let world = World::start("go-on").await;
    let old_epoch = world.ann.query("b=now").await.header("feed-epoch").to_owned();
    let head = world.ann.query("a=0&wait=0&limit=1000").await.next();
    let first_answer = world.web.send_id("open", "id 1", super::CONTENTS[1]).await.ok();
    let closed = world.ann.session("close", "closed").await.ok();
    let mut before = Vec::new();
    let sessions = ["open", "moved", "queued"];
    for (client, session) in [&world.ann, &world.bob, &world.web].into_iter().zip(sessions) {
        before.push(reads(client, session, head / 2).await);
    }
    let file = world.export("store.ndjson").await;

    // A service that runs on the empty store meanwhile has it all at once.
    let other = TestDesk::start().await;
    imported(&other.url, &file).await;
    let base = other.base(0);
    let (ann, bob, web) = (world.ann.at(&base), world.bob.at(&base), world.web.at(&base));
    for (client, (session, before)) in [&ann, &bob, &web].into_iter().zip(sessions.into_iter().zip(&before)) {
        assert_eq!(&reads(client, session, head / 2).await, before);
    }

    // It is another history from here on, and says so to whoever asks. (The service looks now and then.)
    let until = Instant::now() + process::START;
    let answer = loop {
        let answer = ann.query(&format!("a={head}&wait=0")).await;
        assert_eq!((answer.text.as_str(), answer.next()), ("[]", head));
        if answer.header("feed-epoch") != old_epoch {
            break answer;
        }
        assert!(Instant::now() < until, "the history is the same");
    };
    let told = ann.query(&format!("a={head}&wait=0&epoch={old_epoch}")).await;
    assert_eq!((told.code(), told.json()["head"].as_i64()), (41001, Some(head)));
    assert_eq!(told.json()["epoch"], answer.header("feed-epoch"));
    // The first store went on: who followed it there is told too.
    let beyond = world.web.send("open", "after the export").await.ok()["Version"].as_i64().expect("a version");
    assert!(beyond > head);
    assert_eq!(ann.query(&format!("a={beyond}&wait=0")).await.code(), 41001);

    // What was done is known, and what is new follows it.
    assert_eq!(web.send_id("open", "id 1", super::CONTENTS[1]).await.ok(), first_answer);
    assert_eq!(web.send_id("open", "id 1", "other").await.code(), 40901);
    assert_eq!(ann.session("close", "closed").await.ok(), closed);
    assert_eq!(web.send("open", "next").await.ok()["Version"], head + 1);
    assert_eq!(ann.query(&format!("a={head}&wait=0")).await.versions(), [head + 1]);
    // The queue is served, and nothing's key is anything else's.
    bob.post("/agent/presence", json!({"Status": "online"})).await.ok();
    let until = Instant::now() + process::START;
    while !bob.feed().await.iter().any(|event| event["Data"]["SessionId"] == "queued") {
        assert!(Instant::now() < until, "the queued session is not assigned");
    }
    let cat = other.agent("cat").await;
    let gateway = other.gateway("mail").await;
    gateway.open_to("new", "cat").await.ok();
    assert_eq!(cat.feed().await.len(), 1);
    other.admin.post("/admin/agent", json!({"Id": "cat", "Name": "Another name"})).await.ok();
}

#[tokio::test]
async fn what_is_not_kept_stays_so() {
    let world = World::start("oldest").await;
    let mut sql = world.desk.sql().await;
    sql.execute("alter table events disable trigger all; delete from events where version <= 10; update store set oldest_version = 11")
        .await
        .expect("it is removed");
    let other = TestDesk::on(postgres::new_database().await, 1, &[]).await;
    imported(&other.url, &world.export("store.ndjson").await).await;
    let ann = world.ann.at(&other.base(0));
    let gone = ann.query("a=9&wait=0").await;
    assert_eq!((gone.code(), gone.json()["oldest"].as_i64()), (41000, Some(11)));
    assert!(ann.query("a=0&wait=0").await.versions()[0] >= 11);
}

#[tokio::test]
async fn an_import_that_is_killed_leaves_nothing() {
    let world = World::start("killed-import").await;
    world.fill().await;
    world.rest().await;
    let file = world.export("store.ndjson").await;
    let url = postgres::new_database().await;

    // It waits in the middle of the events: somebody else holds one of their versions.
    let mut sql = connect(&url).await;
    sql.execute(
        "begin; insert into events (version, created_at, session_key, feed_key, profile_key, author_key, message_seq, type, reason, message_type, content_type)
         values (700, now(), 1, 1, 0, 0, 0, 0, 0, 0, 0)",
    )
    .await
    .expect("an event");
    let arguments = ["import", "--database-url", &url, path(&file)];
    let mut child = command(&arguments).stderr(Stdio::null()).spawn().expect("the program runs");
    until_a_command_waits(&url).await;
    // A second import does not get between.
    let second = import(&url, &file).await;
    assert_ne!(second.code, Some(0));
    assert!(second.err.contains("other imports"), "{}", second.err);
    child.kill().await.expect("it is killed");
    sql.execute("rollback").await.expect("the version is free");
    assert_empty(&rows(&url).await);
    imported(&url, &file).await;
    assert_eq!(rows(&url).await, rows(&world.desk.url).await);
}

#[tokio::test]
async fn a_store_that_is_not_empty_is_left_alone() {
    let world = World::start("not-empty").await;
    world.rest().await;
    let file = world.export("store.ndjson").await;
    let before = rows(&world.desk.url).await;
    let refused = import(&world.desk.url, &file).await;
    assert_ne!(refused.code, Some(0));
    assert!(
        refused.err.contains("not empty: there are events, feeds") && refused.err.contains("new database"),
        "{}",
        refused.err
    );
    assert_eq!(rows(&world.desk.url).await, before);

    let url = postgres::new_database().await;
    assert_eq!(process::run(&["token", "--database-url", &url, "create", "--role", "admin"]).await.code, Some(0));
    let refused = import(&url, &file).await;
    assert!(refused.err.contains("there are tokens"), "{}", refused.err);

    let url = postgres::empty_database().await;
    let refused = import(&url, &file).await;
    assert_eq!(refused.code, Some(3));
    assert!(refused.err.contains("deskfeed migrate"), "{}", refused.err);
}

#[tokio::test]
async fn a_file_that_is_not_as_it_was_written_is_refused() {
    let world = World::start("damaged").await;
    world.fill().await;
    let whole = fs::read(world.export("whole.ndjson").await).expect("the file");
    let header = whole.len() - split_header(&whole).1.len();
    let last_line = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').expect("lines") + 1;
    let url = postgres::new_database().await;
    let file = world.folder.file("damaged.ndjson");
    let refused = async |bytes: &[u8], what: &str| {
        fs::write(&file, bytes).expect("it is written");
        let refused = import(&url, &file).await;
        assert_ne!(refused.code, Some(0), "{what}");
        assert!(refused.err.contains(what), "not {what:?}: {}", refused.err);
        assert_empty(&rows(&url).await);
    };

    for at in [header + 100, 1_500_000, last_line - 10] {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        let whole_lines = whole[..at].split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
        let sealed = whole_lines.filter(|line| line.starts_with(br#"{"kind":"seal","#)).count();
        refused(&flipped, &format!("damaged in chunk {}:", sealed + 1)).await;
    }
    for cut in [header, header + 5000, 1_500_000, last_line, whole.len() - 1] {
        refused(&whole[..cut], "cut off").await;
    }
    refused(&whole[..header / 2], "neither").await;
    refused(&[&whole, b"\n".as_slice()].concat(), "cut off").await;
    refused(&[&whole, &whole[last_line..]].concat(), "follows the last line").await;
    let chunk = whole.windows(15).position(|bytes| bytes == br#"{"kind":"seal","#.as_slice()).expect("a seal");
    let chunk = chunk + whole[chunk..].iter().position(|byte| *byte == b'\n').expect("a line") + 1;
    refused(&[&whole[..header], &whole[chunk..]].concat(), "damaged in chunk 1").await;
    refused(&[&whole[..chunk], &whole[header..]].concat(), "damaged in chunk 2").await;
    let mut renamed = whole.clone();
    renamed[header - 90] ^= 1;
    refused(&renamed, "header").await;
    refused(b"{\"table\":\"events\"}\n", "neither").await;
    refused(b"", "neither").await;
    let newer =
        String::from_utf8_lossy(&whole[..header]).replace("\"format\":1", "\"format\":2").replace("0.1.0", "7.8.9");
    refused(&[newer.as_bytes(), &whole[header..]].concat(), "use version 7.8.9 or newer").await;

    fs::write(&file, &whole).expect("it is written");
    imported(&url, &file).await;
}
