//! Histories: what readers are told when a standby takes over.

use std::time::Duration;

use tokio::time::Instant;

use super::{Scene, message};
use crate::support::{
    Client,
    cluster::{Cluster, End, Server},
    db_proxy::{DbProxy, Fate, Mode},
    desk::{base, start_replica},
    pg_frames::Passing,
    steps::{USUAL, are_parked, joined, polling, posting, read, repeated, until, within},
};

/// How long writers may stand still once the new primary takes writes: a second, and slack for a machine that
/// has much else to do.
const STANDSTILL: Duration = Duration::from_secs(5);

/// The epoch that a reader is told.
async fn epoch(reader: &Client) -> String {
    read("the epoch", reader, "b=now").await.header("feed-epoch").to_owned()
}

#[track_caller]
fn is_told_of_another_history(what: &str, reply: &crate::support::client::Reply, head: i64) {
    assert_ne!(reply.status, 200, "{what} was answered: {}", reply.text);
    assert_eq!((reply.code(), reply.json()["head"].as_i64()), (41001, Some(head)), "{what}");
    assert!(reply.json()["epoch"].as_str().is_some_and(|epoch| !epoch.is_empty()), "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_standbys_promoted_one_after_the_other_are_two_histories() {
    let cluster = Cluster::new();
    let primary = cluster.primary().await;
    let one = cluster.standby(&primary, primary.port(), "one").await;
    let two = cluster.standby(&primary, primary.port(), "two").await;
    let scene = Scene::on(cluster, &primary, &["--polls-per-token", "1"]).await;
    let second_device = scene.desk.token("agent", "ann").await;
    for number in 3..=5 {
        assert_eq!(scene.send(&format!("m{number}")).await, number);
    }
    primary.has_standbys(2, false).await;
    let first = epoch(&scene.ann).await;

    primary.stop(End::AtOnce).await;
    one.promote().await;
    scene.proxy.point_to(&one.url());
    for number in 6..=9 {
        assert_eq!(scene.send(&format!("one{number}")).await, number);
    }
    let of_one = epoch(&scene.ann).await;
    assert_ne!(of_one, first);
    let parked = scene.at_each(&second_device);
    let polls = parked.each_ref().map(|reader| polling(reader, format!("a=9&wait=60&epoch={of_one}")));
    for reader in &parked {
        are_parked(reader, &polls).await;
    }

    // The other one, which knows nothing of that, takes its place.
    one.stop(End::Fast).await;
    two.promote().await;
    scene.proxy.point_to(&two.url());
    for number in 6..=11 {
        assert_eq!(scene.send(&format!("two{number}")).await, number);
    }
    let of_two = epoch(&scene.ann).await;
    assert!(of_two != first && of_two != of_one, "{first} {of_one} {of_two}");
    for poll in polls {
        let told = joined("a parked reader is told", USUAL, poll).await;
        assert_eq!(told.code(), 41001, "{}", told.text);
    }
    let fresh = start_replica(&two.url(), &[]).await;
    for replica in [scene.desk.base(0), scene.desk.base(1), base(&fresh)] {
        let ann = scene.ann.at(&replica);
        let ahead = read("a reader of the first", &ann, &format!("a=9&wait=0&epoch={of_one}")).await;
        is_told_of_another_history("a reader of the first", &ahead, 11);
        let newest = read("the newest of the first", &ann, &format!("a=6&wait=0&epoch={of_one}")).await;
        is_told_of_another_history("a reader of the first at its first own version", &newest, 11);
        // What the second has from the primary it goes on with.
        let behind = read("a reader of the primary", &ann, &format!("a=4&wait=0&epoch={first}")).await;
        assert_eq!(behind.versions(), (5..=11).collect::<Vec<i64>>());
        assert_eq!(behind.header("feed-epoch"), of_two);
    }
    within("the fresh replica stops", USUAL, fresh.stop()).await;
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_loses_nothing_ends_no_reader() {
    let cluster = Cluster::new();
    let primary = cluster.primary().await;
    let standby = cluster.standby(&primary, primary.port(), "one").await;
    primary.replicate_synchronously(1).await;
    let scene = Scene::on(cluster, &primary, &["--polls-per-token", "3"]).await;
    let second_device = scene.desk.token("agent", "ann").await;
    for number in 3..=5 {
        assert_eq!(scene.send(&format!("m{number}")).await, number);
    }
    let before = epoch(&scene.ann).await;
    read("all is acknowledged", &scene.ann, "wait=0&c=1-5").await.ok();
    let parked = scene.at_each(&second_device);
    let mut polls = Vec::new();
    for reader in &parked {
        for parameters in ["a=5&wait=60", "wait=60"] {
            polls.push(polling(reader, format!("{parameters}&epoch={before}")));
        }
        polls.push(polling(reader, "a=5&wait=60".to_owned()));
        are_parked(reader, &polls).await;
    }

    primary.stop(End::AtOnce).await;
    standby.promote().await;
    scene.proxy.point_to(&standby.url());
    // Before anything is appended there, too.
    let [ann, there] = scene.at_each(&scene.ann);
    for reader in [&ann, &there] {
        let goes_on = read("a reader goes on", reader, &format!("a=4&wait=0&epoch={before}")).await;
        assert_eq!(goes_on.versions(), [5], "{}", goes_on.text);
    }
    for web in scene.at_each(&scene.web) {
        let id = web.base.rsplit(':').next().expect("a port").to_owned();
        repeated("a send after the failover", &web, "/message/send", &message(&id)).await;
    }
    for poll in polls {
        let told = joined("a parked reader is told", USUAL, poll).await;
        assert_eq!(told.versions()[0], 6, "{}", told.text);
        assert_ne!(told.header("feed-epoch"), before);
    }
    let after = epoch(&scene.ann).await;
    assert_ne!(after, before);
    for reader in [&ann, &there] {
        let behind = read("a reader that was behind", reader, &format!("a=3&wait=0&epoch={before}")).await;
        assert_eq!((behind.versions(), behind.header("feed-epoch")), (vec![4, 5, 6, 7], after.as_str()));
        let newest = read("the newest page", reader, &format!("b=now&epoch={before}")).await;
        assert_eq!(newest.versions().last(), Some(&7));
        let at_the_end = read("a reader at the end", reader, &format!("a=5&wait=0&epoch={before}")).await;
        assert_eq!(at_the_end.versions(), [6, 7]);
        // Nobody had these in the history before.
        let liar = read("a reader that cannot be", reader, &format!("a=6&wait=0&epoch={before}")).await;
        is_told_of_another_history("a version that the earlier history never had", &liar, 7);
        let new = read("a reader of the new history", reader, &format!("a=6&wait=0&epoch={after}")).await;
        assert_eq!(new.versions(), [7]);
    }
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_loses_something_ends_exactly_the_readers_who_were_ahead() {
    let cluster = Cluster::new();
    let primary = cluster.primary().await;
    let way = DbProxy::before(&primary.url()).await;
    let standby = cluster.standby(&primary, way.port, "one").await;
    let scene = Scene::on(cluster, &primary, &["--polls-per-token", "3"]).await;
    let second_device = scene.desk.token("agent", "ann").await;
    for number in 3..=5 {
        assert_eq!(scene.send(&format!("m{number}")).await, number);
    }
    primary.has_standbys(1, false).await;
    // From here on the standby hears nothing, and nobody waits for it.
    way.set(Mode::Blackhole);
    for number in 6..=8 {
        assert_eq!(scene.send(&format!("lost{number}")).await, number);
    }
    let before = epoch(&scene.ann).await;
    let parked = scene.at_each(&second_device);
    let mut polls = Vec::new();
    for reader in &parked {
        polls.push(polling(reader, format!("a=8&wait=60&epoch={before}")));
        polls.push(polling(reader, "a=8&wait=60".to_owned()));
        polls.push(polling(reader, format!("a=8&wait=60&t=DelSession&epoch={before}")));
        are_parked(reader, &polls).await;
    }

    primary.stop(End::AtOnce).await;
    way.set(Mode::Refuse);
    standby.promote().await;
    scene.proxy.point_to(&standby.url());
    for poll in polls {
        let told = joined("a parked reader who was ahead is told", USUAL, poll).await;
        is_told_of_another_history("a parked reader who was ahead", &told, 5);
    }
    let readers = scene.at_each(&scene.ann);
    // Whether the new history has fewer or more versions than the reader.
    for more in [0, 4] {
        for number in 0..more {
            scene.send(&format!("new{number}")).await;
        }
        for reader in &readers {
            for ahead in 6..=8 {
                let told = read("a reader who was ahead", reader, &format!("a={ahead}&wait=0&epoch={before}")).await;
                is_told_of_another_history(&format!("a reader who was at {ahead}"), &told, 5 + more);
            }
            for behind in [0, 3, 5] {
                let told = read("a reader who was not", reader, &format!("a={behind}&wait=0&epoch={before}")).await;
                assert_eq!(told.status, 200, "at {behind}: {}", told.text);
                assert_eq!(told.next(), 5 + more);
            }
        }
    }
    // What was lost is sent again with its Id.
    let again = repeated("what was lost", &scene.web, "/message/send", &message("lost7")).await;
    assert_eq!(again["Version"], 10);
    // One history, whichever replica tells of it.
    assert_eq!(epoch(&readers[0]).await, epoch(&readers[1]).await);
    scene.stop().await;
}

/// What a replica was at when the primary went away: a commit whose answer did not come, and one that did not
/// reach the primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_go_on_as_soon_as_the_new_primary_takes_writes() {
    let cluster = Cluster::new();
    let primary = cluster.primary().await;
    let standby = cluster.standby(&primary, primary.port(), "one").await;
    primary.replicate_synchronously(1).await;
    let scene = Scene::on(cluster, &primary, &[]).await;
    let [web, there] = scene.at_each(&scene.web);
    scene.send("before").await;
    for replica in [&web, &there] {
        let id = format!("warm {}", replica.base.rsplit(':').next().expect("a port"));
        repeated("a warm replica", replica, "/message/send", &message(&id)).await;
    }
    let answer = scene.proxy.at_next(Passing::append(), Fate::HoldAnswer);
    let first = posting(&web, "/message/send", message("m1"));
    answer.meets(0).await;
    until("the commit is there", async || committed(&standby, "text of m1").await).await;
    let request = scene.proxy.at_next(Passing::append(), Fate::Hold);
    let second = posting(&there, "/message/send", message("m2"));
    request.meets(0).await;

    primary.stop(End::AtOnce).await;
    standby.promote().await;
    let takes_writes = Instant::now();
    scene.proxy.point_to(&standby.url());
    for (id, replica) in [("m3", &web), ("m4", &there)] {
        repeated("a send after the failover", replica, "/message/send", &message(id)).await;
        let stood_still = takes_writes.elapsed();
        println!("a writer stood still for {} ms", stood_still.as_millis());
        assert!(stood_still < STANDSTILL, "a writer stood still for {stood_still:?}");
    }
    for (id, replica, sent) in [("m1", &web, first), ("m2", &there, second)] {
        let answered = joined("a send from before the failover", USUAL, sent).await;
        let kept = repeated(id, replica, "/message/send", &message(id)).await;
        match answered.status.as_u16() {
            200 => assert_eq!(answered.json()["Version"], kept["Version"], "{id}"),
            _ => assert_eq!(answered.code(), 50300, "{id}"),
        }
    }
    let mut contents = scene.contents(0).await;
    contents.retain(|text| !text.contains("warm"));
    contents.sort();
    assert_eq!(contents, ["text of before", "text of m1", "text of m2", "text of m3", "text of m4"], "each once");
    scene.stop().await;
}

/// Whether a standby shows a message.
async fn committed(standby: &Server, text: &str) -> bool {
    let there = sqlx::query_scalar("select exists (select from messages where content = $1)").bind(text);
    there.fetch_one(&mut standby.sql().await).await.expect("a standby can be read")
}
