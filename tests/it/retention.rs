//! `deskfeed retention`: old partitions go while the service runs; readers behind are told, and no
//! reader meets a hole.

use std::{process::Stdio, time::Duration};

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    export::world::{Folder, exported, imported, until_a_command_waits},
    support::{
        Client, TestDesk,
        client::Reply,
        postgres::{self, APPLICATION, MONITOR, OWNER},
        process::{self, Ended, command},
    },
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `deskfeed retention` as a role.
async fn retention_as(role: &str, url: &str, arguments: &[&str]) -> Ended {
    let url = postgres::as_role(url, role);
    process::run(&[&["retention", "--database-url", &url], arguments].concat()).await
}

/// As the owner; it must succeed.
async fn retention(url: &str, arguments: &[&str]) -> String {
    let ended = retention_as(OWNER, url, arguments).await;
    assert_eq!(ended.code, Some(0), "{arguments:?}: {} {}", ended.out, ended.err);
    ended.out
}

async fn partitions(url: &str) -> Vec<String> {
    let mut sql = PgConnection::connect(url).await.expect("PostgreSQL answers");
    sqlx::query_scalar("select name from event_partitions()").fetch_all(&mut sql).await.expect("the partitions")
}

async fn tables(url: &str) -> Vec<String> {
    let mut sql = PgConnection::connect(url).await.expect("PostgreSQL answers");
    sqlx::query_scalar(
        "select relname::text from pg_class where relname ~ '^events_[0-9]+$' order by length(relname), 1",
    )
    .fetch_all(&mut sql)
    .await
    .expect("the tables")
}

/// A desk with partitions of 50 versions: ann's session s1, and messages m3 to m229 in it.
async fn desk_of_230(replicas: usize) -> (TestDesk, Client, Client) {
    let desk = TestDesk::on(postgres::database_in_partitions(50).await, replicas, &[]).await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    let messages: Vec<Value> =
        (3..230).map(|n| json!({"SessionId": "s1", "Id": format!("m{n}"), "Content": format!("text {n}")})).collect();
    web.post("/message/send", json!(messages)).await.ok();
    (desk, ann, web)
}

fn park(reader: &Client, after: i64) -> JoinHandle<Reply> {
    let reader = reader.clone();
    tokio::spawn(async move { reader.query(&format!("a={after}&wait=60")).await })
}

/// Asks until the answer is a certain problem: a replica hears of it a moment later.
async fn until_refused(reader: &Client, query: &str) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        let reply = reader.query(query).await;
        if reply.status == 410 {
            assert_eq!(reply.code(), 41000);
            return reply.json();
        }
        reply.ok();
        assert!(Instant::now() < until, "{query} is still answered");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_partitions_go_while_everybody_reads_and_writes() {
    let (desk, ann, web) = desk_of_230(2).await;
    let ann_there = ann.at(&desk.base(1));
    let parked = [park(&ann, 229), park(&ann_there, 229)];
    // Something was acknowledged, with gaps.
    ann.query("c=1,5-20,60-70,140-160,200&wait=0").await.ok();

    let plan = retention(&desk.url, &["plan", "--before", "160"]).await;
    for line in [
        "Events 1 to 229.",
        "GOES",
        "has the newest event",
        "for events to come",
        "With the events before version 151 goes:",
        "select keep_events_from(151);",
        "alter table events detach partition events_1 concurrently;",
        "alter table events detach partition events_101 concurrently;",
        "- what was said before it in 1 open sessions, and all of 0 closed ones",
    ] {
        assert!(plan.contains(line), "{line}: {plan}");
    }
    // 1 to 150 without 1, 2 (the gateway's), 5-20, 60-70 and 140-150; the gateway has acknowledged nothing.
    let unacked = 150 - 2 - 16 - 11 - 11 + 1;
    assert!(plan.contains(&format!("- {unacked} events of 2 feeds")), "{plan}");
    assert!(!plan.contains("partition events_151"), "{plan}");
    assert_eq!(partitions(&desk.url).await.len(), 7, "a plan changes nothing");
    let applied = retention(&desk.url, &["apply", "--before", "160", "--drop"]).await;
    assert!(applied.contains("Kept from version 151 on") && applied.contains("events_101 dropped."), "{applied}");
    assert_eq!(partitions(&desk.url).await[0], "events_151");
    assert_eq!(tables(&desk.url).await, partitions(&desk.url).await);

    for reader in [&ann, &ann_there] {
        assert_eq!(until_refused(reader, "a=149&wait=0").await["oldest"], 151);
        assert_eq!(until_refused(reader, "a=1&wait=0").await["oldest"], 151);
        assert_eq!(reader.query("a=150&wait=0&limit=1").await.versions(), [151]);
        assert_eq!(reader.query("a=0&wait=0&limit=1000").await.versions(), (151..230).collect::<Vec<i64>>());
        assert_eq!(reader.query("b=now&limit=1000").await.versions(), (151..230).collect::<Vec<i64>>());
        assert_eq!(reader.query("b=160&limit=1000").await.versions(), (151..160).collect::<Vec<i64>>());
        assert_eq!(reader.query("b=100").await.versions(), Vec::<i64>::new());
        assert_eq!(reader.query("a=@2000-01-01T00:00:00Z&wait=0&limit=2").await.versions(), [151, 152]);
        let unacked: Vec<i64> = (161..230).filter(|version| *version != 200).collect();
        assert_eq!(reader.query("wait=0&limit=1000").await.versions(), unacked);
        let status = reader.get("/feed/status").await.ok();
        assert_eq!((&status["Oldest"], &status["Head"], &status["Unacked"]), (&json!(151), &json!(229), &json!(68)));
    }
    let history = web.get("/session/history?SessionId=s1&limit=1000").await.ok();
    assert_eq!((history.as_array().expect("an array").len(), &history[0]["Id"]), (79, &json!("m151")));
    // An Id that is kept is known; the others may come anew.
    assert_eq!(web.send_id("s1", "m151", "text 151").await.ok()["Version"], 151);
    assert_eq!(web.send_id("s1", "m150", "text 150").await.ok()["Version"], 230);
    for poll in parked {
        let woken = timeout(PATIENCE, poll).await.expect("it is woken").expect("no panic");
        assert_eq!(woken.versions(), [230]);
    }
    let ranges: i64 = sqlx::query_scalar("select count(*) from acks where first_version between 1 and 151")
        .fetch_one(&mut desk.sql().await)
        .await
        .expect("a count");
    assert_eq!(ranges, 0, "nothing is looked through where nothing is kept");

    // The schema is what it should be, and a copy of the store keeps what is kept.
    let owner = postgres::as_role(&desk.url, OWNER);
    assert_eq!(process::run(&["migrate", "--database-url", &owner, "verify"]).await.code, Some(0));
    assert!(retention(&desk.url, &["apply", "--keep-events", "229"]).await.contains("Nothing goes"));
    for replica in &desk.replicas {
        replica.stop().await;
    }
    let folder = Folder::new("retention");
    let file = folder.file("store.ndjson");
    exported(&desk.url, &file).await;
    let narrower = postgres::database_in_partitions(20).await;
    imported(&narrower, &file).await;
    let first_versions = [1, 21, 41, 141, 161, 181, 201, 221].map(|first| format!("events_{first}"));
    assert_eq!(partitions(&narrower).await, first_versions, "there is none for what is not kept");
    let copy = TestDesk::on(narrower, 1, &[]).await;
    let (ann, web) = (ann.at(&copy.base(0)), web.at(&copy.base(0)));
    assert_eq!(ann.query("a=0&wait=0&limit=1000").await.versions(), (151..=230).collect::<Vec<i64>>());
    assert_eq!(ann.query("a=149&wait=0").await.code(), 41000);
    assert_eq!(web.send_id("s1", "m151", "text 151").await.ok()["Version"], 151);
    for version in 231..=290 {
        assert_eq!(web.send("s1", "and on").await.ok()["Version"], version);
    }
    copy.stop().await;
}

#[tokio::test]
async fn what_is_detached_stays_until_it_is_dropped() {
    let (desk, _ann, web) = desk_of_230(1).await;
    let applied = retention(&desk.url, &["apply", "--keep-events", "100"]).await;
    assert!(applied.contains("Kept from version 101 on"), "{applied}");
    assert_eq!(partitions(&desk.url).await[0], "events_101");
    assert_eq!(tables(&desk.url).await[..3], ["events_1", "events_51", "events_101"]);
    let plan = retention(&desk.url, &["plan"]).await;
    assert!(plan.contains("events_51 (") && plan.contains("was detached earlier") && plan.contains("Nothing goes."));
    // It is as closed to others as it was, and as hard to change.
    let mut sql = desk.sql().await;
    let refused = sqlx::raw_sql("delete from events_1").execute(&mut sql).await.expect_err("it is history");
    assert!(refused.to_string().contains("is append-only"), "{refused}");
    let mut application =
        PgConnection::connect(&postgres::as_application(&desk.url)).await.expect("the service gets in");
    for statement in ["select from events_1", "drop table events_1"] {
        sqlx::raw_sql(statement).execute(&mut application).await.expect_err(statement);
    }
    let monitor = postgres::as_role(&desk.url, MONITOR);
    let doctor = process::run(&["doctor", "--database-url", &monitor]).await;
    assert!(doctor.out.contains("detached, and still there: events_1, events_51"), "{}", doctor.out);
    let owner = postgres::as_role(&desk.url, OWNER);
    assert_eq!(process::run(&["migrate", "--database-url", &owner, "verify"]).await.code, Some(0));
    // By days: what was appended just now is kept.
    assert!(retention(&desk.url, &["apply", "--keep-days", "1"]).await.contains("Nothing goes"));
    sqlx::raw_sql("alter table events disable trigger user; update events set created_at = created_at - interval '3 days' where version < 180; alter table events enable always trigger events_change_in_content_only; alter table events enable always trigger events_are_kept")
        .execute(&mut sql)
        .await
        .expect("the test's own statement works");
    assert!(retention(&desk.url, &["apply", "--keep-days", "1"]).await.contains("Kept from version 151 on"));
    // Never the partition with the newest event.
    assert!(
        retention(&desk.url, &["apply", "--before", "9223372036854775807"]).await.contains("Kept from version 201 on")
    );
    assert!(retention(&desk.url, &["apply", "--before", "9223372036854775807"]).await.contains("Nothing goes"));
    web.send("s1", "on it goes").await.ok();
    for (role, words) in [(APPLICATION, "the role that owns the tables"), (MONITOR, "the role that owns the tables")] {
        for arguments in [&["plan"][..], &["apply", "--keep-events", "1"], &["ahead"]] {
            let ended = retention_as(role, &desk.url, arguments).await;
            assert!(ended.code == Some(1) && ended.err.contains(words), "{role} {arguments:?}: {}", ended.err);
        }
    }
    desk.stop().await;
}

#[tokio::test]
async fn what_was_interrupted_is_finished() {
    let (desk, ann, web) = desk_of_230(1).await;
    // A report, which has looked at events and is not done.
    let mut report = desk.sql().await;
    sqlx::raw_sql("begin; select count(*) from events").execute(&mut report).await.expect("it reads");
    let owner = postgres::as_role(&desk.url, OWNER);
    let arguments = ["retention", "--database-url", &owner, "apply", "--before", "151", "--drop"];
    let mut child = command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
    until_a_command_waits(&desk.url).await;
    // Nobody else does the same meanwhile, and nobody waits: neither readers nor writers.
    let second = retention_as(OWNER, &desk.url, &["apply", "--before", "151"]).await;
    assert!(second.code == Some(1) && second.err.contains("another"), "{}", second.err);
    assert_eq!(until_refused(&ann, "a=1&wait=0").await["oldest"], 151);
    assert_eq!(web.send("s1", "meanwhile").await.ok()["Version"], 230);
    let locks: Vec<String> = sqlx::query_scalar(
        "select distinct mode from pg_locks l join pg_stat_activity a using (pid)
         where a.application_name = 'deskfeed/commands' and l.relation = 'events'::regclass and l.granted",
    )
    .fetch_all(&mut desk.sql().await)
    .await
    .expect("the locks");
    assert_eq!(locks, Vec::<String>::new(), "it waits without a lock on the table");
    child.kill().await.expect("it is killed");
    let until = Instant::now() + PATIENCE;
    loop {
        let mut sql = desk.sql().await;
        let working = "select count(*) from pg_stat_activity where application_name = 'deskfeed/commands' and datname = current_database()";
        let left: i64 = sqlx::query_scalar(AssertSqlSafe(format!(
            "select pg_terminate_backend(pid)::int::bigint from pg_stat_activity where application_name = 'deskfeed/commands' and datname = current_database()
             union all ({working}) limit 1"
        )))
        .fetch_one(&mut sql)
        .await
        .expect("the activity");
        if left == 0 {
            break;
        }
        assert!(Instant::now() < until, "the server's process stays");
        sleep(Duration::from_millis(20)).await;
    }
    let doctor = process::run(&["doctor", "--database-url", &postgres::as_role(&desk.url, MONITOR)]).await;
    assert!(doctor.out.contains("events_1 was begun to be detached"), "{}", doctor.out);
    assert!(doctor.out.contains("events_51 holds nothing that is kept"), "{}", doctor.out);
    assert_eq!(process::run(&["migrate", "--database-url", &owner, "verify"]).await.code, Some(0));
    // No reader notices.
    assert_eq!(ann.query("a=0&wait=0&limit=1000").await.versions(), (151..=230).collect::<Vec<i64>>());
    assert_eq!(ann.query("b=152").await.versions(), [151]);
    assert!(retention(&desk.url, &["plan"]).await.contains("alter table events detach partition events_1 finalize;"));
    sqlx::raw_sql("rollback").execute(&mut report).await.expect("the report is done");
    let applied = retention(&desk.url, &["apply", "--drop"]).await;
    assert!(!applied.contains("Kept from") && applied.contains("events_1 dropped."), "{applied}");
    assert_eq!(partitions(&desk.url).await[0], "events_151");
    assert_eq!(tables(&desk.url).await[0], "events_151");
    desk.stop().await;
}

#[tokio::test]
async fn messages_that_wait_for_an_agent_are_kept() {
    let desk = TestDesk::on(postgres::database_in_partitions(10).await, 1, &[]).await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    ann.post("/agent/presence", json!({"Status": "away"})).await.ok();
    web.open("waiting").await.ok();
    web.send("waiting", "is anybody there?").await.ok();
    let talk = async |messages: usize| {
        for _ in 0..messages {
            web.send("s1", "text").await.ok();
        }
    };
    talk(20).await;
    let plan = retention(&desk.url, &["plan", "--before", "21"]).await;
    assert!(plan.contains("messages that no agent was told of: waiting") && plan.contains("Nothing goes."), "{plan}");
    let mut owner = PgConnection::connect(&postgres::as_role(&desk.url, OWNER)).await.expect("the owner gets in");
    let refused = sqlx::query("select keep_events_from(11)").execute(&mut owner).await.expect_err("it is needed");
    assert!(refused.to_string().contains("no agent has been told of: waiting"), "{refused}");
    let refused = sqlx::query("select keep_events_from(12)").execute(&mut owner).await.expect_err("it is no border");
    assert!(refused.to_string().contains("no partition of events begins with"), "{refused}");
    sqlx::query("select make_partitions_ahead()").execute(&mut owner).await.expect("it is made");
    let refused = sqlx::query("select keep_events_from(31)").execute(&mut owner).await.expect_err("it is the newest");
    assert!(refused.to_string().contains("the newest event is kept"), "{refused}");

    // It comes with its AddSession, which lies in a later partition: both or neither.
    ann.post("/agent/presence", json!({"Status": "online"})).await.ok();
    let until = Instant::now() + PATIENCE;
    let added = loop {
        let page = ann.query("a=0&wait=0&t=AddSession&limit=100").await.events();
        if let Some(event) = page.into_iter().find(|event| event["Data"]["SessionId"] == "waiting") {
            break event;
        }
        assert!(Instant::now() < until, "it is not assigned");
    };
    assert_eq!(added["Data"]["Message"][0]["Content"], "is anybody there?");
    assert_eq!(added["Version"], 24);
    talk(20).await;
    let plan = retention(&desk.url, &["plan", "--before", "21"]).await;
    assert!(plan.contains("messages that no agent was told of: waiting") && plan.contains("Nothing goes."), "{plan}");
    assert!(retention(&desk.url, &["plan", "--before", "31"]).await.contains("select keep_events_from(31);"));
    // What is closed needs nothing any more.
    ann.session("close", "waiting").await.ok();
    let applied = retention(&desk.url, &["apply", "--before", "21"]).await;
    assert!(applied.contains("Kept from version 21 on"), "{applied}");
    // Its AddSession is kept, and shows what is kept of its messages.
    let page = ann.query("a=0&wait=0&limit=1000").await;
    assert_eq!(page.event(0)["Version"], 21);
    let added = page.events().into_iter().find(|event| event["Version"] == 24).expect("it is kept");
    assert_eq!(added["Data"]["Message"], json!([]));
    desk.stop().await;
}

#[tokio::test]
async fn an_agents_message_is_not_cut_in_two() {
    let desk = TestDesk::on(postgres::database_in_partitions(10).await, 1, &[]).await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    let bob = desk.agent("bob").await;
    web.open_to("s1", "ann").await.ok();
    for number in 3..10 {
        web.send("s1", &format!("text {number}")).await.ok();
    }
    // Versions 10 and 11: the second shows what the first one holds.
    assert_eq!(ann.send("s1", "an answer").await.ok()["Version"], 10);
    web.send("s1", "thanks").await.ok();
    assert_eq!(web.query("a=0&wait=0&t=Message").await.contents(), ["an answer"]);
    for _ in 0..3 {
        ann.transfer("s1", "bob").await.ok();
        bob.transfer("s1", "ann").await.ok();
    }
    let applied = retention(&desk.url, &["apply", "--before", "11"]).await;
    assert!(applied.contains("Kept from version 12 on"), "{applied}");
    for query in ["a=0&wait=0&limit=1000", "b=now&limit=1000", "wait=0&limit=1000", "a=11&wait=0"] {
        assert!(web.query(query).await.versions().iter().all(|version| *version > 11), "{query}");
        // Page after page too, whatever its AddSession events lack.
        let first = ann.query(query).await.versions()[0];
        assert_eq!(first, 12, "{query}");
    }
    let mut seen = Vec::new();
    let mut after = 0;
    loop {
        let page = ann.query(&format!("a={after}&wait=0&limit=2")).await;
        seen.extend(page.versions());
        after = page.next();
        if !page.more() {
            break;
        }
    }
    assert_eq!(seen, ann.query("a=0&wait=0&limit=1000").await.versions());
    assert_eq!(until_refused(&web, "a=10&wait=0").await["oldest"], 12);
    assert!(retention(&desk.url, &["plan", "--before", "11"]).await.contains("Nothing goes."));
    desk.stop().await;
}
