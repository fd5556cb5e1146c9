//! What an append that is not answered is taken for, when another replica has written something that resembles it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};
use sqlx::PgConnection;
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::numbers_are_dense;
use crate::support::{
    Client, TestDesk,
    client::Reply,
    db_proxy::{DbProxy, Fate, Meeting, Mode, Rule},
    desk::{base, start_replica},
    pg_frames::Passing,
    random::Random,
    steps::{IN_THE_END, USUAL, joined, posting, repeated, within},
};

/// How long a request may take to go to PostgreSQL if nothing is in its way. Only how a test goes about it
/// depends on this, not what it finds.
const GOES_OUT: Duration = Duration::from_millis(300);

/// How late PostgreSQL's answers may be.
const LATE: Duration = Duration::from_secs(5);

/// Two gateways with a session each, and Ann, who has both. Replica B reaches PostgreSQL as ever, replica A by
/// way of a proxy.
struct Scene {
    desk: TestDesk,
    proxy: DbProxy,
    a: deskfeed::cli::serve::Desk,
    ann: Client,
    web: Client,
    other: Client,
}

impl Scene {
    async fn start() -> Self {
        let desk = TestDesk::start().await;
        let (ann, web, other) = (desk.agent("ann").await, desk.gateway("web").await, desk.gateway("other").await);
        web.open_to("s1", "ann").await.ok();
        other.open_to("s2", "ann").await.ok();
        let proxy = DbProxy::before(&desk.url).await;
        let a = start_replica(&proxy.url, &[]).await;
        let scene = Self { desk, proxy, a, ann, web, other };
        // A knows both sessions, and what it remembers is true: nobody else has appended since.
        for _ in 0..3 {
            scene.at_a(&scene.web).send("s1", "before").await.ok();
            scene.at_a(&scene.other).send("s2", "before").await.ok();
        }
        scene
    }

    fn at_a(&self, client: &Client) -> Client {
        client.at(&base(&self.a))
    }

    fn at_b(&self, client: &Client) -> Client {
        client.at(&self.desk.base(0))
    }

    async fn stop(self) {
        within("A stops", USUAL, self.a.stop()).await;
        within("B stops", USUAL, self.desk.stop()).await;
    }
}

/// An append of A that holds two messages, and has not gone to PostgreSQL yet.
struct Batch {
    append: Arc<Meeting>,
    /// The first gateway's message, which comes first in it.
    x: String,
    x_sent: JoinHandle<Reply>,
    /// The second gateway's.
    m: String,
    m_sent: JoinHandle<Reply>,
}

fn message(session: &str, id: &str) -> Value {
    json!({"SessionId": session, "Id": id, "Content": format!("text of {id}")})
}

/// Round trips at A, after which a request that was sent before has long been taken up.
async fn settle(scene: &Scene) {
    for _ in 0..20 {
        scene.at_a(&scene.web).get("/healthz").await;
    }
}

/// Has A put two messages into one append, the first gateway's first.
async fn a_batch_of_both(scene: &Scene, appends: &Rule) -> Batch {
    for attempt in 0..30 {
        // While A's appends do not get through, what is sent next gathers. How many may be under way at a time
        // is A's own affair.
        let mut plugs = Vec::new();
        let mut count = appends.count();
        let mut sent = posting(&scene.at_a(&scene.web), "/message/send", message("s1", &format!("plug-{attempt}")));
        plugs.push((appends.meets(count).await, sent));
        let mut number = 0;
        let x = loop {
            let x = format!("x-{attempt}-{number}-x");
            sent = posting(&scene.at_a(&scene.web), "/message/send", message("s1", &x));
            count += 1;
            match appends.meets_within(count, GOES_OUT).await {
                Some(plug) => plugs.push((plug, sent)),
                None => break x,
            }
            number += 1;
            assert!(number < 16, "A has no end of appends under way");
        };
        let x_sent = sent;
        settle(scene).await;
        let m = format!("m-{attempt}-m");
        let m_sent = posting(&scene.at_a(&scene.other), "/message/send", message("s2", &m));
        settle(scene).await;
        plugs[0].0.decide(Fate::Pass);
        let append = appends.meets(count).await;
        let (first, second) = (append.position(&x), append.position(&m));
        // What else was in the way goes on.
        for (plug, _) in &plugs {
            plug.decide(Fate::Pass);
        }
        for (plug, sent) in plugs {
            plug.is_over().await;
            joined("a message before", USUAL, sent).await.ok();
        }
        if first.zip(second).is_some_and(|(first, second)| first < second) {
            return Batch { append, x, x_sent, m, m_sent };
        }
        // They did not come together.
        let last = Instant::now() + IN_THE_END;
        while !(x_sent.is_finished() && m_sent.is_finished()) {
            appends.all().iter().for_each(|meeting| meeting.decide(Fate::Pass));
            settle(scene).await;
            assert!(Instant::now() < last, "messages are never answered");
        }
    }
    panic!("A never puts both messages into one append");
}

/// Follows a feed until a message with this content is told; gives all that was told on the way.
fn following(reader: &Client, mut after: i64, last: &str) -> JoinHandle<Vec<Value>> {
    let (reader, last) = (reader.clone(), last.to_owned());
    tokio::spawn(async move {
        let mut told = Vec::new();
        loop {
            let reply = reader.query(&format!("a={after}&wait=5")).await;
            if reply.status == 503 {
                tokio::task::yield_now().await;
                continue;
            }
            after = reply.next();
            let events = reply.events();
            let is_last = events.iter().any(|event| event["Data"]["Message"][0]["Content"] == last.as_str());
            told.extend(events);
            if is_last {
                return told;
            }
        }
    })
}

/// From now on A hears nothing, and what it has asked PostgreSQL last is answered late: by a look at the table as
/// it is now.
async fn looks_are_late(scene: &Scene) -> Rule {
    scene.proxy.set(Mode::BlackholeListeners);
    let looks = scene.proxy.at_every(Passing::anything().of("deskfeed/reads"), Fate::HoldAnswer);
    looks.meets(0).await.is_answered().await;
    looks
}

/// A's append [message X of one gateway, message M of another] does not get through; the first gateway repeats X
/// at B, which keeps it as the very version that A would have given it. A must not take that for its own append.
async fn an_append_whose_first_message_another_replica_keeps(fate: Fate, late_looks: bool) {
    let scene = Scene::start().await;
    let appends = scene.proxy.at_every(Passing::append(), Fate::Hold);
    let batch = a_batch_of_both(&scene, &appends).await;
    let after = scene.at_b(&scene.ann).query("a=0&wait=0&limit=1000").await.next();
    let readers = [&scene.ann, &scene.other].map(|reader| following(&scene.at_a(reader), after, "last"));
    let looks = if late_looks { Some(looks_are_late(&scene).await) } else { None };
    let at_b =
        within("X at B", USUAL, scene.at_b(&scene.web).post("/message/send", message("s1", &batch.x))).await.ok();
    assert_eq!(at_b["Version"], after + 1);
    batch.append.decide(fate);
    appends.end();

    if let Some(looks) = looks {
        // Should A need them for its answers, they come in the end.
        let until = Instant::now() + LATE;
        while !(batch.x_sent.is_finished() && batch.m_sent.is_finished()) && Instant::now() < until {
            settle(&scene).await;
        }
        looks.end();
    }
    let x = joined("X is answered at A", USUAL, batch.x_sent).await;
    let m = joined("M is answered at A", USUAL, batch.m_sent).await;
    for (what, reply) in [("X", &x), ("M", &m)] {
        assert!(reply.status == 200 || reply.code() == 50300, "{what}: {}", reply.text);
    }
    let mut sql = scene.desk.sql().await;
    let kept: i64 = sqlx::query_scalar("select count(*) from messages where content = $1")
        .bind(format!("text of {}", batch.m))
        .fetch_one(&mut sql)
        .await
        .expect("a count");
    // B goes on; A's readers are told what is there, and all of it.
    scene.at_b(&scene.web).post("/message/send", json!({"SessionId": "s1", "Content": "last but one"})).await.ok();
    scene.at_b(&scene.other).post("/message/send", json!({"SessionId": "s2", "Content": "last"})).await.ok();
    let answer = json!({"SessionId": "s2", "Content": "last"});
    scene.at_b(&scene.ann).post("/message/send", answer).await.ok();
    let fresh = start_replica(&scene.desk.url, &[]).await;
    for (reader, told) in [&scene.ann, &scene.other].into_iter().zip(readers) {
        let told = joined("a reader at A is told all", USUAL, told).await;
        let truth = reader.at(&base(&fresh)).query(&format!("a={after}&wait=0&limit=1000")).await.events();
        assert_eq!(told, truth[..told.len()], "what A told, and what is there");
    }
    assert!(m.status != 200 || kept == 1, "M was answered {}, and was kept {kept} times", m.text);
    let m_again = repeated("M", &scene.at_a(&scene.other), "/message/send", &message("s2", &batch.m)).await;
    let x_again = repeated("X", &scene.at_a(&scene.web), "/message/send", &message("s1", &batch.x)).await;
    assert_eq!(x_again, at_b, "one Id, one message");
    assert!(m.status != 200 || m.json() == m_again, "{} {m_again}", m.text);
    assert!(x.status != 200 || x.json() == x_again, "{} {x_again}", x.text);
    numbers_are_dense(&mut sql).await;
    within("the fresh replica stops", USUAL, fresh.stop()).await;
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_is_swallowed_is_not_taken_for_another_replicas() {
    an_append_whose_first_message_another_replica_keeps(Fate::GoDark, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_is_reset_is_not_taken_for_another_replicas() {
    an_append_whose_first_message_another_replica_keeps(Fate::Reset, false).await;
}

/// What A believes must not get to its readers before it has looked itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_is_reset_is_not_told_while_looks_are_late() {
    an_append_whose_first_message_another_replica_keeps(Fate::Reset, true).await;
}

/// Dates the newest event an hour ahead, as a server does whose clock is set back later.
async fn date_the_newest_event_ahead(sql: &mut PgConnection) {
    let sql_text = "do $$ declare kept name[]; one name; begin
            select array_agg(tgname) into kept from pg_trigger where tgrelid = 'events'::regclass and not tgisinternal and tgenabled = 'A';
            alter table events disable trigger all;
            update events set created_at = created_at + interval '1 hour' where version = (select max(version) from events);
            alter table events enable trigger all;
            foreach one in array coalesce(kept, '{}') loop
                execute format('alter table events enable always trigger %I', one);
            end loop;
        end $$";
    sqlx::raw_sql(sql_text).execute(sql).await.expect("a superuser may");
}

/// An operation of A is reset before it is committed; an event of B gets the version that A's would have had, and,
/// since the clock is behind, the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_decided_by_time() {
    let scene = Scene::start().await;
    let mut sql = scene.desk.sql().await;
    date_the_newest_event_ahead(&mut sql).await;
    let next = scene.at_b(&scene.web).query("a=0&wait=0").await.next() + 1;
    let append = scene.proxy.at_next(Passing::append(), Fate::Hold);
    let open = json!({"SessionId": "s9", "FromId": "customer", "ToId": "ann"});
    let opened = posting(&scene.at_a(&scene.web), "/session/open", open.clone());
    let append = append.meets(0).await;
    let sent = posting(&scene.at_b(&scene.web), "/message/send", message("s1", "at-b"));
    // A cannot ask before B has done its work.
    let asks = scene.proxy.at_every(Passing::anything().of("deskfeed/appends"), Fate::Hold);
    append.decide(Fate::Reset);
    let sent = joined("the send at B", USUAL, sent).await.ok();
    assert_eq!(sent["Version"], next);
    asks.end();
    let answered = joined("the open at A", USUAL, opened).await;
    let is_there: bool = sqlx::query_scalar(
        "select exists (select from events e join sessions s on s.session_key = e.session_key where s.session_id = 's9')",
    )
    .fetch_one(&mut sql)
    .await
    .expect("an answer");
    assert!(answered.status != 200 || is_there, "answered {} and is nowhere", answered.text);
    let again = repeated("the open", &scene.at_a(&scene.web), "/session/open", &open).await;
    assert!(answered.status != 200 || answered.json() == again, "{} {again}", answered.text);
    assert_eq!(again["Version"], next + 1);
    scene.stop().await;
}

/// Many appends of two replicas are cut in many ways, while the clock is behind the newest event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_that_are_cut_at_random_while_the_clock_is_behind_are_kept_once() {
    const CUTS: usize = 60;
    let mut random = Random::of("appends that are cut at random");
    let scene = Scene::start().await;
    let mut sql = scene.desk.sql().await;
    date_the_newest_event_ahead(&mut sql).await;
    scene.desk.admin.post("/admin/agent", json!({"Id": "ann", "MaxSessions": 1_000_000})).await.ok();
    let proxy_b = DbProxy::before(&scene.desk.url).await;
    let b = start_replica(&proxy_b.url, &[]).await;
    let bases = [base(&scene.a), base(&b)];
    // B is nearer than A, so that they meet in every way.
    let _slower = scene.proxy.at_every(Passing::append(), Fate::Delay(Duration::from_millis(2)));
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let senders: Vec<JoinHandle<BTreeMap<String, i64>>> = (0..8)
        .map(|sender| {
            let (client, session) = if sender % 2 == 0 { (&scene.web, "s1") } else { (&scene.other, "s2") };
            let (client, stopped) = (client.at(&bases[sender / 2 % 2]), stopped.clone());
            tokio::spawn(async move {
                let mut acknowledged = BTreeMap::new();
                for number in 0.. {
                    if *stopped.borrow() {
                        break;
                    }
                    if number % 4 == 3 {
                        // Not by messages alone.
                        let open = format!("session-{sender}-{number}");
                        let body = json!({"SessionId": open, "FromId": "customer", "ToId": "ann"});
                        let kept = repeated(&open, &client, "/session/open", &body).await;
                        acknowledged.insert(open, kept["Version"].as_i64().expect("a version"));
                        continue;
                    }
                    let id = format!("id-{sender}-{number}");
                    let kept = repeated(&id, &client, "/message/send", &message(session, &id)).await;
                    acknowledged.insert(id, kept["Version"].as_i64().expect("a version"));
                }
                acknowledged
            })
        })
        .collect();
    for cut in 0..CUTS {
        let proxy = if random.chance(50) { &scene.proxy } else { &proxy_b };
        let fate = *random.pick(&[Fate::Cut, Fate::Reset, Fate::CutAnswer]);
        let rule = proxy.at(Passing::append(), fate, random.below(6), 1);
        within(&format!("cut {cut}"), USUAL, rule.meets(0)).await;
    }
    stop.send_replace(true);
    let mut acknowledged = BTreeMap::new();
    for sender in senders {
        acknowledged.extend(joined("a sender ends", IN_THE_END, sender).await);
    }
    let messages: Vec<(String, i64)> =
        sqlx::query_as("select id_text, version from messages where id_text like 'id-%'")
            .fetch_all(&mut sql)
            .await
            .expect("the messages");
    let opened: Vec<(String, i64)> = sqlx::query_as(
        "select s.session_id, e.version from events e join sessions s on s.session_key = e.session_key
         where e.type = 0 and s.session_id like 'session-%' and e.feed_key = s.owner_key",
    )
    .fetch_all(&mut sql)
    .await
    .expect("the opens");
    let count = messages.len() + opened.len();
    let kept: BTreeMap<String, i64> = messages.into_iter().chain(opened).collect();
    assert_eq!(kept.len(), count, "something is kept twice");
    println!("{count} kept, {CUTS} appends cut");
    let lost: Vec<_> = acknowledged.iter().filter(|(id, version)| kept.get(*id) != Some(version)).collect();
    assert!(lost.is_empty(), "acknowledged and lost, or kept as another version: {lost:?}");
    numbers_are_dense(&mut sql).await;
    drop(timeout(USUAL, b.stop()).await);
    scene.stop().await;
}
