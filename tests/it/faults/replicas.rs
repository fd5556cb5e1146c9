//! Several replicas on one store: what one of them does is true for the others at once.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use super::numbers_are_dense;
use crate::support::{
    Client, TestDesk,
    db_proxy::{DbProxy, Fate, Mode},
    desk::{base, start_replica},
    pg_frames::Passing,
    steps::{USUAL, joined, posting, repeated, until, within},
};

/// Ann with s1 and s2, at two replicas; both of them know both sessions.
struct Scene {
    desk: TestDesk,
    ann: [Client; 2],
    web: [Client; 2],
    sql: PgConnection,
}

impl Scene {
    async fn start() -> Self {
        let desk = TestDesk::with(2, &[]).await;
        let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
        let at_each = |client: &Client| [client.at(&desk.base(0)), client.at(&desk.base(1))];
        let (ann, web) = (at_each(&ann), at_each(&web));
        for session in ["s1", "s2"] {
            web[0].open_to(session, "ann").await.ok();
            for replica in [&web[0], &web[1], &web[0]] {
                replica.send(session, "before").await.ok();
            }
        }
        let sql = desk.sql().await;
        Self { desk, ann, web, sql }
    }

    async fn stop(mut self) {
        numbers_are_dense(&mut self.sql).await;
        within("the desk stops", USUAL, self.desk.stop()).await;
    }
}

fn message(session: &str, id: &str) -> Value {
    json!({"SessionId": session, "Id": id, "Content": format!("text of {id}")})
}

/// Waits until as many backends of the service as this wait for a lock.
async fn wait_for_lock_waiters(sql: &mut PgConnection, count: i64) {
    until("backends wait for the lock", async || {
        let waiting: i64 = sqlx::query_scalar(
            "select count(*) from pg_stat_activity
             where application_name like 'deskfeed/%' and datname = current_database() and wait_event_type = 'Lock'",
        )
        .fetch_one(&mut *sql)
        .await
        .expect("PostgreSQL answers");
        waiting >= count
    })
    .await;
}

#[tokio::test]
async fn messages_are_numbered_without_a_gap_whoever_appends() {
    let mut scene = Scene::start().await;
    for round in 0..8 {
        // A knows both sessions; B sends into one of them, then A into both at once.
        let (a, b) = (round % 2, 1 - round % 2);
        scene.web[a].send("s1", "A").await.ok();
        scene.web[a].send("s2", "A").await.ok();
        scene.web[b].send("s1", "B").await.ok();
        let both = json!([message("s1", &format!("one {round}")), message("s2", &format!("two {round}"))]);
        let answers = within("a batch", USUAL, scene.web[a].post("/message/send", both)).await.ok();
        assert!(answers[0]["Version"].is_i64() && answers[1]["Version"].is_i64(), "{answers}");
        numbers_are_dense(&mut scene.sql).await;
    }
    // Requests of their own that meet in one append, with an agent's among them.
    for round in 0..8 {
        let mut sends = Vec::new();
        for (number, replica) in [0, 1, 0, 1, 0, 1].into_iter().enumerate() {
            let session = if number % 3 == 0 { "s2" } else { "s1" };
            let client = if number == 4 { &scene.ann[replica] } else { &scene.web[replica] };
            sends.push(posting(client, "/message/send", message(session, &format!("{round} {number}"))));
        }
        for send in sends {
            joined("a send", USUAL, send).await.ok();
        }
    }
    numbers_are_dense(&mut scene.sql).await;
    scene.stop().await;
}

#[tokio::test]
async fn an_agents_new_name_is_in_the_next_message_at_the_other_replica() {
    let scene = Scene::start().await;
    for round in 0..6 {
        let (a, b) = (round % 2, 1 - round % 2);
        let name = format!("Ann the {round}.");
        scene.ann[a].send("s1", "under the old name").await.ok();
        let admin = scene.desk.admin.at(&scene.desk.base(b));
        admin.post("/admin/agent", json!({"Id": "ann", "Name": name})).await.ok();
        let after = scene.ann[a].query("b=now").await.versions().last().copied().unwrap_or(0);
        let sent = scene.ann[a].send("s1", "under the new name").await.ok();
        scene.web[a].send("s1", "to the new name").await.ok();
        for reader in &scene.ann {
            let told = within("reading", USUAL, reader.query(&format!("a={after}&wait=10&limit=1"))).await.event(0);
            assert_eq!(told["Version"], sent["Version"]);
            assert_eq!(told["Data"]["FromName"], name.as_str(), "{told}");
            let version = sent["Version"].as_i64().expect("a version");
            let next = within("reading", USUAL, reader.query(&format!("a={version}&wait=10&limit=1"))).await.event(0);
            assert_eq!(next["Data"]["ToName"], name.as_str(), "{next}");
        }
    }
    scene.stop().await;
}

#[tokio::test]
async fn adjacent_ranges_acknowledged_at_two_replicas_are_both_acknowledged() {
    let mut scene = Scene::start().await;
    let versions = scene.ann[0].query("a=0&wait=0").await.versions();
    assert_eq!(versions.len(), 8);
    let mut keeper = scene.desk.sql().await;
    let lock = "begin; lock table acks in share row exclusive mode";
    sqlx::raw_sql(lock).execute(&mut keeper).await.expect("the lock");
    let ranges = [format!("{}-{}", versions[0], versions[3]), format!("{}-{}", versions[4], versions[7])];
    let acknowledged: Vec<_> = (0..2)
        .map(|replica| posting(&scene.ann[replica], "/message/query", json!({"c": ranges[replica], "wait": 0})))
        .collect();
    wait_for_lock_waiters(&mut scene.sql, 2).await;
    sqlx::raw_sql("rollback").execute(&mut keeper).await.expect("the lock is free");
    for answer in acknowledged {
        // Each may still be told what the other has not acknowledged yet.
        joined("acknowledgements", USUAL, answer).await.ok();
    }
    for replica in 0..2 {
        assert_eq!(scene.ann[replica].query("wait=0").await.events(), Vec::<Value>::new());
        assert_eq!(scene.ann[replica].get("/feed/status").await.ok()["Unacked"], 0);
    }
    keeper.close().await.expect("it closes");
    // Ranges that overlap, again and again, in both orders.
    for round in 0..6_i64 {
        for number in 0..6 {
            scene.web[0].send("s1", &format!("{round} {number}")).await.ok();
        }
        let head = scene.web[0].query("a=0&wait=0&limit=1000").await.next();
        let (low, high) = (format!("{}-{}", head - 5, head - 2), format!("{}-{}", head - 3, head));
        let pair = if round % 2 == 0 { [low, high] } else { [high, low] };
        let (one, other) = tokio::join!(
            scene.ann[0].query_post(json!({"c": pair[0], "wait": 0})),
            scene.ann[1].query_post(json!({"c": pair[1], "wait": 0})),
        );
        assert!(one.status == 200 && other.status == 200, "{} {}", one.text, other.text);
        assert_eq!(scene.ann[0].query("wait=0").await.events(), Vec::<Value>::new());
    }
    scene.stop().await;
}

#[tokio::test]
async fn who_owns_a_session_is_true_at_every_replica_at_once() {
    let scene = Scene::start().await;
    let bob = scene.desk.agent("bob").await;
    let bob = [bob.at(&scene.desk.base(0)), bob.at(&scene.desk.base(1))];
    let (mut owner, mut other) = (&scene.ann, &bob);
    for round in 0..6 {
        let (a, b) = (round % 2, 1 - round % 2);
        owner[a].send("s1", "A takes it for its own").await.ok();
        scene.web[a].send("s1", "from the customer").await.ok();
        let to = if round % 2 == 0 { "bob" } else { "ann" };
        let transferred = owner[b].transfer("s1", to).await.ok();
        assert_eq!(owner[a].send("s1", "by the old owner").await.code(), 40301);
        assert_eq!(owner[a].session("close", "s1").await.code(), 40301);
        let sent = other[a].send("s1", "by the new owner").await.ok();
        assert!(sent["Version"].as_i64() > transferred["Version"].as_i64());
        // What the customer says comes to the new owner.
        let received = scene.web[a].send("s1", "to the new owner").await.ok();
        let version = received["Version"].as_i64().expect("a version");
        let told = within("reading", USUAL, other[b].query(&format!("a={}&wait=10&limit=1", version - 1))).await;
        assert_eq!(told.versions(), [version]);
        (owner, other) = (other, owner);
    }
    owner[1].session("close", "s1").await.ok();
    assert_eq!(owner[0].send("s1", "after the end").await.code(), 40900);
    assert_eq!(scene.web[0].send("s1", "after the end").await.code(), 40900);
    scene.stop().await;
}

#[tokio::test]
async fn appends_behind_a_lock_that_is_kept_are_refused_or_kept_and_none_is_lost() {
    let mut scene = Scene::start().await;
    let mut keeper = scene.desk.sql().await;
    for kind in ["short", "long"] {
        // Both replicas have just appended: what they remember is good, at least of one of them.
        for replica in [0, 1, 0] {
            scene.web[replica].send("s1", "before the lock").await.ok();
        }
        sqlx::raw_sql("begin; lock table append_lock in exclusive mode").execute(&mut keeper).await.expect("the lock");
        let mut requests = Vec::new();
        for number in 0..8 {
            let (id, session) = (format!("{kind} {number}"), format!("{kind} session {number}"));
            requests.push(("/message/send", message("s2", &id)));
            requests.push(("/session/open", json!({"SessionId": session, "FromId": "customer", "ToId": "ann"})));
        }
        let tasks: Vec<_> = requests
            .iter()
            .enumerate()
            .map(|(number, (path, body))| posting(&scene.web[number % 2], path, body.clone()))
            .collect();
        wait_for_lock_waiters(&mut scene.sql, 1).await;
        let mut answers = Vec::new();
        if kind == "short" {
            sqlx::raw_sql("rollback").execute(&mut keeper).await.expect("the lock is free");
        }
        for task in tasks {
            answers.push(joined("a request behind the lock", USUAL, task).await);
        }
        if kind == "long" {
            sqlx::raw_sql("rollback").execute(&mut keeper).await.expect("the lock is free");
        }
        for (number, ((path, body), answer)) in requests.iter().zip(&answers).enumerate() {
            let again = repeated("again", &scene.web[1 - number % 2], path, body).await;
            match answer.status.as_u16() {
                200 => assert_eq!(answer.json(), again),
                _ => assert_eq!(answer.code(), 50300, "{}", answer.text),
            }
        }
        if kind == "short" {
            assert!(answers.iter().all(|answer| answer.status == 200), "a lock that is soon free is waited for");
        }
    }
    let ids: Vec<String> = sqlx::query_scalar("select id_text from messages where id_text is not null")
        .fetch_all(&mut scene.sql)
        .await
        .expect("the messages");
    assert_eq!((ids.len(), ids.iter().collect::<BTreeSet<_>>().len()), (16, 16), "each once");
    scene.stop().await;
}

#[tokio::test]
async fn acknowledgements_that_are_not_recorded_are_never_answered_with_200() {
    let scene = Scene::start().await;
    let proxy = DbProxy::before(&scene.desk.url).await;
    let cut_off = start_replica(&proxy.url, &[]).await;
    let ann = scene.ann[0].at(&base(&cut_off));
    ann.query("b=now").await.ok();
    for fate in [Fate::Cut, Fate::Reset] {
        let failing = proxy.at_every(Passing::acknowledgement(), fate);
        for body in
            [json!({"c": "1", "wait": 0}), json!({"c": "1-3", "a": 0, "wait": 0}), json!({"c": "1", "b": "now"})]
        {
            let answer = within("an acknowledgement", USUAL, ann.query_post(body.clone())).await;
            assert!(answer.status != 200, "{fate:?} {body}: {}", answer.text);
            assert_eq!(answer.code(), 50300);
        }
        assert!(failing.count() > 0, "acknowledgements came another way");
        // Reading works all the while.
        assert_eq!(ann.query("b=now").await.events().len(), 8);
    }
    assert_eq!(scene.ann[0].query("wait=0").await.versions()[0], 1, "nothing was recorded");

    // The database refuses them.
    let mut owner = scene.desk.sql().await;
    let refuse = "create function refuse_acks() returns trigger language plpgsql as 'begin raise exception ''no''; end';
        create trigger refuse_acks before insert or update or delete on acks for each statement execute function refuse_acks()";
    sqlx::raw_sql(refuse).execute(&mut owner).await.expect("a trigger");
    let answer = within("an acknowledgement", USUAL, ann.query_post(json!({"c": "1", "wait": 0}))).await;
    assert!(answer.status != 200, "{}", answer.text);
    sqlx::raw_sql("drop trigger refuse_acks on acks").execute(&mut owner).await.expect("no trigger");
    repeated("an acknowledgement", &ann, "/message/query", &json!({"c": "1", "wait": 0})).await;
    assert!(!scene.ann[0].query("wait=0").await.versions().contains(&1));
    within("the replica stops", USUAL, cut_off.stop()).await;
    scene.stop().await;
}

/// The service has given up waiting for an append when the database comes back.
async fn a_database_comes_back(fate: Fate, away: Mode) {
    let mut scene = Scene::start().await;
    let proxy = DbProxy::before(&scene.desk.url).await;
    let cut_off = start_replica(&proxy.url, &[]).await;
    let web = scene.web[0].at(&base(&cut_off));
    web.send("s1", "before").await.ok();
    let rule = proxy.at_next(Passing::append(), fate);
    let body = message("s1", "unknown");
    let sent = posting(&web, "/message/send", body.clone());
    rule.meets(0).await;
    let behind = posting(&web, "/message/send", message("s2", "behind"));
    proxy.set(away);
    for task in [sent, behind] {
        assert_eq!(joined("a send while PostgreSQL is away", USUAL, task).await.code(), 50300, "{fate:?} {away:?}");
    }
    proxy.set(Mode::Pass);
    // A message that is new, at this replica; then the one that nobody knows about, here and there.
    repeated("a new message", &web, "/message/send", &message("s2", "new")).await;
    let here = repeated("the message, here", &web, "/message/send", &body).await;
    let there = repeated("the message, there", &scene.web[1], "/message/send", &body).await;
    assert_eq!(here, there);
    let count: i64 = sqlx::query_scalar("select count(*) from messages where content = 'text of unknown'")
        .fetch_one(&mut scene.sql)
        .await
        .expect("a count");
    assert_eq!(count, 1, "{fate:?} {away:?}");
    within("the replica stops", USUAL, cut_off.stop()).await;
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_comes_back_after_the_service_has_given_up_is_written_to_again() {
    let ways = [
        (Fate::HoldAnswer, Mode::Blackhole),
        (Fate::Hold, Mode::Blackhole),
        (Fate::HoldAnswer, Mode::Refuse),
        (Fate::Hold, Mode::Refuse),
    ];
    join_all(ways.into_iter().map(|(fate, away)| a_database_comes_back(fate, away))).await;
}
