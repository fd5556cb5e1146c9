//! A store with some of everything in it, and what the tests do with it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use deskfeed::store::erasures::{self, Asked};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::{Instant, sleep};

use crate::support::{
    Client, TestDesk,
    process::{self, Ended, START},
};

/// Texts that a careless writer or reader would spoil.
pub const CONTENTS: [&str; 6] = [
    "plain",
    "\"quotes\" \\ and \\N and \\.",
    "line\nline\r\ntab\t\u{1}\u{7f}\u{2028}",
    "中文，；🙂 é",
    r#"{"kind":"seal","chunk":1}"#,
    "{\"kind\":\"end\"}\n{\"table\":\"events\"}",
];

/// A folder of one test, removed in the end.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("deskfeed-{name}-{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing depends on it.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A desk and those who work at it.
pub struct World {
    pub desk: TestDesk,
    pub ann: Client,
    pub bob: Client,
    pub web: Client,
    pub folder: Folder,
}

impl World {
    /// Sessions in every state, one of them erased, messages of every kind, acknowledgements with gaps,
    /// tokens revoked and not.
    pub async fn start(name: &str) -> Self {
        let desk = TestDesk::start().await;
        let (ann, bob) = (desk.agent("ann").await, desk.agent("bob").await);
        let web = desk.gateway("web").await;
        let (revoked, _) = desk.token_made(json!({"Role": "agent", "Subject": "ann", "ExpiresIn": 1000})).await;
        desk.admin.post("/admin/token/revoke", json!({"TokenId": revoked})).await.ok();
        desk.token_made(json!({"Role": "admin"})).await;

        for session in ["open", "closed", "moved", "released"] {
            let customer = json!({"SessionId": session, "FromId": "c", "FromName": "名\"\\", "ToId": "ann"});
            web.post("/session/open", customer).await.ok();
        }
        for (number, content) in CONTENTS.iter().enumerate() {
            web.send_id("open", &format!("id {number}"), content).await.ok();
            ann.send("open", content).await.ok();
        }
        let image = json!({"SessionId": "moved", "ContentType": 1, "Content": "https://example.org/a.png?b=c&d"});
        web.post("/message/send", image).await.ok();
        ann.transfer("moved", "bob").await.ok();
        ann.session("close", "closed").await.ok();
        // The profile of an older event is not the agent's any more.
        desk.admin
            .post("/admin/agent", json!({"Id": "ann", "Name": "Ann II", "Image": "https://x.example/i"}))
            .await
            .ok();
        ann.session("release", "released").await.ok();
        for agent in [&ann, &bob] {
            agent.post("/agent/presence", json!({"Status": "away"})).await.ok();
        }
        web.open("queued").await.ok();
        web.send_id("queued", "q1", "anybody?").await.ok();
        let erased = Asked::Session("moved".to_owned());
        let mut sql = desk.sql().await;
        for part in erasures::divide(&erasures::find(&mut sql, &erased).await.expect("the session")) {
            erasures::erase(&mut sql, &erased, &part).await.expect("it is erased");
        }
        ann.query("wait=0&c=1,3,9-12").await.ok();
        bob.query("wait=0").await.ok();
        Self { desk, ann, bob, web, folder: Folder::new(name) }
    }

    /// Several chunks of events.
    pub async fn fill(&self) {
        let content = "0123456789 \"quoted\" ".repeat(100);
        for batch in 0..3 {
            let messages: Vec<Value> = (0..500)
                .map(|number| json!({"SessionId": "open", "Id": format!("b{batch}-{number}"), "Content": content}))
                .collect();
            self.web.post("/message/send", json!(messages)).await.ok();
        }
    }

    /// Stops the service, which notes now and then who polled and which tokens were used.
    pub async fn rest(&self) {
        for replica in &self.desk.replicas {
            replica.stop().await;
        }
    }

    pub async fn export(&self, name: &str) -> PathBuf {
        let file = self.folder.file(name);
        let ended = export(&self.desk.url, &file).await;
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        file
    }
}

pub async fn export(url: &str, file: &Path) -> Ended {
    process::run(&["export", "--database-url", url, "--out", path(file)]).await
}

pub async fn import(url: &str, file: &Path) -> Ended {
    process::run(&["import", "--database-url", url, path(file)]).await
}

/// Exports a database that has a whole store.
pub async fn exported(url: &str, file: &Path) -> Vec<u8> {
    let ended = export(url, file).await;
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    fs::read(file).expect("the file")
}

/// What must go well.
pub async fn imported(url: &str, file: &Path) {
    let ended = import(url, file).await;
    assert_eq!(ended.code, Some(0), "{}", ended.err);
}

pub fn path(file: &Path) -> &str {
    file.to_str().expect("a plain name")
}

/// The header, and all that follows it.
pub fn split_header(file: &[u8]) -> (Value, &[u8]) {
    let at = file.iter().position(|byte| *byte == b'\n').expect("a line");
    (serde_json::from_slice(&file[..at]).expect("JSON"), &file[at + 1..])
}

/// The lines of a file but for its seals, as JSON.
pub fn lines(file: &[u8]) -> Vec<Value> {
    let all = file.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let all = all.map(|line| serde_json::from_slice::<Value>(line).expect("each line is JSON"));
    all.filter(|line| line["kind"] != "seal").collect()
}

pub async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.expect("PostgreSQL answers")
}

/// Waits until a command of ours waits for a lock in `url`'s database.
pub async fn until_a_command_waits(url: &str) {
    let mut sql = connect(url).await;
    let until = Instant::now() + START;
    loop {
        let waits: bool = sqlx::query_scalar(
            "select exists (select from pg_stat_activity
             where datname = current_database() and application_name = 'deskfeed/commands' and wait_event_type = 'Lock')",
        )
        .fetch_one(&mut sql)
        .await
        .expect("the activity");
        if waits {
            return;
        }
        assert!(Instant::now() < until, "no command waits for a lock");
        sleep(Duration::from_millis(5)).await;
    }
}

/// How many rows a database has in each table of a store.
pub async fn rows(url: &str) -> Vec<(&'static str, i64)> {
    let mut sql = connect(url).await;
    let mut rows = Vec::new();
    for table in &deskfeed::store::archive::tables::TABLES {
        let count = format!("select count(*) from {}", table.name);
        rows.push((table.name, sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut sql).await.expect("a count")));
    }
    rows
}
