//! The store holds another history than the one that readers follow.

use super::{ABOUT_A_SECOND, BOUNDED, ann_and_web, are_parked, park, park_with, within};
use crate::support::{TestDesk, postgres::ANOTHER_HISTORY};

#[tokio::test]
async fn parked_readers_who_name_their_epoch_are_told_of_another() {
    let desk = TestDesk::with(1, &["--polls-per-token", "3"]).await;
    let (ann, web) = ann_and_web(&desk).await;
    let epoch = ann.query("a=0&wait=0").await.header("feed-epoch").to_owned();
    ann.query("c=1&wait=0").await.ok();
    let after = park_with(&ann, format!("a=2&wait=60&epoch={epoch}"));
    let instant = park_with(&ann, format!("wait=60&epoch={epoch}"));
    let careless = park(&ann, 2);
    are_parked(&ann).await;

    let mut sql = desk.sql().await;
    sqlx::raw_sql(ANOTHER_HISTORY).execute(&mut sql).await.expect("a new history");
    for poll in [after, instant] {
        let refused = within(ABOUT_A_SECOND, poll).await.expect("no panic");
        assert_eq!(refused.code(), 41001);
        let problem = refused.json();
        assert_eq!(problem["head"], 2);
        assert_ne!(problem["epoch"], epoch);
        let again = ann.query(&format!("a=0&wait=0&epoch={}", problem["epoch"].as_str().expect("a name"))).await;
        assert_eq!(again.events().len(), 1, "with the epoch that it was told it goes on");
    }
    assert_eq!(ann.query(&format!("a=0&wait=0&epoch={epoch}")).await.code(), 41001);
    assert_eq!(ann.query(&format!("b=now&epoch={epoch}")).await.code(), 41001);
    web.send("s1", "text").await.ok();
    let answer = within(ABOUT_A_SECOND, careless).await.expect("no panic");
    assert_eq!(answer.contents(), ["text"]);
    assert_ne!(answer.header("feed-epoch"), epoch);
    desk.stop().await;
}

/// A dump that was restored without a new name: the head is lower, the epoch the same.
#[tokio::test]
async fn readers_above_a_head_that_went_back_are_told() {
    let desk = TestDesk::with(2, &["--polls-per-token", "2"]).await;
    let (ann, web) = ann_and_web(&desk).await;
    let ann_there = ann.at(&desk.base(1));
    for number in 0..5 {
        web.send("s1", &format!("text {number}")).await.ok();
    }
    let polls = [park(&ann, 7), park(&ann, 7), park(&ann_there, 7), park(&ann_there, 7)];
    are_parked(&ann).await;
    are_parked(&ann_there).await;

    let mut sql = desk.sql().await;
    let restore = "begin;
        alter table events disable trigger all; delete from events where version > 5; alter table events enable always trigger events_are_kept;
        commit";
    sqlx::raw_sql(restore).execute(&mut sql).await.expect("an earlier state");
    for poll in polls {
        let refused = within(ABOUT_A_SECOND, poll).await.expect("no panic");
        assert_eq!(refused.code(), 41001);
        assert_eq!(refused.json()["head"], 5);
    }
    assert_eq!(ann.query("a=7&wait=0").await.code(), 41001);
    // The versions are given anew, and every replica tells the new events.
    let sent = web.send("s1", "another text 3").await.ok();
    assert_eq!(sent["Version"], 6);
    for reader in [ann, ann_there] {
        assert_eq!(within(BOUNDED, reader.query("a=5&wait=10")).await.contents(), ["another text 3"]);
    }
    desk.stop().await;
}
