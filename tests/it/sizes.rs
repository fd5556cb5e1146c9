//! What a message costs on disk and in the write-ahead log: the figures of docs/dba.md, and that
//! they do not grow unseen.
//!
//! `DESKFEED_TEST_MESSAGES=1000000 cargo test --release --test it -- sizes:: --nocapture` measures them again.

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::support::{Client, TestDesk, postgres};

/// Bytes of content in each message.
const CONTENT_BYTES: usize = 300;
/// Messages of a session.
const CONVERSATION: usize = 20;
/// Messages of one request.
const BATCH: usize = 100;

/// The document's query: what takes room, in bytes.
fn query() -> &'static str {
    let document = include_str!("../../docs/dba.md");
    let (_, section) = document.split_once("\n## Sizes\n").expect("the section");
    let (_, query) = section.split_once("\n```sql\n").expect("its query");
    query.split("\n```").next().expect("its end")
}

/// Opens sessions, has them filled by the customer and, in turns with it, the agent, and closes them.
async fn converse(web: &Client, agents: &[Client], messages: usize, agents_too: bool) {
    let sessions = (messages / CONVERSATION).max(1);
    let of_a_batch = BATCH / CONVERSATION;
    stream::iter((0..sessions).step_by(of_a_batch))
        .for_each_concurrent(16, |first| async move {
            let agent = first / of_a_batch % agents.len();
            let sessions: Vec<String> = (first..first + of_a_batch).map(|number| format!("session-{number}")).collect();
            for session in &sessions {
                let opened = json!({"SessionId": session, "FromId": format!("customer of {session}"), "ToId": format!("agent-{agent}")});
                web.post("/session/open", opened).await.ok();
            }
            let turns = if agents_too { 2 } else { 1 };
            let content = "0123456789".repeat(CONTENT_BYTES / 10);
            for author in [web, &agents[agent]].into_iter().take(turns) {
                let said = sessions.iter().flat_map(|session| std::iter::repeat_n(session, CONVERSATION / turns));
                let batch: Vec<Value> = said.map(|session| json!({"SessionId": session, "Content": content})).collect();
                let answers = author.post("/message/send", json!(batch)).await.ok();
                assert!(answers.as_array().expect("an array").iter().all(|answer| answer["Version"].is_i64()));
            }
            for session in &sessions {
                agents[agent].session("close", session).await.ok();
            }
        })
        .await;
}

/// Measures one kind of conversation; gives bytes a message: on disk, and in the log.
async fn measure(name: &str, agents_too: bool) -> (f64, f64) {
    let messages = std::env::var("DESKFEED_TEST_MESSAGES").map_or(6_000, |text| text.parse().expect("a number"));
    // Of its own: the log is the whole server's.
    let server = postgres::private_server(postgres::private_folder("sizes")).await;
    postgres::make_schema(&server.url()).await;
    let desk = TestDesk::on(server.url(), 1, &[]).await;
    let web = desk.gateway("web").await;
    let mut agents = Vec::new();
    for number in 0..16 {
        agents.push(desk.agent(&format!("agent-{number}")).await);
    }
    let mut sql = PgConnection::connect(&server.url()).await.expect("the server answers");
    let position = "select (pg_current_wal_insert_lsn() - '0/0')::float8";
    let before: f64 = sqlx::query_scalar(position).fetch_one(&mut sql).await.expect("a position");
    converse(&web, &agents, messages, agents_too).await;
    let after: f64 = sqlx::query_scalar(position).fetch_one(&mut sql).await.expect("a position");
    let sizes: Vec<(String, i64)> = sqlx::query_as(query()).fetch_all(&mut sql).await.expect("the sizes");
    let kept: i64 = sqlx::query_scalar("select count(*) from messages").fetch_one(&mut sql).await.expect("a count");
    assert_eq!(usize::try_from(kept).expect("fits"), messages, "all are there");

    let each = |bytes: f64| bytes / messages as f64;
    let total = each(sizes.iter().map(|(_, bytes)| *bytes as f64).sum());
    println!("{messages} messages, {name}: bytes a message (= MB a million)");
    for (what, bytes) in &sizes {
        println!("| `{what}` | {:.0} |", each(*bytes as f64));
    }
    println!("| all | {total:.0} |\n| log | {:.0} |", each(after - before));
    assert!(sizes.iter().any(|(what, _)| what == "events") && sizes.iter().any(|(what, _)| what == "events_by_feed"));
    desk.stop().await;
    (total, each(after - before))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_takes_no_more_room_than_is_said() {
    // A million takes 598 bytes each, and 955 of log; a few have more of pages that are not full.
    let (disk, log) = measure("the customer's alone", false).await;
    assert!(disk < 650.0 && log < 1100.0, "{disk} bytes on disk, {log} of log");
    let (disk, log) = measure("half of them the agent's", true).await;
    assert!(disk < 750.0 && log < 1300.0, "{disk} bytes on disk, {log} of log");
}
