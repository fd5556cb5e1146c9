//! The program as an operator meets it: starts, stops, kills, migrations, tokens.

use std::{path::PathBuf, time::Duration};

use nix::sys::signal::Signal;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::support::{
    Client,
    desk::ADMIN_TOKEN,
    postgres,
    process::{self, Ended, START, Service, command},
};

/// A folder of one test, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("deskfeed-process-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a plain name")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A test that failed may have left a server behind; the folder says where it was.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Serves a database with the tests' admin token, as the application role.
async fn serve(url: &str) -> (Service, Client) {
    let url = postgres::as_application(url);
    let service = Service::serve(&["--database-url", &url, "--admin-token", ADMIN_TOKEN]).await;
    let admin = Client::new(&service.base, ADMIN_TOKEN);
    (service, admin)
}

/// Why `serve` does not start.
async fn refused(url: &str, more: &[&str]) -> Ended {
    let mut arguments = vec!["serve", "--listen", "127.0.0.1:0", "--database-url", url];
    arguments.extend(more);
    Service::start(command(&arguments)).await.expect_err("it must not serve")
}

async fn sql(url: &str) -> PgConnection {
    PgConnection::connect(url).await.expect("PostgreSQL answers")
}

async fn run_sql(url: &str, text: &str) {
    sqlx::raw_sql(AssertSqlSafe(text.to_owned())).execute(&mut sql(url).await).await.expect("it is done");
}

/// An agent and a gateway with their clients; s1 is open.
async fn ann_and_web(admin: &Client) -> (Client, Client) {
    let mut clients = Vec::new();
    for (role, id) in [("agent", "ann"), ("gateway", "web")] {
        admin.post(&format!("/admin/{role}"), json!({"Id": id})).await.ok();
        let made = admin.post("/admin/token", json!({"Role": role, "Subject": id})).await.ok();
        clients.push(Client::new(&admin.base, made["Token"].as_str().expect("a token")));
    }
    let (web, ann) = (clients.pop().expect("two"), clients.pop().expect("two"));
    web.open_to("s1", "ann").await.ok();
    (ann, web)
}

fn admin_token(service: &Service) -> Option<String> {
    let text = service.out.text();
    text.lines().find_map(|line| line.strip_prefix("Admin token (shown this once): ")).map(str::to_owned)
}

/// Sends until the service is gone; gives the texts that were answered with 200.
async fn send_until_killed(web: Client) -> Vec<String> {
    let mut kept = Vec::new();
    for number in 0..100_000 {
        let text = format!("text {number}");
        match web.try_post("/message/send", &json!({"SessionId": "s1", "Content": text})).await {
            Ok(reply) if reply.status == 200 => kept.push(text),
            Ok(reply) => panic!("{}", reply.text),
            Err(_) => break,
        }
    }
    kept
}

#[tokio::test]
async fn a_private_folder_outlives_its_services() {
    let folder = Folder::new("private");
    let arguments = ["--data", folder.path()];
    let first = Service::serve(&arguments).await;
    let token = admin_token(&first).expect("the first start shows an admin token");
    assert_eq!(first.out.text().matches(&token).count(), 1);
    assert!(!first.err.text().contains(&token), "it is not logged");
    let (ann, web) = ann_and_web(&Client::new(&first.base, &token)).await;
    web.send("s1", "before").await.ok();

    // A second service on the same folder leaves the first alone and says who has it.
    let second = Service::start(command(&["serve", "--listen", "127.0.0.1:0", "--data", folder.path()])).await;
    let second = second.expect_err("one service a folder");
    assert_ne!(second.code, Some(0));
    assert!(second.err.contains(&first.pid().to_string()), "{}", second.err);

    // Commands beside it use the PostgreSQL that it runs.
    let made = process::run(&["token", "--data", folder.path(), "create", "--role", "admin"]).await;
    assert_eq!(made.code, Some(0), "{}", made.err);
    assert_eq!(Client::new(&first.base, made.out.trim()).get("/admin/agent").await.status, 200);
    first.terminate().await;

    // Killed in the middle of sending: what was answered is there.
    let third = Service::serve(&arguments).await;
    assert_eq!(admin_token(&third), None, "shown only once");
    let send = tokio::spawn(send_until_killed(web.at(&third.base)));
    let until = Instant::now() + START;
    while ann.at(&third.base).query("b=now&limit=1").await.versions() < vec![12] {
        assert!(Instant::now() < until, "nothing is sent");
    }
    third.kill().await;
    let kept = timeout(START, send).await.expect("it ends with the service").expect("no panic");
    let fourth = Service::serve(&arguments).await;
    let ann = ann.at(&fourth.base);
    let (mut found, mut after) = (Vec::new(), 2);
    loop {
        let page = ann.query(&format!("a={after}&wait=0&limit=1000")).await;
        found.extend(page.contents());
        after = page.next();
        if !page.more() {
            break;
        }
    }
    assert_eq!(found[0], "before");
    assert!(kept.len() > 5 && found[1..].starts_with(&kept), "{} answered, {} found", kept.len(), found.len() - 1);
    assert!(found.len() <= kept.len() + 2, "at most the one that was not answered is there besides");
    fourth.terminate().await;
}

#[tokio::test]
async fn parked_polls_are_answered_with_nothing_when_the_service_is_told_to_stop() {
    let url = postgres::new_database().await;
    let (mut service, admin) = serve(&url).await;
    let (ann, web) = ann_and_web(&admin).await;
    let mut polls = JoinSet::new();
    for number in 0..40 {
        let (ann, web) = (ann.clone(), web.clone());
        polls.spawn(async move {
            match number % 3 {
                0 => ann.query("a=2&wait=60").await,
                1 => ann.query("wait=60&c=1&t=Message").await,
                _ => web.query("a=2&wait=60").await,
            }
        });
    }
    let until = Instant::now() + START;
    while !admin.get("/metrics").await.text.lines().any(|line| line == "deskfeed_poll_waiters 40") {
        assert!(Instant::now() < until, "the polls are not parked");
    }
    service.signal(Signal::SIGTERM);
    for reply in timeout(START, polls.join_all()).await.expect("all are answered") {
        assert_eq!((reply.status.as_u16(), reply.text.as_str()), (200, "[]"));
        assert!(reply.next() <= 2);
    }
    let status = service.ended(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(0), "{}", service.err.text());
}

#[tokio::test]
async fn serve_refuses_a_schema_that_is_not_its_own() {
    let url = postgres::empty_database().await;
    let older = refused(&url, &[]).await;
    assert_eq!(older.code, Some(3));
    assert!(older.err.contains("deskfeed migrate"), "it names the command: {}", older.err);
    let status = process::run(&["migrate", "--database-url", &url, "status"]).await;
    assert_eq!(status.code, Some(3));
    assert!(status.out.contains("0001") && status.out.contains("missing"), "{}", status.out);

    // What a DBA is given instead of the command.
    let printed = process::run(&["migrate", "--database-url", &url, "print"]).await;
    assert_eq!(printed.code, Some(0), "{}", printed.err);
    let (applied, said) = postgres::run_psql(&url, &[], &printed.out).await;
    assert!(applied, "{said}");
    let status = process::run(&["migrate", "--database-url", &url, "status"]).await;
    assert_eq!(status.code, Some(0), "{}", status.out);
    let again = process::run(&["migrate", "--database-url", &url]).await;
    assert_eq!(again.code, Some(0), "nothing is left to do: {}", again.err);
    serve(&url).await.0.terminate().await;

    let copy = "insert into _sqlx_migrations select 9999, 'later', installed_on, success, checksum, execution_time from _sqlx_migrations where version = 1";
    run_sql(&url, copy).await;
    serve(&url).await.0.terminate().await;
    run_sql(&url, "update store set oldest_program = 9999").await;
    let newer = refused(&url, &[]).await;
    assert_eq!(newer.code, Some(3));
    assert!(newer.err.contains("newer") && newer.err.contains("9999"), "{}", newer.err);
    assert_eq!(refused(&url, &["--migrate"]).await.code, Some(3), "nor does it change a newer one");
    let migrated = process::run(&["migrate", "--database-url", &url]).await;
    assert_eq!(migrated.code, Some(3));
    assert!(migrated.err.contains("9999"), "{}", migrated.err);

    run_sql(&url, "delete from _sqlx_migrations where version = 9999; update store set oldest_program = 1; update _sqlx_migrations set checksum = '\\x00' where version = 2").await;
    let different = refused(&url, &[]).await;
    assert_eq!(different.code, Some(3));
    assert!(different.err.contains("migration 2"), "{}", different.err);
}

#[tokio::test]
async fn two_migrators_at_once_both_succeed() {
    let url = postgres::empty_database().await;
    let arguments = ["migrate", "--database-url", &url];
    let (one, other) = tokio::join!(process::run(&arguments), process::run(&arguments));
    for ended in [one, other] {
        assert_eq!(ended.code, Some(0), "{}", ended.err);
    }
    let status = process::run(&["migrate", "--database-url", &url, "status"]).await;
    assert_eq!(status.code, Some(0), "{}", status.out);
    serve(&url).await.0.terminate().await;
}

#[tokio::test]
async fn serve_refuses_a_postgresql_that_may_lose_what_was_acknowledged() {
    // One that was told so for a database.
    let url = postgres::new_database().await;
    let name = url::Url::parse(&url).expect("a URL").path()[1..].to_owned();
    run_sql(&url, &format!("alter database {name} set synchronous_commit = off")).await;
    let loses = refused(&url, &[]).await;
    assert_ne!(loses.code, Some(0));
    assert!(
        loses.err.contains("synchronous_commit=off") && loses.err.contains("DESKFEED_ALLOW_UNSAFE"),
        "{}",
        loses.err
    );

    // One that was started so.
    let folder = Folder::new("unsafe");
    let options = deskfeed::private_pg::Options {
        folder: folder.0.clone(),
        search_path: std::env::var_os("PATH"),
        programs: std::env::var_os("DESKFEED_PG_BIN").map(Into::into),
        settings: vec![("fsync".to_owned(), "off".to_owned()), ("shared_buffers".to_owned(), "16MB".to_owned())],
        stop_with_parent: true,
        ..Default::default()
    };
    let pg = deskfeed::private_pg::PrivatePg::start(options).await.expect("it starts");
    let loses = refused(&pg.url(), &["--migrate"]).await;
    assert_ne!(loses.code, Some(0));
    assert!(loses.err.contains("fsync=off"), "{}", loses.err);
    let url = pg.url();
    let mut allowed = command(&["serve", "--listen", "127.0.0.1:0", "--database-url", &url]);
    allowed.env("DESKFEED_ALLOW_UNSAFE", "1");
    let service = Service::start(allowed).await.expect("it serves all the same");
    service.terminate().await;
    pg.stop(Duration::from_secs(20)).await.expect("it stops");
}

#[tokio::test]
async fn tokens_are_made_listed_and_revoked_beside_a_running_service() {
    let url = postgres::new_database().await;
    let (service, admin) = serve(&url).await;
    ann_and_web(&admin).await;
    let token = |arguments: &'static [&'static str]| {
        let mut all = vec!["token".to_owned(), "--database-url".to_owned(), postgres::as_application(&url)];
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        async move { process::run(&all.iter().map(String::as_str).collect::<Vec<&str>>()).await }
    };
    let made = token(&["create", "--role", "agent", "--subject", "ann"]).await;
    assert_eq!(made.code, Some(0), "{}", made.err);
    let ann = Client::new(&service.base, made.out.trim());
    ann.query("a=0&wait=0").await.ok();
    let unknown = token(&["create", "--role", "agent", "--subject", "nobody"]).await;
    assert_ne!(unknown.code, Some(0));
    assert!(unknown.err.contains("nobody"), "{}", unknown.err);

    let listed = token(&["list"]).await;
    assert!(!listed.out.contains(made.out.trim()), "secrets are not listed");
    let newest = listed.out.lines().filter(|line| line.contains("ann")).max().expect("it is listed").to_owned();
    let id = newest.split_whitespace().next().expect("an id").to_owned();
    let poll = tokio::spawn({
        let ann = ann.clone();
        async move { ann.query("a=2&wait=60").await }
    });
    let revoked = process::run(&["token", "--database-url", &postgres::as_application(&url), "revoke", &id]).await;
    assert_eq!(revoked.code, Some(0), "{}", revoked.err);
    // Promised within a second; the machine may have much else to do.
    let refused = timeout(Duration::from_secs(5), poll).await.expect("a parked poll hears of it").expect("no panic");
    assert_eq!(refused.code(), 40100);
    assert_eq!(ann.query("a=0&wait=0").await.code(), 40100);
    assert!(token(&["list"]).await.out.lines().any(|line| line.starts_with(&id) && line.ends_with("revoked")));
    assert_ne!(token(&["revoke", "00000000-0000-0000-0000-000000000000"]).await.code, Some(0));
    service.terminate().await;
}

#[tokio::test]
async fn healthcheck_tells_by_its_exit_code() {
    let url = postgres::new_database().await;
    let (service, _) = serve(&url).await;
    let listen = service.base.trim_start_matches("http://").to_owned();
    let well = process::run(&["healthcheck", "--listen", &listen]).await;
    assert_eq!((well.code, well.out.trim()), (Some(0), "ok"));
    service.terminate().await;
    assert_ne!(process::run(&["healthcheck", "--listen", &listen]).await.code, Some(0));
}

#[tokio::test]
async fn without_a_postgresql_it_says_what_to_install() {
    let (folder, empty) = (Folder::new("no-postgresql"), Folder::new("empty"));
    let mut bare = command(&["serve", "--listen", "127.0.0.1:0", "--data", folder.path()]);
    bare.env("PATH", empty.path()).env("DESKFEED_PG_BIN", empty.path());
    let ended = process::end_of(bare).await;
    assert_ne!(ended.code, Some(0));
    assert!(ended.err.contains("install") && ended.err.contains("DATABASE_URL"), "{}", ended.err);
}
