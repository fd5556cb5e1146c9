//! `deskfeed export`: one moment of the whole store, as a file that can be checked and continued.

mod import;
pub mod world;

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt, process::Stdio};

use deskfeed::store::archive::tables::{NOT_COPIED, TABLES};
use serde_json::{Value, json};
use sqlx::Executor;

use self::world::{
    CONTENTS, World, connect, export, exported, imported, lines, path, split_header, until_a_command_waits,
};
use crate::support::{
    postgres,
    postgres::ANOTHER_HISTORY,
    process::{self, command},
};

#[tokio::test]
async fn every_table_and_column_is_exported() {
    let url = postgres::new_database().await;
    // Parts of a table that is in parts come with the whole.
    let there: Vec<(String, String)> = sqlx::query_as(
        "select c.relname, a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid
         where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
           and a.attnum > 0 and not a.attisdropped and c.relname <> '_sqlx_migrations'",
    )
    .fetch_all(&mut connect(&url).await)
    .await
    .expect("the catalog");
    let there: BTreeSet<(&str, &str)> = there.iter().map(|(table, column)| (&**table, &**column)).collect();
    let copied = TABLES.iter().flat_map(|table| table.columns.iter().map(|column| (table.name, column.name)));
    assert_eq!(copied.chain(NOT_COPIED).collect::<BTreeSet<_>>(), there);
}

#[tokio::test]
async fn an_export_is_lines_that_anybody_can_read_and_check() {
    let world = World::start("lines").await;
    let epoch = world.ann.query("b=now").await.header("feed-epoch").to_owned();
    world.rest().await;
    let file = world.export("store.ndjson").await;
    assert!(!world.folder.file("store.ndjson.partial").exists());
    assert_eq!(fs::metadata(&file).expect("the file").permissions().mode() & 0o777, 0o600, "not for everybody");
    let bytes = fs::read(&file).expect("the file");
    let all = lines(&bytes);

    assert_eq!(
        (&all[0]["kind"], &all[0]["format"], &all[0]["holds"], &all[0]["epoch"]),
        (&json!("header"), &json!(1), &json!("store"), &json!(epoch))
    );
    let events: Vec<&Value> = all.iter().filter(|line| line["table"] == "events").collect();
    let versions: Vec<i64> = events.iter().map(|event| event["version"].as_i64().expect("a version")).collect();
    let head = i64::try_from(events.len()).expect("few");
    assert_eq!(versions, (1..=head).collect::<Vec<i64>>());
    for content in CONTENTS {
        let held = events.iter().filter(|event| event["content"] == content).count();
        assert_eq!(held, 2, "the customer's and the agent's: {content:?}");
    }
    let end = all.last().expect("lines");
    assert_eq!((&end["kind"], &end["head"], &end["oldest"]), (&json!("end"), &json!(head), &json!(1)));
    for (table, count) in world::rows(&world.desk.url).await {
        assert_eq!(end["counts"][table], count, "{table}");
        assert!(count > 0, "the world lacks {table}");
    }
    for secret in ["dfk_agent_", "dfk_gateway_", "dfk_admin_"] {
        assert!(!String::from_utf8_lossy(&bytes).contains(secret), "tokens are hashes");
    }

    // With nothing but what every machine has.
    let check = "tail -n +2 \"$1\" | head -n -1 | sha256sum";
    let sum =
        tokio::process::Command::new("sh").args(["-c", check, "sh", path(&file)]).output().await.expect("a shell");
    let sum = String::from_utf8(sum.stdout).expect("text");
    assert_eq!(sum.split_whitespace().next(), end["sha256"].as_str());

    // Without --out it goes to standard output, and only the header can differ.
    let piped = process::run(&["export", "--database-url", &world.desk.url]).await;
    assert_eq!(piped.code, Some(0), "{}", piped.err);
    assert_eq!(split_header(piped.out.as_bytes()).1, split_header(&bytes).1);
}

#[tokio::test]
async fn an_export_is_one_moment_while_the_service_writes() {
    let world = World::start("moment").await;
    world.ann.post("/agent/presence", json!({"Status": "online"})).await.ok();
    let stop = tokio_util::sync::CancellationToken::new();
    let writer = tokio::spawn({
        let (web, ann, stop) = (world.web.clone(), world.ann.clone(), stop.clone());
        async move {
            let mut number = 0;
            while !stop.is_cancelled() {
                number += 1;
                let session = format!("s{number}");
                web.open_to(&session, "ann").await.ok();
                let content = "x".repeat(4000);
                let messages: Vec<Value> = (0..50).map(|_| json!({"SessionId": session, "Content": content})).collect();
                web.post("/message/send", json!(messages)).await.ok();
                ann.query(&format!("wait=0&c=1-{}", number * 40)).await.ok();
                ann.session("close", &session).await.ok();
            }
            number
        }
    });
    let mut heads = Vec::new();
    for number in 0..3 {
        let file = world.export(&format!("{number}.ndjson")).await;
        let url = postgres::new_database().await;
        imported(&url, &file).await;
        let mut sql = connect(&url).await;
        let mut count = async |query: &'static str| -> i64 {
            sqlx::query_scalar(query).fetch_one(&mut sql).await.expect("a count")
        };
        heads.push(count("select max(version) from events").await);
        assert_eq!(count("select count(*) from events").await, heads[number]);
        for (what, query) in [
            (
                "agents count their open sessions",
                "select count(*) from agents a where open_sessions <> (select count(*) from sessions where status = 1 and owner_key = a.feed_key)",
            ),
            (
                "a closed session has its last event, an open one has not",
                "select count(*) from sessions s where (status = 2) <> exists (select from events e where e.session_key = s.session_key and type = 2 and reason = 1)",
            ),
            (
                "an owner has been told",
                "select count(*) from sessions s where owner_key is not null and not exists (select from events e where e.version = s.assigned_version and e.feed_key = s.owner_key)",
            ),
            (
                "every event has its session",
                "select count(*) from events e where not exists (select from sessions s where s.session_key = e.session_key)",
            ),
            (
                "nothing is acknowledged that is not there",
                "select count(*) from acks where last_version > (select max(version) from events)",
            ),
        ] {
            assert_eq!(count(query).await, 0, "{what}");
        }
    }
    stop.cancel();
    assert!(writer.await.expect("no panic") > 1);
    assert!(heads.is_sorted() && heads[0] < heads[2], "the service went on: {heads:?}");
}

#[tokio::test]
async fn a_killed_export_goes_on_where_it_was() {
    let world = World::start("killed").await;
    world.fill().await;
    let (file, partial) = (world.folder.file("store.ndjson"), world.folder.file("store.ndjson.partial"));

    // Killed when all events are written: the next table is locked.
    let mut sql = world.desk.sql().await;
    sql.execute("begin; lock table acks in access exclusive mode").await.expect("the lock");
    let arguments = ["export", "--database-url", &world.desk.url, "--out", path(&file)];
    let mut child = command(&arguments).stderr(Stdio::null()).spawn().expect("the program runs");
    until_a_command_waits(&world.desk.url).await;
    // Nobody else may write the same file.
    let second = process::run(&arguments).await;
    assert_ne!(second.code, Some(0));
    assert!(second.err.contains("another deskfeed"), "{}", second.err);
    child.kill().await.expect("it is killed");
    sql.execute("rollback").await.expect("the lock is given up");
    assert!(!file.exists());
    let left = fs::read(&partial).expect("what it has written");
    assert!(left.len() > 3_000_000, "{} bytes", left.len());

    // Meanwhile the service goes on: what is exported is the moment of the last run.
    world.web.send("open", "meanwhile").await.ok();
    world.ann.query("wait=0&c=20").await.ok();
    world.rest().await;
    let whole = exported(&world.desk.url, &world.folder.file("whole.ndjson")).await;
    let (header, whole) = split_header(&whole);
    let continued = export(&world.desk.url, &file).await;
    assert_eq!(continued.code, Some(0), "{}", continued.err);
    assert!(continued.err.contains("continuing"), "{}", continued.err);
    let of_the_first_run = split_header(&left).0;
    let continued = fs::read(&file).expect("the file");
    assert_eq!(split_header(&continued).0, of_the_first_run);
    assert_ne!(header["made_at"], of_the_first_run["made_at"]);
    assert!(split_header(&continued).1 == whole, "the same bytes as of a run that nobody ended");
    assert!(!partial.exists());

    // Wherever it was cut off, and if a power cut has left garbage at its end.
    let header = continued.len() - whole.len();
    for (cut, garbage) in [
        (0, ""),
        (10, ""),
        (header - 1, ""),
        (header, ""),
        (header + 1, ""),
        (1_500_000, ""),
        (1_500_000, "\0\0\0"),
        (2_400_000, "\n{}\n"),
        (2_400_000, "\n{\"kind\":\"seal\",\"chunk\":3}\n"),
        (continued.len() - 1, ""),
        (continued.len(), ""),
    ] {
        fs::remove_file(&file).expect("the file of before");
        fs::write(&partial, [&continued[..cut], garbage.as_bytes()].concat()).expect("it is written");
        let again = exported(&world.desk.url, &file).await;
        assert!(split_header(&again).1 == whole, "cut at {cut}");
        let kept = split_header(&again).0 == of_the_first_run;
        assert_eq!(kept, cut >= header, "cut at {cut}");
    }

    // A whole file is never touched.
    let there = export(&world.desk.url, &file).await;
    assert_ne!(there.code, Some(0));
    assert!(there.err.contains("there already"), "{}", there.err);
}

#[tokio::test]
async fn an_export_is_not_continued_from_another_history() {
    let world = World::start("histories").await;
    world.fill().await;
    let whole = fs::read(world.export("whole.ndjson").await).expect("the file");
    let (file, partial) = (world.folder.file("store.ndjson"), world.folder.file("store.ndjson.partial"));
    let refused = async |url: &str, left: &[u8], what: &str| {
        fs::write(&partial, left).expect("it is written");
        let refused = export(url, &file).await;
        assert_ne!(refused.code, Some(0), "{what}");
        assert!(refused.err.contains(what) && refused.err.contains("remove"), "{}", refused.err);
        assert!(fs::read(&partial).expect("it is left") == left, "it is left as it is");
    };
    // The tests' databases are copies of one.
    let other = postgres::new_database().await;
    refused(&other, &whole[..1_500_000], "another store's").await;
    connect(&other).await.execute(ANOTHER_HISTORY).await.expect("a new name");
    refused(&other, &whole[..1_500_000], "from the history").await;
    refused(&world.desk.url, b"something else\n", "neither").await;

    // The same history, of which less is kept.
    let mut sql = world.desk.sql().await;
    sql.execute("alter table events disable trigger all; delete from events where version <= 10; update store set oldest_version = 11")
        .await
        .expect("it is removed");
    refused(&world.desk.url, &whole[..1_500_000], "before 11").await;
    fs::remove_file(&partial).expect("as it says");
    let rest = exported(&world.desk.url, &file).await;
    assert_eq!(lines(&rest)[1]["version"], 11);

    // And a table with a hole in it.
    sql.execute("delete from events where version = 20").await.expect("it is removed");
    let damaged = export(&world.desk.url, &world.folder.file("damaged.ndjson")).await;
    assert_ne!(damaged.code, Some(0));
    assert!(damaged.err.contains("damaged") && damaged.err.contains("backup"), "{}", damaged.err);
    assert!(!world.folder.file("damaged.ndjson").exists());
}
