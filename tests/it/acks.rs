//! `c`: acknowledgements, and instant mode, which gives what lacks them.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::support::{Client, TestDesk, random::Random};

const PATIENCE: Duration = Duration::from_secs(20);

/// Versions of what is not acknowledged.
async fn unacked(client: &Client) -> Vec<i64> {
    client.query("wait=0&limit=1000").await.versions()
}

/// ann with a session (1; 2 is web's) and messages m1..m5 (3..7).
async fn five_messages(desk: &TestDesk) -> (Client, Client) {
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    for number in 1..=5 {
        web.send_id("s1", &format!("m{number}"), "text").await.ok();
    }
    (ann, web)
}

#[tokio::test]
async fn each_event_is_acknowledged_for_itself() {
    let desk = TestDesk::start().await;
    let (ann, _) = five_messages(&desk).await;
    for (acks, left) in [
        ("", vec![1, 3, 4, 5, 6, 7]),
        ("m3", vec![1, 3, 4, 6, 7]),
        ("m3", vec![1, 3, 4, 6, 7]),
        ("5,m3;m3", vec![1, 3, 4, 6, 7]),
        ("nobody,99,2,0,50-60,9-3,-,；，,%20", vec![1, 3, 4, 6, 7]),
        ("99999999999999999999,9223372036854775807,M4,m 4", vec![1, 3, 4, 6, 7]),
        ("1", vec![3, 4, 6, 7]),
        ("6-7", vec![3, 4]),
        ("m1，4", vec![]),
        ("1-7", vec![]),
    ] {
        let answer = ann.query(&format!("wait=0&c={acks}")).await;
        assert_eq!(answer.versions(), left, "{acks}");
        assert_eq!((answer.next(), answer.more()), (7, false), "{acks}");
    }
    // `a` and `b` go on giving what is acknowledged.
    assert_eq!(ann.query("a=0&wait=0").await.versions().len(), 6);
    assert_eq!(ann.query("b=now").await.versions().len(), 6);
}

#[tokio::test]
async fn acknowledgements_are_taken_in_every_mode_and_form() {
    let desk = TestDesk::start().await;
    let (ann, _) = five_messages(&desk).await;
    ann.query("a=7&wait=0&c=1").await.ok();
    assert_eq!(unacked(&ann).await, [3, 4, 5, 6, 7]);
    ann.query("b=now&acks=m1").await.ok();
    assert_eq!(unacked(&ann).await, [4, 5, 6, 7]);
    ann.query_post(json!({"a": 7, "wait": 0, "c": 4})).await.ok();
    assert_eq!(unacked(&ann).await, [5, 6, 7]);
    ann.query_post(json!({"b": "now", "acks": ["m3", 6]})).await.ok();
    assert_eq!(unacked(&ann).await, [7]);
    ann.form("/message/query", "a=now&wait=0&c=m5").await.ok();
    assert_eq!(unacked(&ann).await, [0; 0]);
}

#[tokio::test]
async fn a_long_list_fits_a_post() {
    let desk = TestDesk::start().await;
    let (ann, _) = five_messages(&desk).await;
    let mut list: Vec<String> = (0..20_000).map(|number| format!("unknown-{number}")).collect();
    list.push("3-7".to_owned());
    let answer = ann.query_post(json!({"wait": 0, "c": list.join(";")})).await;
    assert_eq!(answer.code(), 41300, "over 256 KiB");
    list.drain(..10_000);
    assert_eq!(ann.query_post(json!({"wait": 0, "c": list.join(";")})).await.versions(), [1]);
}

#[tokio::test]
async fn nobody_acknowledges_for_another_feed() {
    let desk = TestDesk::start().await;
    let (ann, web) = five_messages(&desk).await;
    let bob = desk.agent("bob").await;
    for (client, feed) in [(&bob, ""), (&web, ""), (&desk.admin, "&feed=ann")] {
        client.query(&format!("wait=0{feed}&c=1-7,m1,m2,m3,m4,m5")).await.ok();
        client.query_post(json!({"a": 0, "wait": 0, "c": "1,3,4", "feed": if feed.is_empty() { Value::Null } else { "ann".into() }})).await.ok();
        assert_eq!(unacked(&ann).await, [1, 3, 4, 5, 6, 7]);
    }
    assert_eq!(unacked(&web).await, [0; 0], "the range held web's own event 2");
}

#[tokio::test]
async fn devices_share_acknowledgements_and_other_replicas_know_them_at_once() {
    let desk = TestDesk::with(2, &[]).await;
    let (ann, web) = five_messages(&desk).await;
    let tablet = desk.token("agent", "ann").await.at(&desk.base(1));
    for number in 1..=5 {
        // Recorded before the answer was read, so the other device sees it at once.
        let left = ann.query(&format!("wait=0&c=m{number}")).await.versions();
        assert_eq!(unacked(&tablet).await, left);
    }
    assert_eq!(unacked(&tablet).await, [1]);
    tablet.query("a=7&wait=0&c=1").await.ok();
    assert_eq!(unacked(&ann).await, [0; 0]);
    web.send("s1", "more").await.ok();
    assert_eq!((unacked(&ann).await, unacked(&tablet).await), (vec![8], vec![8]));
}

#[tokio::test]
async fn an_addsession_is_acknowledged_by_version_or_by_its_last_message() {
    let desk = TestDesk::start().await;
    let (ann, web) = five_messages(&desk).await;
    let bob = desk.agent("bob").await;
    // 8 DelSession of ann, 9 AddSession of bob, 10 AddSession of web.
    ann.transfer("s1", "bob").await.ok();
    assert_eq!(unacked(&bob).await, [9]);
    bob.query("wait=0&c=m4,m1,s1").await.ok();
    assert_eq!(unacked(&bob).await, [9], "not by a message in its middle");
    bob.query("wait=0&c=m5").await.ok();
    assert_eq!(unacked(&bob).await, [0; 0]);
    bob.transfer("s1", "ann").await.ok();
    ann.query("wait=0&c=1-8").await.ok();
    assert_eq!(unacked(&ann).await, [12]);
    ann.query("wait=0&c=12").await.ok();
    assert_eq!(unacked(&ann).await, [0; 0]);
    // DelSession, by version.
    assert_eq!(unacked(&bob).await, [11]);
    bob.query("wait=0&c=m5").await.ok();
    assert_eq!(unacked(&bob).await, [11]);
    bob.query("wait=0&c=11").await.ok();
    assert_eq!(unacked(&bob).await, [0; 0]);
    assert_eq!(unacked(&web).await, [2, 10, 13]);
}

#[tokio::test]
async fn a_gateway_acknowledges_agents_messages_by_id() {
    let desk = TestDesk::start().await;
    let (ann, web) = five_messages(&desk).await;
    ann.send_id("s1", "r1", "reply").await.ok();
    ann.send_id("s1", "0190f5fe-7a3c-7cc1-9f2b-1f2e3d4c5b6a", "reply").await.ok();
    assert_eq!(unacked(&web).await, [2, 9, 11]);
    web.query("wait=0&c=r1").await.ok();
    assert_eq!((unacked(&web).await, unacked(&ann).await.contains(&8)), (vec![2, 11], true));
    web.query("wait=0&c=0190f5fe-7a3c-7cc1-9f2b-1f2e3d4c5b6a").await.ok();
    assert_eq!(unacked(&web).await, [2]);
    ann.query("wait=0&c=r1").await.ok();
    assert!(!unacked(&ann).await.contains(&8) && unacked(&ann).await.contains(&10));
}

#[tokio::test]
async fn a_message_id_that_looks_like_a_version_or_a_range_still_works() {
    let desk = TestDesk::start().await;
    let (ann, web) = five_messages(&desk).await;
    web.send_id("s1", "1000000", "text").await.ok();
    web.send_id("s1", "3-5", "text").await.ok();
    ann.query("wait=0&c=1000000").await.ok();
    assert_eq!(unacked(&ann).await, [1, 3, 4, 5, 6, 7, 9]);
    ann.query("wait=0&c=3-5").await.ok();
    assert!(!unacked(&ann).await.contains(&9));
}

#[tokio::test]
async fn a_page_that_was_just_given_is_held_then_given_again() {
    let desk = TestDesk::start().await;
    let (ann, web) = five_messages(&desk).await;
    let first = ann.query("wait=20").await;
    assert_eq!(first.versions(), [1, 3, 4, 5, 6, 7]);
    let started = Instant::now();
    let again = timeout(PATIENCE, ann.query("wait=60")).await.expect("given again");
    assert!(started.elapsed() >= Duration::from_millis(950), "{:?}", started.elapsed());
    assert_eq!(again.text, first.text);
    // What is left of a page after some of it was acknowledged is held, too.
    let started = Instant::now();
    let rest = timeout(PATIENCE, ann.query("wait=60&c=1,3,4,5,6")).await.expect("given again");
    assert!(started.elapsed() >= Duration::from_millis(950), "{:?}", started.elapsed());
    assert_eq!(rest.versions(), [7]);
    // News comes with it.
    let held = tokio::spawn({
        let ann = ann.clone();
        async move { ann.query("wait=60").await }
    });
    web.send("s1", "news").await.ok();
    let released = timeout(PATIENCE, held).await.expect("released").expect("no panic");
    let known = if released.versions().len() == 1 { ann.query("wait=60").await } else { released };
    assert_eq!(known.versions(), [7, 8]);
    // All acknowledged: the hold ends when the wait does.
    assert_eq!(ann.query("wait=1&c=7,8").await.versions(), [0; 0]);
}

#[tokio::test]
async fn feed_status_counts_what_is_not_acknowledged() {
    let desk = TestDesk::start().await;
    let (ann, web) = five_messages(&desk).await;
    let status = |answer: crate::support::client::Reply| {
        let status = answer.ok();
        assert!(status["Epoch"].as_str().is_some_and(|epoch| !epoch.is_empty()), "{status}");
        assert!(status["OldestUnackedSeconds"].as_i64().is_some_and(|seconds| seconds >= 0), "{status}");
        (status["Head"].as_i64(), status["Oldest"].as_i64(), status["Unacked"].as_i64())
    };
    assert_eq!(status(ann.get("/feed/status").await), (Some(7), Some(1), Some(6)));
    assert_eq!(status(web.get("/feed/status").await), (Some(7), Some(1), Some(1)));
    ann.query("wait=0&c=m1,m3,7").await.ok();
    assert_eq!(status(ann.get("/feed/status").await), (Some(7), Some(1), Some(3)));
    assert_eq!(status(desk.admin.get("/feed/status?feed=ann").await), (Some(7), Some(1), Some(3)));
    ann.query("wait=0&c=1-7").await.ok();
    let done = ann.get("/feed/status").await.ok();
    assert_eq!((done["Unacked"].as_i64(), done["OldestUnackedSeconds"].as_i64()), (Some(0), Some(0)));
    assert_eq!(done["Epoch"], ann.query("a=0&wait=0").await.header("feed-epoch"));
    assert_eq!(desk.admin.get("/feed/status").await.code(), 40000);
    assert_eq!(ann.get("/feed/status?feed=web").await.code(), 40300);
    assert_eq!(desk.admin.get("/feed/status?feed=nobody").await.code(), 40402);
}

/// Instant mode against a plain set of versions, with random acknowledgements, filters and limits.
#[tokio::test]
async fn instant_mode_says_the_same_as_a_set() {
    let mut random = Random::of("instant_mode_says_the_same_as_a_set");
    let desk = TestDesk::start().await;
    let (ann, web) = five_messages(&desk).await;
    let bob = desk.agent("bob").await;
    let mut sessions = 1;
    let mut acked: BTreeSet<i64> = BTreeSet::new();
    for _ in 0..60 {
        match random.below(6) {
            0 => {
                sessions += 1;
                web.open_to(&format!("s{sessions}"), if random.chance(50) { "ann" } else { "bob" }).await.ok();
            }
            // Refused when it is another's or closed: no event then.
            1 => drop(ann.transfer(&format!("s{}", random.below(sessions) + 1), "bob").await),
            2 => drop(bob.transfer(&format!("s{}", random.below(sessions) + 1), "ann").await),
            _ => drop(web.send(&format!("s{}", random.below(sessions) + 1), "text").await),
        }
        let all = ann.feed().await;
        let versions: Vec<i64> = all.iter().map(|event| event["Version"].as_i64().expect("a version")).collect();
        let head = *versions.last().expect("an event");
        let mut items = Vec::new();
        for _ in 0..random.below(4) {
            if random.chance(50) {
                let version = *random.pick(&versions);
                items.push(version.to_string());
                acked.insert(version);
            } else {
                let first = i64::try_from(random.below(40)).expect("small") + head - 40;
                let last = first + i64::try_from(random.below(6)).expect("small");
                if first >= 0 {
                    items.push(format!("{first}-{last}"));
                    acked.extend(versions.iter().filter(|version| (first..=last).contains(version)));
                }
            }
        }
        let types = random.pick(&["", "Message", "AddSession", "DelSession,AddSession"]);
        let limit = random.below(9) + 1;
        let wanted: Vec<i64> = all
            .iter()
            .filter(|event| types.is_empty() || types.contains(event["e"].as_str().expect("a type")))
            .map(|event| event["Version"].as_i64().expect("a version"))
            .filter(|version| !acked.contains(version))
            .collect();
        let answer = ann.query(&format!("wait=0&limit={limit}&t={types}&c={}", items.join(","))).await;
        assert_eq!(answer.versions(), wanted[..wanted.len().min(limit)], "{items:?} {types}");
        assert_eq!(answer.more(), wanted.len() > limit);
        let left: Vec<i64> = versions.iter().copied().filter(|version| !acked.contains(version)).collect();
        assert_eq!(unacked(&ann).await, left, "{items:?}");
        let status = ann.get("/feed/status").await.ok();
        assert_eq!(status["Unacked"], versions.iter().filter(|version| !acked.contains(version)).count());
    }
}
