//! GET and POST /message/query.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::support::TestDesk;

#[tokio::test]
async fn a_parked_poll_is_answered_by_the_event_it_waits_for() {
    let desk = TestDesk::start().await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    let poll = tokio::spawn({
        let ann = ann.clone();
        async move { ann.query("a=2&wait=30").await }
    });
    web.send("s1", "hello").await.ok();
    let answer = timeout(Duration::from_secs(10), poll).await.expect("the poll is answered").expect("no panic");
    assert_eq!(answer.contents(), ["hello"]);
    assert_eq!((answer.versions(), answer.next(), answer.more()), (vec![3], 3, false));
}

#[tokio::test]
async fn an_empty_poll_ends_in_the_last_tenth_of_its_wait() {
    let desk = TestDesk::start().await;
    let ann = desk.agent("ann").await;
    let started = Instant::now();
    let answer = ann.query("a=0&wait=2").await;
    let waited = started.elapsed();
    assert_eq!(answer.events().len(), 0);
    assert_eq!(answer.next(), 0);
    assert!(waited >= Duration::from_millis(1790), "{waited:?}");
}
