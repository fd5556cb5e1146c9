//! Commits that are not answered, and requests that spoil their batch.

use serde_json::json;
use tokio::task::JoinSet;

use super::{BOUNDED, ann_and_web, send_until_kept, wait_for_lock_waiter, within};
use crate::support::{
    Client, TestDesk,
    db_proxy::{Commit, DbProxy, Mode},
    desk::{base, start_replica},
};

/// Ann and the gateway at a replica whose way to PostgreSQL can be broken; s1 is open.
struct CutOff {
    desk: TestDesk,
    proxy: DbProxy,
    replica: deskfeed::cli::serve::Desk,
    ann: Client,
    web: Client,
}

impl CutOff {
    async fn start() -> Self {
        let desk = TestDesk::start().await;
        let (ann, web) = ann_and_web(&desk).await;
        let proxy = DbProxy::before(&desk.url).await;
        let replica = start_replica(&proxy.url, &[]).await;
        let (ann, web) = (ann.at(&base(&replica)), web.at(&base(&replica)));
        web.send_id("s1", "m0", "before").await.ok();
        Self { desk, proxy, replica, ann, web }
    }

    async fn stop(self) {
        self.replica.stop().await;
        self.desk.stop().await;
    }
}

/// Whatever becomes of the commit, the answer is true and the message is there once.
async fn a_commit(what: Commit) {
    let cut_off = CutOff::start().await;
    let (ann, web) = (&cut_off.ann, &cut_off.web);
    for (body, count) in [
        (json!({"SessionId": "s1", "Id": "m1", "Content": "text"}), 1),
        // Without an Id of its own it must not be kept twice either.
        (json!({"SessionId": "s1", "Content": "text"}), 2),
    ] {
        cut_off.proxy.at_next_commit(what);
        let sent = within(BOUNDED, web.post("/message/send", body)).await.ok();
        cut_off.proxy.has_met_commits(count).await;
        let events = ann.query("a=3&wait=0").await;
        assert_eq!(events.contents(), vec!["text"; usize::try_from(count).expect("fits")]);
        assert_eq!(events.versions().last().copied(), sent["Version"].as_i64());
    }
    cut_off.stop().await;
}

#[tokio::test]
async fn a_commit_whose_answer_is_cut_off_is_answered_with_what_became_of_it() {
    a_commit(Commit::AnswerIsCut).await;
}

#[tokio::test]
async fn a_commit_that_is_cut_off_is_done_again() {
    a_commit(Commit::IsCut).await;
}

#[tokio::test]
async fn a_commit_that_never_arrives_is_done_again() {
    a_commit(Commit::IsSwallowed).await;
}

#[tokio::test]
async fn a_commit_that_nobody_can_ask_about_is_50300_and_kept_once_when_it_is_sent_again() {
    let cut_off = CutOff::start().await;
    cut_off.proxy.at_next_commit(Commit::AnswerIsCut);
    let send = tokio::spawn({
        let web = cut_off.web.clone();
        async move { web.send_id("s1", "m1", "text").await }
    });
    cut_off.proxy.has_met_commits(1).await;
    cut_off.proxy.set(Mode::Refuse);
    assert_eq!(within(BOUNDED, send).await.expect("no panic").code(), 50300);
    cut_off.proxy.set(Mode::Pass);
    let sent = within(BOUNDED, send_until_kept(&cut_off.web, "m1", "text")).await.ok();
    assert_eq!(sent["Version"], 4);
    assert_eq!(cut_off.ann.query("a=3&wait=0").await.contents(), ["text"]);
    cut_off.stop().await;
}

#[tokio::test]
async fn session_operations_whose_commit_is_cut_off_happen_once() {
    for what in [Commit::AnswerIsCut, Commit::IsCut] {
        let cut_off = CutOff::start().await;
        cut_off.desk.agent("bob").await;
        cut_off.proxy.at_next_commit(what);
        let transfer = json!({"SessionId": "s1", "ToNewId": "bob"});
        let transferred = within(BOUNDED, cut_off.ann.post("/session/transfer", transfer.clone())).await.ok();
        assert_eq!(transferred["Version"], 4, "{what:?}");
        assert_eq!(cut_off.ann.post("/session/transfer", transfer).await.ok(), transferred);
        assert_eq!(cut_off.ann.query("a=3&wait=0").await.versions(), [4]);
        cut_off.stop().await;
    }
}

#[tokio::test]
async fn acknowledgements_whose_commit_is_cut_off_are_recorded() {
    for what in [Commit::AnswerIsCut, Commit::IsCut, Commit::IsSwallowed] {
        let cut_off = CutOff::start().await;
        cut_off.proxy.at_next_commit(what);
        let answer = within(BOUNDED, cut_off.ann.query("wait=0&c=1,m0")).await;
        assert_eq!(answer.events().len(), 0, "{what:?}");
        cut_off.stop().await;
    }
}

#[tokio::test]
async fn a_request_that_the_database_refuses_does_not_spoil_its_batch() {
    let desk = TestDesk::start().await;
    let (ann, web) = ann_and_web(&desk).await;
    let (mut sql, mut keeper) = (desk.sql().await, desk.sql().await);
    let refuse = "alter table events add constraint no_poison check (content <> 'poison')";
    sqlx::raw_sql(refuse).execute(&mut sql).await.expect("the constraint");
    for round in 0..3 {
        // While the lock is taken requests gather; the first waits for the lock alone.
        sqlx::raw_sql("begin; lock table append_lock in exclusive mode").execute(&mut keeper).await.expect("the lock");
        let mut sends = JoinSet::new();
        for number in 0..12 {
            let web = web.clone();
            sends.spawn(async move {
                let text = if number % 4 == 1 { "poison".to_owned() } else { format!("text {round} {number}") };
                let reply = web.send("s1", &text).await;
                (text, reply)
            });
        }
        wait_for_lock_waiter(&mut sql).await;
        sqlx::raw_sql("rollback").execute(&mut keeper).await.expect("the lock is free");
        for (text, reply) in within(BOUNDED, sends.join_all()).await {
            if text == "poison" {
                assert_eq!(reply.code(), 50000);
                assert!(!reply.text.contains("poison"), "no internals: {}", reply.text);
            } else {
                reply.ok();
            }
        }
    }
    let events = ann.query("a=2&wait=0").await;
    assert_eq!(events.versions(), (3..30).collect::<Vec<i64>>(), "nine of each round, and no hole");
    desk.stop().await;
}
