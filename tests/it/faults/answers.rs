//! Appends that are not answered, arrive late or are repeated elsewhere, for every kind of operation: the client
//! is told the truth, and nothing is done twice.

use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::PgConnection;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::numbers_are_dense;
use crate::support::{
    Client, TestDesk,
    client::Reply,
    db_proxy::{DbProxy, Fate},
    desk::{base, start_replica},
    pg_frames::Passing,
    steps::{USUAL, joined, posting, repeated, until, within},
};

/// Operations that append, or go the same way.
const OPERATIONS: [Operation; 13] = [
    Operation::Send,
    Operation::SendWithoutId,
    Operation::Answer,
    Operation::SendIntoQueue,
    Operation::SendBatch,
    Operation::Open,
    Operation::OpenForAnybody,
    Operation::OpenIntoQueue,
    Operation::Close,
    Operation::Release,
    Operation::Transfer,
    Operation::Presence,
    Operation::Claim,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Send,
    SendWithoutId,
    /// The agent's message, which is told to two feeds.
    Answer,
    SendIntoQueue,
    SendBatch,
    Open,
    OpenForAnybody,
    OpenIntoQueue,
    Close,
    Release,
    Transfer,
    /// An agent comes, and a session waits for one.
    Presence,
    Claim,
}

/// (feed, type) of an event.
type Told = (&'static str, i16);
const ADD: i16 = 0;
const MESSAGE: i16 = 1;
const DEL: i16 = 2;

/// A desk on which one operation is done once: s1 is Ann's, q1 is in the queue if nobody may take it; Bob is
/// there to be handed a session.
struct Scene {
    operation: Operation,
    desk: TestDesk,
    proxy: DbProxy,
    /// Reaches PostgreSQL through the proxy; the desk's own replica does not.
    replica: deskfeed::cli::serve::Desk,
    caller: Client,
    web: Client,
    sql: PgConnection,
    before: i64,
    _place: SemaphorePermit<'static>,
}

/// Scenes at a time, in all tests together: each has two replicas with connections of their own.
static PLACES: Semaphore = Semaphore::const_new(10);

impl Scene {
    async fn start(operation: Operation) -> Self {
        let place = PLACES.acquire().await.expect("it is never closed");
        let desk = TestDesk::start().await;
        let (ann, bob, web) = (desk.agent("ann").await, desk.agent("bob").await, desk.gateway("web").await);
        let proxy = DbProxy::before(&desk.url).await;
        let replica = start_replica(&proxy.url, &[]).await;
        web.open_to("s1", "ann").await.ok();
        let away = json!({"Status": "away"});
        let needs_a_queue = matches!(
            operation,
            Operation::SendIntoQueue
                | Operation::OpenIntoQueue
                | Operation::Release
                | Operation::Presence
                | Operation::Claim
        );
        if needs_a_queue {
            bob.post("/agent/presence", away.clone()).await.ok();
            ann.post("/agent/presence", away).await.ok();
        }
        if matches!(operation, Operation::SendIntoQueue | Operation::Presence | Operation::Claim) {
            assert_eq!(web.open("q1").await.ok()["Status"], "queued");
        }
        // The replica knows the session and has its connections.
        web.at(&base(&replica)).send("s1", "before").await.ok();
        let caller = match operation {
            Operation::Answer | Operation::Close | Operation::Release | Operation::Transfer | Operation::Claim => &ann,
            Operation::Presence => &bob,
            _ => &web,
        };
        let caller = caller.at(&base(&replica));
        caller.query("b=now").await.ok();
        let mut sql = desk.sql().await;
        let before = head(&mut sql).await;
        Self { operation, desk, proxy, replica, caller, web, sql, before, _place: place }
    }

    fn path(&self) -> &'static str {
        match self.operation {
            Operation::Send
            | Operation::SendWithoutId
            | Operation::Answer
            | Operation::SendIntoQueue
            | Operation::SendBatch => "/message/send",
            Operation::Open | Operation::OpenForAnybody | Operation::OpenIntoQueue => "/session/open",
            Operation::Close => "/session/close",
            Operation::Release => "/session/release",
            Operation::Transfer => "/session/transfer",
            Operation::Presence => "/agent/presence",
            Operation::Claim => "/session/claim",
        }
    }

    fn body(&self) -> Value {
        match self.operation {
            Operation::Send | Operation::Answer => json!({"SessionId": "s1", "Id": "m1", "Content": "text"}),
            Operation::SendWithoutId => json!({"SessionId": "s1", "Content": "text"}),
            Operation::SendIntoQueue => json!({"SessionId": "q1", "Id": "m1", "Content": "text"}),
            Operation::SendBatch => json!([
                {"SessionId": "s1", "Id": "m1", "Content": "text"},
                {"SessionId": "s1", "Id": "m2", "Content": "text"},
            ]),
            Operation::Open => json!({"SessionId": "s2", "FromId": "c", "ToId": "ann"}),
            Operation::OpenForAnybody | Operation::OpenIntoQueue => json!({"SessionId": "s2", "FromId": "c"}),
            Operation::Close | Operation::Release => json!({"SessionId": "s1"}),
            Operation::Transfer => json!({"SessionId": "s1", "ToNewId": "bob"}),
            Operation::Presence => json!({"Status": "online"}),
            Operation::Claim => json!({"SessionId": "q1"}),
        }
    }

    /// What its one doing tells.
    fn told(&self) -> Vec<Told> {
        match self.operation {
            Operation::Send | Operation::SendWithoutId => vec![("ann", MESSAGE)],
            Operation::SendBatch => vec![("ann", MESSAGE), ("ann", MESSAGE)],
            Operation::Answer => vec![("ann", MESSAGE), ("web", MESSAGE)],
            Operation::SendIntoQueue => vec![("", MESSAGE)],
            Operation::Open | Operation::Claim => vec![("ann", ADD), ("web", ADD)],
            // Bob has fewer sessions.
            Operation::OpenForAnybody | Operation::Presence => vec![("bob", ADD), ("web", ADD)],
            Operation::OpenIntoQueue => vec![],
            Operation::Close => vec![("ann", DEL), ("web", DEL)],
            Operation::Release => vec![("ann", DEL)],
            Operation::Transfer => vec![("ann", DEL), ("bob", ADD), ("web", ADD)],
        }
    }

    fn request(&self) -> tokio::task::JoinHandle<Reply> {
        posting(&self.caller, self.path(), self.body())
    }

    /// The same request again, at the replica that nothing is wrong with.
    async fn request_elsewhere(&self) -> Value {
        let elsewhere = self.caller.at(&self.desk.base(0));
        repeated(&format!("{:?}, elsewhere", self.operation), &elsewhere, self.path(), &self.body()).await
    }

    /// Whether the service does not have the operation.
    async fn is_unknown(&self) -> bool {
        let probe = self.caller.post(self.path(), json!({"SessionId": "nobody's"})).await;
        self.operation == Operation::Claim && probe.code() == 40400
    }

    /// Judges the answer that came, and gets one where nobody could tell what became of it.
    async fn judge(&mut self, answer: Reply) {
        let what = format!("{:?}", self.operation);
        let answer = match answer.status.as_u16() {
            200 => Some(answer.json()),
            _ => {
                assert_eq!(answer.code(), 50300, "{what}: {}", answer.text);
                if self.operation == Operation::SendWithoutId {
                    // Another request would be another message.
                    None
                } else {
                    Some(repeated(&what, &self.caller, self.path(), &self.body()).await)
                }
            }
        };
        let expected = self.told();
        let mut found = events_after(&mut self.sql, self.before).await;
        if self.operation == Operation::Presence {
            until("the session is assigned", async || {
                found = events_after(&mut self.sql, self.before).await;
                found.len() >= expected.len()
            })
            .await;
        }
        let Some(answer) = answer else {
            assert!(found.is_empty() || found == own(&expected, self.before), "{what}: {found:?}");
            return;
        };
        assert_eq!(found, own(&expected, self.before), "{what} is told once: {answer}");
        let first = if answer.is_array() { &answer[0] } else { &answer };
        match self.operation {
            Operation::Presence => assert_eq!(first["Status"], "online"),
            Operation::OpenIntoQueue => {
                assert_eq!((&first["Status"], &first["Version"]), (&json!("queued"), &json!(0)));
            }
            Operation::SendIntoQueue => assert_eq!(first["Version"], 0),
            _ => assert_eq!(first["Version"], self.before + 1, "{what}: {answer}"),
        }
        if answer.is_array() {
            assert_eq!(answer[1]["Version"], self.before + 2);
        }
        let messages: i64 = sqlx::query_scalar("select count(*) from messages where content = 'text'")
            .fetch_one(&mut self.sql)
            .await
            .expect("a count");
        let sent = expected.iter().filter(|told| told.1 == MESSAGE && told.0 != "web").count();
        assert_eq!(usize::try_from(messages).ok(), Some(sent), "{what}: messages that are kept");
        // What is next goes on as ever, at both replicas.
        for (replica, session) in [(base(&self.replica), "last"), (self.desk.base(0), "last elsewhere")] {
            let open = json!({"SessionId": session, "FromId": "c"});
            repeated(&format!("an open after {what}"), &self.web.at(&replica), "/session/open", &open).await;
        }
        numbers_are_dense(&mut self.sql).await;
    }

    async fn stop(self) {
        within("the replica stops", USUAL, self.replica.stop()).await;
        within("the desk stops", USUAL, self.desk.stop()).await;
    }
}

async fn head(sql: &mut PgConnection) -> i64 {
    let head = sqlx::query_scalar("select coalesce(max(version), 0) from events").fetch_one(sql).await;
    head.expect("the events can be read")
}

/// (version, feed, type) of what was appended after a version.
async fn events_after(sql: &mut PgConnection, before: i64) -> Vec<(i64, String, i16)> {
    sqlx::query_as(
        "select e.version, coalesce(f.feed_id, ''), e.type::smallint
         from events e left join feeds f on f.feed_key = e.feed_key where e.version > $1 order by e.version",
    )
    .bind(before)
    .fetch_all(sql)
    .await
    .expect("the events can be read")
}

/// What is told, as the versions after `before`.
fn own(told: &[Told], before: i64) -> Vec<(i64, String, i16)> {
    told.iter().zip(before + 1..).map(|((feed, r#type), version)| (version, (*feed).to_owned(), *r#type)).collect()
}

/// Does each operation with something becoming of its append.
async fn each(what_becomes: Fate) {
    join_all(OPERATIONS.map(|operation| async move {
        let mut scene = Scene::start(operation).await;
        if !scene.is_unknown().await {
            let rule = scene.proxy.at_next(Passing::append(), what_becomes);
            let request = scene.request();
            rule.meets(0).await;
            let answer = joined(&format!("{operation:?} is answered"), USUAL, request).await;
            scene.judge(answer).await;
        }
        scene.stop().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_whose_answer_is_cut_off_is_answered_with_what_became_of_it() {
    each(Fate::CutAnswer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_is_cut_off_is_done_once() {
    each(Fate::Cut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_is_reset_is_done_once() {
    each(Fate::Reset).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_is_swallowed_is_done_once() {
    each(Fate::GoDark).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_whose_answer_is_swallowed_is_done_once() {
    each(Fate::SwallowAnswer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_arrives_after_its_client_was_answered_is_not_done_again() {
    join_all(OPERATIONS.map(|operation| async move {
        let mut scene = Scene::start(operation).await;
        if !scene.is_unknown().await {
            let rule = scene.proxy.at_next(Passing::append(), Fate::Hold);
            let request = scene.request();
            let late = rule.meets(0).await;
            let answer = joined(&format!("{operation:?} is answered"), USUAL, request).await;
            late.decide(Fate::Pass);
            late.is_over().await;
            scene.judge(answer).await;
        }
        scene.stop().await;
    }))
    .await;
}

/// The client does not wait for the first answer: it repeats its request at another replica, and the append of
/// the first arrives after that, or its answer does.
async fn each_repeated_elsewhere(what_becomes: Fate) {
    join_all(OPERATIONS.map(|operation| async move {
        let mut scene = Scene::start(operation).await;
        // Without an Id it would be another message.
        if operation != Operation::SendWithoutId && !scene.is_unknown().await {
            let rule = scene.proxy.at_next(Passing::append(), what_becomes);
            let request = scene.request();
            let late = rule.meets(0).await;
            let elsewhere = scene.request_elsewhere().await;
            late.decide(Fate::Pass);
            late.is_over().await;
            let answer = joined(&format!("{operation:?} is answered"), USUAL, request).await;
            if answer.status == 200 {
                assert_eq!(answer.json(), elsewhere, "{operation:?}: two requests, one truth");
            }
            scene.judge(answer).await;
        }
        scene.stop().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_arrives_after_its_client_repeated_elsewhere_is_not_done_again() {
    each_repeated_elsewhere(Fate::Hold).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_repeats_elsewhere_while_the_first_answer_is_out_gets_the_same_answer() {
    each_repeated_elsewhere(Fate::HoldAnswer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_change_is_cut_off_is_changed_or_its_client_knows() {
    join_all([Fate::Cut, Fate::Reset, Fate::CutAnswer, Fate::GoDark, Fate::SwallowAnswer].map(|fate| async move {
        let scene = Scene::start(Operation::Send).await;
        let admin = scene.desk.admin.at(&base(&scene.replica));
        let change = json!({"Id": "ann", "Name": "Ann the changed", "MaxSessions": 7});
        let rule = scene.proxy.at_next(Passing::holding("Ann the changed"), fate);
        let changed = posting(&admin, "/admin/agent", change.clone());
        rule.meets(0).await;
        let answer = joined(&format!("{fate:?} is answered"), USUAL, changed).await;
        if answer.status != 200 {
            assert_eq!(answer.code(), 50300, "{fate:?}: {}", answer.text);
            repeated("the change", &admin, "/admin/agent", &change).await;
        }
        for replica in [&admin, &scene.desk.admin] {
            let agents = within("the list", USUAL, replica.get("/admin/agent")).await.ok();
            let ann = agents.as_array().expect("a list").iter().find(|agent| agent["Id"] == "ann").expect("Ann");
            assert_eq!((&ann["Name"], &ann["MaxSessions"]), (&change["Name"], &change["MaxSessions"]), "{fate:?}");
        }
        scene.web.send("s1", "to the changed one").await.ok();
        scene.stop().await;
    }))
    .await;
}
