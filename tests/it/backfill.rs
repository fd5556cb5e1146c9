//! `deskfeed backfill`: a feed's history over HTTP, page by page, whatever comes between.

mod front;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::{Value, json};
use sqlx::Executor;
use tokio::time::Instant;

use self::front::{Fate, Front};
use crate::{
    export::world::{Folder, lines, path, split_header},
    support::{
        Client, TestDesk,
        postgres::ANOTHER_HISTORY,
        process::{self, Ended, command},
    },
};

/// A desk with a feed of several pages, and where its history is put.
struct World {
    desk: TestDesk,
    ann: Client,
    web: Client,
    folder: Folder,
}

impl World {
    /// Pages of small events, and of large ones, which end at their bytes.
    async fn start() -> Self {
        let desk = TestDesk::start().await;
        let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
        web.open_to("s1", "ann").await.ok();
        let world = Self { desk, ann, web, folder: Folder::new("backfill") };
        for (count, bytes) in [(1000, 10), (1000, 300), (600, 12_000), (1000, 10), (700, 10)] {
            world.send(count, bytes).await;
        }
        world
    }

    async fn send(&self, count: usize, bytes: usize) {
        let messages: Vec<Value> = (0..count)
            .map(|number| json!({"SessionId": "s1", "Content": format!("{number}\n\"{}", "中".repeat(bytes / 3))}))
            .collect();
        for messages in messages.chunks(400) {
            self.web.post("/message/send", json!(messages)).await.ok();
        }
    }

    fn file(&self) -> PathBuf {
        self.folder.file("feed.ndjson")
    }

    fn partial(&self) -> PathBuf {
        self.folder.file("feed.ndjson.partial")
    }

    /// The command line that reads a client's feed.
    fn arguments(&self, url: &str, client: &Client, more: &[&str]) -> Vec<String> {
        let file = self.file();
        let mut arguments = vec!["backfill", "--url", url, "--token", &client.token, "--out", path(&file)];
        arguments.extend(more);
        arguments.into_iter().map(str::to_owned).collect()
    }

    async fn backfill(&self, url: &str, client: &Client, more: &[&str]) -> Ended {
        let arguments = self.arguments(url, client, more);
        process::run(&arguments.iter().map(String::as_str).collect::<Vec<&str>>()).await
    }

    /// Backfills ann's feed to the end.
    async fn backfilled(&self, url: &str) -> Ended {
        let ended = self.backfill(url, &self.ann, &[]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        assert!(!self.partial().exists());
        ended
    }

    /// A backfill that is killed while it waits for its answer number `answers + 1`.
    async fn killed_after(&self, answers: usize) -> Vec<u8> {
        let front =
            Front::start(&self.ann, move |number| if number < answers { Fate::Answered } else { Fate::Held }).await;
        let arguments = self.arguments(&front.base, &self.ann, &[]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut child = command(&arguments).stderr(Stdio::null()).spawn().expect("the program runs");
        front.until_asked(answers + 1).await;
        child.kill().await.expect("it is killed");
        assert!(!self.file().exists());
        fs::read(self.partial()).expect("what it has read")
    }
}

/// All of a feed as it is now, read forwards.
async fn forward(client: &Client) -> Vec<Value> {
    let (mut events, mut after) = (Vec::new(), 0);
    loop {
        let page = client.query(&format!("a={after}&limit=1000&wait=0")).await;
        events.extend(page.events());
        after = page.next();
        if !page.more() {
            return events;
        }
    }
}

/// The events of a whole file, after a look at what is around them.
fn events(file: &Path) -> Vec<Value> {
    let bytes = fs::read(file).expect("the file");
    let mut all = lines(&bytes);
    let (header, end) = (all.remove(0), all.pop().expect("a last line"));
    assert_eq!((&header["kind"], &header["holds"]), (&json!("header"), &json!("feed")));
    assert_eq!((&end["kind"], &end["counts"]["events"]), (&json!("end"), &json!(all.len())));
    for (member, event) in [("oldest", all.first()), ("head", all.last())] {
        assert_eq!(end[member], event.map_or(json!(0), |event| event["Version"].clone()));
    }
    all
}

#[tokio::test]
async fn it_reads_what_a_forward_walk_reads() {
    let world = World::start().await;
    world.backfilled(&world.ann.base).await;
    let read = events(&world.file());
    assert_eq!(read, forward(&world.ann).await);
    assert_eq!(read.len(), 4301);
    let whole = fs::read(world.file()).expect("the file");
    assert_eq!(split_header(&whole).0["epoch"], world.ann.query("b=now").await.header("feed-epoch"));
    let there = world.backfill(&world.ann.base, &world.ann, &[]).await;
    assert!(there.code != Some(0) && there.err.contains("there already"), "{}", there.err);

    // A gateway's feed; the token in a file, the URL with a slash; a feed with nothing in it.
    let bob = world.desk.agent("bob").await;
    for (client, count) in [(&world.web, 1), (&bob, 0)] {
        fs::remove_file(world.file()).expect("the file of before");
        let token = world.folder.file("token");
        fs::write(&token, format!("{}\n", client.token)).expect("it is written");
        let (url, file) = (format!("{}/", client.base), world.file());
        let ended =
            process::run(&["backfill", "--url", &url, "--token-file", path(&token), "--out", path(&file)]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        assert_eq!(events(&file), forward(client).await);
        assert_eq!(events(&file).len(), count);
    }
}

#[tokio::test]
async fn a_killed_backfill_goes_on_where_it_was() {
    let world = World::start().await;
    let expected = forward(&world.ann).await;
    let left = world.killed_after(3).await;
    assert!(left.len() > 1_000_000, "pages are several chunks: {} bytes", left.len());
    // What happens after its beginning is not its business.
    world.send(50, 100).await;

    let front = Front::start(&world.ann, |_| Fate::Answered).await;
    let ended = world.backfilled(&front.base).await;
    assert!(ended.err.contains("continuing"), "{}", ended.err);
    assert_eq!(events(&world.file()), expected);
    let whole = fs::read(world.file()).expect("the file");
    // One look whether it is the same feed; then it goes on behind the pages that are there.
    let asked: Vec<String> = front.asked().into_iter().map(|(path, _)| path).collect();
    assert!(asked[0].contains("limit=1&") && asked.iter().skip(1).all(|path| !path.contains("b=now")), "{asked:?}");
    let all_pages = Front::start(&world.ann, |_| Fate::Answered).await;
    fs::remove_file(world.file()).expect("the file of before");
    world.backfilled(&all_pages.base).await;
    assert!(asked.len() < all_pages.asked().len(), "{} of {} pages", asked.len(), all_pages.asked().len());

    // From any page, and whatever is left behind the last whole one.
    let header = left.iter().position(|byte| *byte == b'\n').expect("a header") + 1;
    for (cut, garbage) in [
        (0, ""),
        (header / 2, ""),
        (header, ""),
        (header + 10, ""),
        (left.len() / 3, ""),
        (left.len() / 2, "\0\0"),
        (left.len() - 1, ""),
        (left.len(), "{\"e\":\"Message\"}\n"),
        (left.len(), "{\"kind\":\"seal\",\"chunk\":1,\"lines\":0,\"sha256\":\"\"}\n"),
    ] {
        fs::remove_file(world.file()).expect("the file of before");
        fs::write(world.partial(), [&left[..cut], garbage.as_bytes()].concat()).expect("it is written");
        world.backfilled(&world.ann.base).await;
        let again = events(&world.file());
        assert!(again[..expected.len()] == expected, "cut at {cut}");
        if cut > header + 10 {
            let again = fs::read(world.file()).expect("the file");
            assert!(again == whole, "cut at {cut}: the same bytes as of a run that was cut elsewhere");
        }
    }

    // Killed when all pages are there.
    fs::remove_file(world.file()).expect("the file of before");
    fs::create_dir(world.folder.file("feed.ndjson.whole")).expect("it is in the way of the last step");
    fs::write(world.partial(), &left).expect("it is written");
    let stopped = world.backfill(&world.ann.base, &world.ann, &[]).await;
    assert!(stopped.code != Some(0) && stopped.err.contains("feed.ndjson.whole"), "{}", stopped.err);
    fs::remove_dir(world.folder.file("feed.ndjson.whole")).expect("it is out of the way");
    let nobody = Front::start(&world.ann, |_| Fate::Held).await;
    world.backfilled(&nobody.base).await;
    assert_eq!(nobody.asked().len(), 0, "there is nothing left to ask");
    assert!(fs::read(world.file()).expect("the file") == whole);
}

#[tokio::test]
async fn it_asks_again_as_a_client_should() {
    let world = World::start().await;
    let front = Front::start(&world.ann, |number| match number {
        0 => Fate::Turned(503, Some(1)),
        1 | 6 => Fate::Dropped,
        2 | 7 => Fate::Cut,
        3 => Fate::Turned(429, None),
        5 => Fate::Turned(502, None),
        8 => Fate::Turned(504, Some(0)),
        _ => Fate::Answered,
    })
    .await;
    world.backfilled(&front.base).await;
    assert_eq!(events(&world.file()), forward(&world.ann).await);
    let asked = front.asked();
    assert!(asked[1].1 - asked[0].1 >= Duration::from_secs(1), "Retry-After");
    assert!(asked[..5].iter().all(|(path, _)| *path == asked[0].0), "the same is asked again");
    assert!(asked[5..10].iter().all(|(path, _)| *path == asked[5].0 && *path != asked[0].0));

    // When nothing helps it gives up, and says that it can be continued.
    fs::remove_file(world.file()).expect("the file of before");
    let front =
        Front::start(&world.ann, |number| if number < 2 { Fate::Answered } else { Fate::Turned(503, Some(60)) });
    let front = front.await;
    let gone = world.backfill(&front.base, &world.ann, &["--patience", "2"]).await;
    assert_ne!(gone.code, Some(0));
    assert!(gone.err.contains("503") && gone.err.contains("run the same command again"), "{}", gone.err);
    assert_eq!(front.asked().len(), 3, "it does not wait for what is beyond its patience");
    world.backfilled(&world.ann.base).await;
    assert_eq!(events(&world.file()), forward(&world.ann).await);
}

#[tokio::test]
async fn it_does_not_mix_feeds_or_histories() {
    let world = World::start().await;
    let left = world.killed_after(2).await;
    let refused = async |client: &Client, what: &str| {
        let refused = world.backfill(&client.base, client, &[]).await;
        assert_ne!(refused.code, Some(0));
        assert!(refused.err.contains(what), "not {what:?}: {}", refused.err);
        assert!(fs::read(world.partial()).expect("it is left") == left, "it is left as it is: {what}");
    };
    refused(&world.web, "another feed's").await;
    refused(&Client::new(&world.ann.base, "dfk_agent_nobody"), "40100").await;
    refused(&world.desk.admin, "40000").await;
    let mut sql = world.desk.sql().await;
    let epoch = world.ann.query("b=now").await.header("feed-epoch").to_owned();
    sql.execute(ANOTHER_HISTORY).await.expect("another history");
    let until = Instant::now() + process::START;
    while world.ann.query("b=now").await.header("feed-epoch") == epoch {
        assert!(Instant::now() < until, "the service does not notice");
    }
    refused(&world.ann, "start anew").await;
    fs::write(world.partial(), "something else\n").expect("it is written");
    let other = world.backfill(&world.ann.base, &world.ann, &[]).await;
    assert!(other.code != Some(0) && other.err.contains("remove it"), "{}", other.err);
}

#[tokio::test]
async fn it_ends_where_the_history_is_kept_no_more() {
    let world = World::start().await;
    let expected = forward(&world.ann).await;
    let front = Front::start(&world.ann, |number| if number < 2 { Fate::Answered } else { Fate::Problem(41000) }).await;
    world.backfilled(&front.base).await;
    let read = events(&world.file());
    assert!(!read.is_empty() && read.len() < expected.len());
    assert!(expected.ends_with(&read));
}
