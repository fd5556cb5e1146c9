//! Tokens that stop being valid while something is under way: bodies, polls, replicas that stand still or start, and
//! histories that know other tokens.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::{
    support::{
        Client, TestDesk,
        desk::{ADMIN_TOKEN, base, start_replica},
        postgres,
        postgres::ANOTHER_HISTORY,
        process::{self, Service},
    },
    tokens::refused,
};

/// Much longer than any of this takes, much shorter than a poll waits.
const BOUNDED: Duration = Duration::from_secs(20);

/// A request whose head was accepted and whose body is still to come.
struct Halfway {
    socket: TcpStream,
    body: String,
}

impl Halfway {
    async fn begin(client: &Client, path: &str, body: &Value) -> Self {
        let address = client.base.trim_start_matches("http://");
        let mut socket = TcpStream::connect(address).await.expect("the service listens");
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nexpect: 100-continue\r\n\r\n",
            client.token,
            body.len()
        );
        socket.write_all(head.as_bytes()).await.expect("it is sent");
        // The service asks for the body only after it has accepted the token.
        let answer = read_head(&mut socket).await;
        assert!(answer.starts_with("HTTP/1.1 100 "), "{answer}");
        Self { socket, body }
    }

    /// Sends the body; returns the status.
    async fn end(mut self) -> u16 {
        self.socket.write_all(self.body.as_bytes()).await.expect("it is sent");
        status_of(&mut self.socket).await
    }
}

async fn read_head(socket: &mut TcpStream) -> String {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        let byte = timeout(BOUNDED, socket.read_u8()).await.expect("it is answered in time");
        read.push(byte.expect("the connection stays open"));
    }
    String::from_utf8(read).expect("a head is text")
}

async fn status_of(socket: &mut TcpStream) -> u16 {
    let head = read_head(socket).await;
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status: {head}"))
}

async fn revoke(desk: &TestDesk, id: &str) {
    desk.admin.post("/admin/token/revoke", json!({"TokenId": id})).await.ok();
}

async fn run(sql: &mut PgConnection, statement: &str) {
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(sql).await.expect("it is done");
}

/// Queries until the answer has this status.
async fn until_status(client: &Client, status: u16) {
    let until = Instant::now() + BOUNDED;
    loop {
        let answer = client.query("b=now&limit=1").await;
        if answer.status == status {
            return;
        }
        assert!(Instant::now() < until, "it goes on being answered with {}", answer.status);
    }
}

#[tokio::test]
async fn a_token_that_is_revoked_while_a_body_is_under_way_does_nothing_more() {
    let desk = TestDesk::start().await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    let (gateway_id, gateway) = desk.token_made(json!({"Role": "gateway", "Subject": "web"})).await;
    let (agent_id, agent) = desk.token_made(json!({"Role": "agent", "Subject": "ann"})).await;
    let (admin_id, admin) = desk.token_made(json!({"Role": "admin"})).await;

    let send = Halfway::begin(&gateway, "/message/send", &json!({"SessionId": "s1", "Content": "too late"})).await;
    let poll = Halfway::begin(&agent, "/message/query", &json!({"a": 1, "wait": 60})).await;
    let close = Halfway::begin(&agent, "/session/close", &json!({"SessionId": "s1"})).await;
    let token = Halfway::begin(&admin, "/admin/token", &json!({"Role": "admin"})).await;
    let tokens = desk.admin.get("/admin/token").await.ok().as_array().map(Vec::len);
    for id in [&gateway_id, &agent_id, &admin_id] {
        revoke(&desk, id).await;
    }
    for client in [&gateway, &agent] {
        refused(client).await;
    }
    until_status(&admin, 401).await;

    assert_eq!(send.end().await, 401);
    assert_eq!(poll.end().await, 401);
    assert_eq!(close.end().await, 401);
    assert_eq!(token.end().await, 401);
    assert_eq!(desk.admin.get("/admin/token").await.ok().as_array().map(Vec::len), tokens);
    let events = ann.feed().await;
    assert_eq!(events.len(), 1, "neither sent nor closed: {events:?}");
    desk.stop().await;
}

#[tokio::test]
async fn a_token_that_is_revoked_before_its_poll_parks_is_refused_at_once() {
    let desk = TestDesk::start().await;
    let web = desk.gateway("web").await;
    desk.agent("ann").await;
    web.open_to("s1", "ann").await.ok();
    for cursor in ["a=1", "a=now", "t=Message"] {
        let (id, lost) = desk.token_made(json!({"Role": "agent", "Subject": "ann"})).await;
        // Its acknowledgements wait for a row that the test holds.
        let (mut holder, mut sql) = (desk.sql().await, desk.sql().await);
        run(&mut holder, "begin; select from feeds for update").await;
        let poll = tokio::spawn({
            let lost = lost.clone();
            async move { lost.query(&format!("{cursor}&wait=60&c=1")).await }
        });
        wait_for_lock(&mut sql, "deskfeed/acks").await;
        revoke(&desk, &id).await;
        refused(&lost).await;
        run(&mut holder, "rollback").await;
        let answer = timeout(BOUNDED, poll).await.expect("long before the poll's own end").expect("no panic");
        assert_eq!(answer.code(), 40100, "{cursor}");
    }
    desk.stop().await;
}

/// Waits until a connection of the service waits for a lock.
async fn wait_for_lock(sql: &mut PgConnection, name: &str) {
    let until = Instant::now() + BOUNDED;
    loop {
        let waits: bool = sqlx::query_scalar(
            "select exists (select from pg_stat_activity where application_name = $1 and datname = current_database() and wait_event_type = 'Lock')",
        )
        .bind(name)
        .fetch_one(&mut *sql)
        .await
        .expect("PostgreSQL answers");
        if waits {
            return;
        }
        assert!(Instant::now() < until, "{name} does not wait for a lock");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_replica_that_stood_still_believes_no_token_that_was_revoked_meanwhile() {
    let desk = TestDesk::start().await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    let (id, lost) = desk.token_made(json!({"Role": "gateway", "Subject": "web"})).await;
    let paused = Service::serve(&["--database-url", &postgres::as_application(&desk.url)]).await;
    lost.at(&paused.base).send("s1", "before").await.ok();
    let address = paused.base.trim_start_matches("http://");
    let mut sockets = Vec::new();
    for _ in 0..8 {
        let mut socket = TcpStream::connect(address).await.expect("the service listens");
        // Connected, served, and its token cached.
        socket.write_all(&query(&lost, address)).await.expect("it is sent");
        assert_eq!(status_of(&mut socket).await, 200);
        sockets.push(socket);
    }

    paused.signal(Signal::SIGSTOP);
    revoke(&desk, &id).await;
    // The second after which the contract has every replica refuse it.
    sleep(Duration::from_secs(1)).await;
    for socket in &mut sockets {
        socket.write_all(&send(&lost, address)).await.expect("it is sent");
    }
    paused.signal(Signal::SIGCONT);
    for socket in &mut sockets {
        // What is left of the first answer, an empty array, comes first.
        let head = read_head(socket).await;
        assert!(head.contains("HTTP/1.1 401 "), "{head}");
    }
    assert_eq!(ann.query("a=0&wait=0").await.contents(), ["before"]);
    paused.terminate().await;
    desk.stop().await;
}

fn query(client: &Client, address: &str) -> Vec<u8> {
    format!(
        "GET /message/query?a=now&wait=0 HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\r\n",
        client.token
    )
    .into_bytes()
}

fn send(client: &Client, address: &str) -> Vec<u8> {
    let body = json!({"SessionId": "s1", "Content": "after"}).to_string();
    format!(
        "POST /message/send HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        client.token,
        body.len()
    )
    .into_bytes()
}

/// A restore, or a failover that lost the newest commits: the count of revocations is that of before.
#[tokio::test]
async fn another_history_decides_by_its_own_tokens() {
    let desk = TestDesk::with(2, &[]).await;
    desk.agent("ann").await;
    let everywhere = |client: &Client| [client.at(&desk.base(0)), client.at(&desk.base(1))];
    let of_ann = json!({"Role": "agent", "Subject": "ann"});
    let (back_id, back) = desk.token_made(of_ann.clone()).await;
    let (gone_id, gone) = desk.token_made(of_ann.clone()).await;
    let (other_id, other) = desk.token_made(of_ann.clone()).await;
    let (_, kept) = desk.token_made(of_ann).await;
    revoke(&desk, &back_id).await;
    let mut parked = Vec::new();
    for client in [&gone, &other].into_iter().flat_map(everywhere) {
        client.query("b=now").await.ok();
        parked.push(tokio::spawn(async move { client.query("a=0&wait=60").await }));
    }
    for replica in everywhere(&back) {
        refused(&replica).await;
    }
    let mut sql = desk.sql().await;
    // In this history another token was revoked, one was never made, and as many were revoked.
    run(
        &mut sql,
        &format!(
            "begin;
             update tokens set revocation = null where token_id = '{back_id}';
             update tokens set revocation = 1 where token_id = '{other_id}';
             delete from tokens where token_id = '{gone_id}';
             {ANOTHER_HISTORY};
             commit"
        ),
    )
    .await;
    for replica in everywhere(&back) {
        until_status(&replica, 200).await;
    }
    for replica in [&gone, &other].into_iter().flat_map(everywhere) {
        until_status(&replica, 401).await;
    }
    for poll in parked {
        let answer = timeout(BOUNDED, poll).await.expect("long before the poll's own end").expect("no panic");
        assert_eq!(answer.code(), 40100);
    }
    for client in everywhere(&kept).iter().chain([&desk.admin]) {
        assert_ne!(client.query("b=now").await.status, 401);
    }

    // One that had counted fewer.
    run(
        &mut sql,
        &format!(
            "begin;
             update tokens set revocation = null where token_id = '{other_id}';
             update store set revocations = 0;
             {ANOTHER_HISTORY};
             commit"
        ),
    )
    .await;
    for replica in everywhere(&other) {
        until_status(&replica, 200).await;
    }
    revoke(&desk, &other_id).await;
    for replica in everywhere(&other) {
        refused(&replica).await;
    }
    desk.stop().await;
}

/// A failover need not be seen by its name: the relay only finds its connection lost.
#[tokio::test]
async fn a_new_connection_of_the_relay_asks_for_all_tokens_again() {
    let desk = TestDesk::start().await;
    desk.agent("ann").await;
    let (gone_id, gone) = desk.token_made(json!({"Role": "agent", "Subject": "ann"})).await;
    gone.query("b=now").await.ok();
    let parked = tokio::spawn({
        let gone = gone.clone();
        async move { gone.query("a=0&wait=60").await }
    });
    let until = Instant::now() + BOUNDED;
    while desk.admin.get("/metrics").await.text.contains("deskfeed_poll_waiters 0") {
        assert!(Instant::now() < until, "the poll is not parked");
    }
    let mut sql = desk.sql().await;
    run(&mut sql, &format!("delete from tokens where token_id = '{gone_id}'")).await;
    let ended = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'deskfeed/reads' and datname = current_database()";
    run(&mut sql, ended).await;
    let answer = timeout(BOUNDED, parked).await.expect("long before the poll's own end").expect("no panic");
    assert_eq!(answer.code(), 40100);
    until_status(&gone, 401).await;
    desk.stop().await;
}

#[tokio::test]
async fn a_replica_that_starts_later_refuses_what_was_revoked_or_has_expired() {
    let desk = TestDesk::start().await;
    desk.agent("ann").await;
    let of_ann = json!({"Role": "agent", "Subject": "ann"});
    let mut sql = desk.sql().await;
    // Those that were used lately are read when a replica starts, the others when they come.
    for used in ["clock_timestamp()", "clock_timestamp() - interval '2 h'", "null"] {
        let (revoked_id, revoked) = desk.token_made(of_ann.clone()).await;
        let (expired_id, expired) = desk.token_made(of_ann.clone()).await;
        let (kept_id, kept) = desk.token_made(of_ann.clone()).await;
        revoke(&desk, &revoked_id).await;
        run(
            &mut sql,
            &format!(
                "begin;
                 update tokens set last_used_at = {used} where token_id in ('{revoked_id}', '{expired_id}', '{kept_id}');
                 update tokens set created_at = clock_timestamp() - interval '3 s', expires_at = clock_timestamp() - interval '1 s' where token_id = '{expired_id}';
                 commit"
            ),
        )
        .await;
        let later = start_replica(&desk.url, &[]).await;
        for lost in [revoked, expired] {
            assert_eq!(lost.at(&base(&later)).query("b=now").await.code(), 40100, "{used}");
        }
        kept.at(&base(&later)).query("b=now").await.ok();
        later.stop().await;
    }
    desk.stop().await;
}

#[tokio::test]
async fn the_first_admin_token_has_at_least_32_characters() {
    let url = postgres::as_application(&postgres::new_database().await);
    let (short, long) = (&ADMIN_TOKEN[..31], &ADMIN_TOKEN[..32]);
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--database-url", &url, "--admin-token", short];
    let refused = Service::start(process::command(&arguments)).await.expect_err("it must not serve");
    assert!(refused.err.contains("32") && !refused.err.contains(short), "{}", refused.err);
    let service = Service::serve(&["--database-url", &url, "--admin-token", long]).await;
    Client::new(&service.base, long).get("/admin/token").await.ok();
    assert_eq!(Client::new(&service.base, short).get("/admin/token").await.code(), 40100);
    service.terminate().await;
}
