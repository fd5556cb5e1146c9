//! Commits that wait for a synchronous standby which is away.

use serde_json::json;
use sqlx::AssertSqlSafe;
use tokio::time::{Instant, sleep};

use super::{Scene, message};
use crate::support::{
    Client,
    client::Reply,
    cluster::{Cluster, End, Server},
    steps::{IN_THE_END, USUAL, are_parked, joined, polling, posting, read, repeated, within},
};

/// A synchronous standby that is there at first, and a service on its primary.
async fn replicated(arguments: &[&str]) -> (Scene, Server, Server) {
    let cluster = Cluster::new();
    let primary = cluster.primary().await;
    let standby = cluster.standby(&primary, primary.port(), "one").await;
    primary.replicate_synchronously(1).await;
    let scene = Scene::on(cluster, &primary, arguments).await;
    scene.send("before").await;
    (scene, primary, standby)
}

#[track_caller]
fn is_refused(what: &str, reply: &Reply) {
    assert!(reply.status != 200, "{what} was acknowledged, although no standby has it: {}", reply.text);
    assert_eq!(reply.code(), 50300, "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_or_told_before_it_is_replicated() {
    let (scene, primary, standby) = replicated(&["--polls-per-token", "1"]).await;
    let [web, web_there] = scene.at_each(&scene.web);
    web.open_to("s0", "ann").await.ok();
    let parked = scene.desk.token("agent", "ann").await;
    let parked = scene.at_each(&parked);
    let polls = [polling(&parked[0], "a=5&wait=60".to_owned()), polling(&parked[1], "a=5&wait=60".to_owned())];
    are_parked(&parked[0], &polls).await;
    are_parked(&parked[1], &polls).await;
    standby.stop(End::AtOnce).await;

    let sent = posting(&web, "/message/send", message("m1"));
    primary.has_sync_waiters(1).await;
    // Other requests wait their turn behind it, at its replica and at the other.
    let others = [
        ("a send at the same replica", posting(&web, "/message/send", message("m2"))),
        ("a send at the other", posting(&web_there, "/message/send", message("m3"))),
        ("an open", posting(&web_there, "/session/open", json!({"SessionId": "s2", "FromId": "c", "ToId": "ann"}))),
        ("a close", posting(&scene.ann, "/session/close", json!({"SessionId": "s0"}))),
    ];
    is_refused("the send", &joined("the send is answered", USUAL, sent).await);
    for (what, task) in others {
        is_refused(what, &joined(what, USUAL, task).await);
    }
    // Reading goes on, and shows nothing of it.
    for replica in 0..2 {
        assert_eq!(scene.contents(replica).await, ["text of before"], "replica {replica}");
    }
    assert!(polls.iter().all(|poll| !poll.is_finished()), "a parked reader was given what is not replicated");
    primary.has_sync_waiters(1).await;

    standby.start().await;
    let again = repeated("the send, repeated at the other replica", &web_there, "/message/send", &message("m1")).await;
    let first = again["Version"].as_i64().expect("a version");
    for poll in polls {
        let told = joined("the parked reader is told", USUAL, poll).await;
        assert_eq!(told.versions()[0], 6, "{}", told.text);
    }
    for id in ["m1", "m2", "m3"] {
        let version = repeated(id, &web, "/message/send", &message(id)).await["Version"].clone();
        assert!(id != "m1" || version == first);
    }
    for replica in 0..2 {
        let mut contents = scene.contents(replica).await;
        contents.sort();
        assert_eq!(contents, ["text of before", "text of m1", "text of m2", "text of m3"], "each once");
    }
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_missing_on_a_standby_that_is_promoted() {
    let (scene, primary, standby) = replicated(&[]).await;
    standby.stop(End::AtOnce).await;
    let sends: Vec<_> = (0..4)
        .map(|number| {
            let id = format!("m{number}");
            let web = scene.at_each(&scene.web)[number % 2].clone();
            (format!("text of {id}"), posting(&web, "/message/send", message(&id)))
        })
        .collect();
    let mut acknowledged = vec!["text of before".to_owned()];
    for (text, send) in sends {
        if joined("a send is answered", USUAL, send).await.status == 200 {
            acknowledged.push(text);
        }
    }
    primary.stop(End::AtOnce).await;
    standby.start().await;
    standby.promote().await;
    scene.proxy.point_to(&standby.url());
    scene.send("after").await;
    let contents = scene.contents(0).await;
    for text in acknowledged {
        assert!(contents.contains(&text), "{text:?} was acknowledged, but is lost: {contents:?}");
    }
    scene.stop().await;
}

/// How a commit's wait for a standby is ended by something else than the standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Cancelled,
    Terminated,
    Restarted,
}

impl Ended {
    async fn end(self, primary: &Server) {
        let waiting = primary.has_sync_waiters(1).await;
        let function = match self {
            Self::Cancelled => "pg_cancel_backend",
            Self::Terminated => "pg_terminate_backend",
            Self::Restarted => {
                primary.stop(End::AtOnce).await;
                return primary.start().await;
            }
        };
        let mut sql = primary.sql().await;
        for pid in waiting {
            let ended = format!("select {function}({pid})");
            sqlx::raw_sql(AssertSqlSafe(ended)).execute(&mut sql).await.expect("a superuser may");
        }
    }
}

/// The commit of `path` waits for a standby, and its wait is ended: PostgreSQL then shows what it wrote to
/// everybody, though no standby has it. Nobody is told that it is done, nor when it is repeated and found done
/// already, until a standby is there.
async fn a_wait_that_ends(
    how: Ended,
    client: &Client,
    path: &str,
    body: serde_json::Value,
    scene: &Scene,
    primary: &Server,
    standby: &Server,
) {
    let what = format!("{path}, its wait {how:?}");
    let [here, there] = scene.at_each(client);
    standby.stop(End::AtOnce).await;
    let asked = posting(&here, path, body.clone());
    how.end(primary).await;
    is_refused(&what, &joined(&what, USUAL, asked).await);
    // Both replicas find it done when it is repeated.
    for replica in [&there, &here] {
        let repeated = within(&what, USUAL, replica.post(path, body.clone())).await;
        is_refused(&format!("{what}, repeated"), &repeated);
    }
    standby.start().await;
    for replica in [&there, &here] {
        repeated(&what, replica, path, &body).await;
    }
}

async fn a_wait_that_ends_acknowledges_nothing(how: Ended) {
    let (scene, primary, standby) = replicated(&[]).await;
    let body = message("m1");
    a_wait_that_ends(how, &scene.web, "/message/send", body, &scene, &primary, &standby).await;
    assert_eq!(scene.contents(0).await, ["text of before", "text of m1"], "once");
    assert_eq!(scene.contents(1).await, ["text of before", "text of m1"], "once");
    let close = json!({"SessionId": "s1"});
    a_wait_that_ends(how, &scene.ann, "/session/close", close, &scene, &primary, &standby).await;
    let types = read("all", &scene.ann, "a=0&wait=0").await.types();
    assert_eq!(types, ["AddSession", "Message", "Message", "DelSession"], "once");
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_somebody_cancels_acknowledges_nothing() {
    a_wait_that_ends_acknowledges_nothing(Ended::Cancelled).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_whose_backend_somebody_ends_acknowledges_nothing() {
    a_wait_that_ends_acknowledges_nothing(Ended::Terminated).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_a_restart_ends_acknowledges_nothing() {
    a_wait_that_ends_acknowledges_nothing(Ended::Restarted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_and_tokens_wait_for_the_standby_as_well() {
    for how in [Ended::Cancelled, Ended::Terminated] {
        let (scene, primary, standby) = replicated(&[]).await;
        let lost = scene.desk.token_made(json!({"Role": "agent", "Subject": "ann"})).await;
        let body = json!({"c": "1,before", "wait": 0});
        a_wait_that_ends(how, &scene.ann, "/message/query", body, &scene, &primary, &standby).await;
        assert_eq!(read("what is left", &scene.ann, "wait=0").await.events().len(), 0);
        let body = json!({"TokenId": lost.0});
        a_wait_that_ends(how, &scene.desk.admin, "/admin/token/revoke", body, &scene, &primary, &standby).await;
        for reader in scene.at_each(&lost.1) {
            let last = Instant::now() + IN_THE_END;
            while reader.query("b=now").await.status != 401 {
                assert!(Instant::now() < last, "a revoked token is good for ever");
                sleep(std::time::Duration::from_millis(20)).await;
            }
        }
        scene.stop().await;
    }
}

/// What PostgreSQL shows although no standby has it: whoever was given it is told when a standby takes over that
/// never had it, and nobody else is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_who_were_shown_what_no_standby_has_are_told_after_a_failover() {
    let (scene, primary, standby) = replicated(&[]).await;
    let epoch = read("the epoch", &scene.ann, "b=now").await.header("feed-epoch").to_owned();
    standby.stop(End::AtOnce).await;
    let sent = posting(&scene.web, "/message/send", message("m1"));
    Ended::Cancelled.end(&primary).await;
    let shown = read("what is shown", &scene.ann, "a=3&wait=20").await;
    assert_eq!((shown.versions(), shown.header("feed-epoch")), (vec![4], epoch.as_str()));
    let sent = joined("the send is answered", USUAL, sent).await;
    primary.stop(End::AtOnce).await;
    standby.start().await;
    standby.promote().await;
    scene.proxy.point_to(&standby.url());
    for number in 4..=6 {
        assert_eq!(scene.send(&format!("after {number}")).await, number);
        for reader in scene.at_each(&scene.ann) {
            let ahead = read("a reader who was shown it", &reader, &format!("a=4&wait=0&epoch={epoch}")).await;
            assert_eq!(ahead.code(), 41001, "{}", ahead.text);
            let behind = read("a reader who was not", &reader, &format!("a=3&wait=0&epoch={epoch}")).await;
            assert_eq!(behind.versions(), (4..=number).collect::<Vec<i64>>(), "{}", behind.text);
        }
    }
    is_refused("the send", &sent);
    scene.stop().await;
}
