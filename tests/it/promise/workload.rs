//! The people at the desk: writers, actors and readers. Each believes only what it was answered.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use super::{
    history::{Change, Cursor, Kind, Outcome, Random, Read, Seen, Send},
    world::{Answer, Card, World, pause},
};

pub const AGENTS: [&str; 3] = ["ann", "bob", "cem"];
pub const GATEWAYS: [&str; 2] = ["web", "wechat"];
/// Sessions that are kept open at a time.
const SESSIONS: usize = 14;
/// Far above any head.
const NOWHERE: i64 = 1 << 50;
/// What a poll may take beyond the time it is to wait.
const POLL_PATIENCE: Duration = Duration::from_secs(9);

/// Writes into sessions: a gateway what customers say, an agent what they are answered.
pub async fn write(world: Arc<World>, process: String, author: &'static str, mut random: Random) {
    let is_gateway = GATEWAYS.contains(&author);
    let mut earlier: Vec<Send> = Vec::new();
    while world.is_writing() {
        pause(&mut random, 2..30).await;
        let fits =
            |card: &Card| if is_gateway { card.gateway == author } else { card.owner.as_deref() == Some(author) };
        let Some(card) = world.some_session(&mut random, fits) else { continue };
        let count = if random.one_in(5) { 2 + random.below(12) } else { 1 };
        let mut messages = Vec::new();
        for _ in 0..count {
            // Mostly one session, at times several in one batch.
            let other = if random.one_in(4) { world.some_session(&mut random, fits) } else { None };
            let session = other.unwrap_or_else(|| card.clone()).session;
            let id = world.new_id(&mut random);
            let content = format!("{id} by {author} {:x}", random.next());
            messages.push(Send { id, session, content, author: author.to_owned(), version: 0 });
        }
        if !earlier.is_empty() && random.one_in(8) {
            messages.push(random.pick(&earlier).clone());
        }
        if !earlier.is_empty() && random.one_in(20) {
            let stolen = random.pick(&earlier).clone();
            messages.push(Send { content: "another content".to_owned(), ..stolen });
        }
        earlier.extend(messages.iter().take(count).cloned());
        world.send(&process, &mut random, messages).await;
    }
}

/// Opens, hands on, releases and closes sessions; says who is there.
pub async fn act(world: Arc<World>, process: String, mut random: Random) {
    let mut count = 0;
    while world.is_writing() {
        pause(&mut random, 10..80).await;
        if world.sessions() < SESSIONS || random.one_in(4) {
            count += 1;
            open(&world, &process, &mut random, &format!("{} {count}", process.replace(' ', "-"))).await;
            continue;
        }
        let Some(card) = world.some_session(&mut random, |_| true) else { continue };
        let owner = card.owner.clone().unwrap_or_default();
        // Mostly the owner, at times an admin, at times somebody who may not.
        let caller = match random.below(12) {
            0 => String::new(),
            1 => (*random.pick(&AGENTS)).to_owned(),
            _ => owner,
        };
        let session = json!({"SessionId": card.session});
        match random.below(10) {
            0..4 => {
                let body = json!({"SessionId": card.session, "ToNewId": random.pick(&AGENTS)});
                world.change(&process, &mut random, Change::Transfer, &caller, &body).await;
            }
            4..6 => {
                world.change(&process, &mut random, Change::Release, &caller, &session).await;
            }
            6..9 => {
                if world.change(&process, &mut random, Change::Close, &caller, &session).await.is_some() {
                    world.closed(&card.session);
                }
            }
            _ => {
                let status = if random.one_in(3) { "away" } else { "online" };
                let agent = *random.pick(&AGENTS);
                world.ask(&mut random, agent, "/agent/presence", Some(&json!({"Status": status}))).await;
            }
        }
    }
}

async fn open(world: &World, process: &str, random: &mut Random, name: &str) {
    let session = name.replace(' ', "-");
    let gateway = *random.pick(&GATEWAYS);
    let mut body = json!({"SessionId": session, "FromId": format!("customer of {session}"), "FromName": "Customer"});
    if random.one_in(3) {
        body["ToId"] = json!(random.pick(&AGENTS));
    }
    // Before it is opened: its AddSession may be seen sooner than the answer.
    world.opened(Card { session: session.clone(), gateway: gateway.to_owned(), owner: None });
    if world.change(process, random, Change::Open, gateway, &body).await.is_none() {
        world.closed(&session);
    }
}

/// Follows a feed from its beginning, at any replica, until the end of the run.
pub async fn follow(
    world: Arc<World>,
    process: String,
    feed: &'static str,
    types: Vec<&'static str>,
    mut random: Random,
) {
    let (mut after, mut epoch) = (0, String::new());
    while after < world.end() {
        if random.one_in(60) {
            query(&world, &mut random, "stranger", feed, Cursor::After(NOWHERE), &Page::default()).await;
        }
        let wait = random.below(4);
        let page =
            Page { types: types.clone(), limit: 2 + random.below(60), wait, epoch: epoch.clone(), ..Page::default() };
        let Some(read) = query(&world, &mut random, &process, feed, Cursor::After(after), &page).await else {
            pause(&mut random, 20..100).await;
            continue;
        };
        (after, epoch) = (read.next, read.epoch);
        for event in &read.events {
            let event: serde_json::Value = serde_json::from_str(&event.text).expect("it was JSON");
            let session = event["Data"]["SessionId"].as_str().expect("a session");
            match event["e"].as_str() {
                Some("AddSession") => world.moved(session, feed, true),
                Some("DelSession") => world.moved(session, feed, false),
                _ => {}
            }
        }
    }
}

/// A device in instant mode, which acknowledges what it was given, though not at once and not in order.
pub async fn acknowledge(world: Arc<World>, process: String, feed: &'static str, mut random: Random) {
    let mut open: Vec<(i64, Option<String>)> = Vec::new();
    loop {
        let mut page = Page { limit: 5 + random.below(60), wait: random.below(3), ..Page::default() };
        let is_ending = world.end() != i64::MAX;
        open.retain(|(version, id)| {
            if !is_ending && random.one_in(4) {
                return true;
            }
            page.acks.push(*version);
            match id {
                Some(id) if random.one_in(2) => page.ack_ids.push(id.clone()),
                _ => page.ack_versions.push(*version),
            }
            false
        });
        let Some(read) = query(&world, &mut random, &process, feed, Cursor::Unacked, &page).await else {
            // Nobody knows whether they were recorded: again.
            open.extend(page.acks.iter().map(|version| (*version, None)));
            pause(&mut random, 20..100).await;
            continue;
        };
        if read.events.is_empty() && read.next >= world.end() {
            return;
        }
        for event in &read.events {
            let json: serde_json::Value = serde_json::from_str(&event.text).expect("it was JSON");
            let id = if json["e"] == "Message" { json["Data"]["Message"][0]["Id"].as_str() } else { None };
            open.push((event.version, id.map(str::to_owned)));
        }
        open.sort();
        open.dedup_by_key(|(version, _)| *version);
    }
}

/// Walks through the history of feeds, from the newest page backwards.
pub async fn walk(world: Arc<World>, process: String, mut random: Random) {
    while world.is_writing() {
        let feeds = [AGENTS.as_slice(), GATEWAYS.as_slice()].concat();
        let feed = *random.pick(&feeds);
        walk_once(&world, &process, feed, &mut random, 30).await;
    }
}

/// From the newest page backwards, at most `pages`.
pub async fn walk_once(world: &World, process: &str, feed: &'static str, random: &mut Random, pages: usize) {
    let mut before = None;
    let types = random.pick(&[vec![], vec!["Message"], vec!["AddSession", "DelSession"]]).clone();
    for _ in 0..pages {
        let page = Page { types: types.clone(), limit: 1 + random.below(120), ..Page::default() };
        let Some(read) = query(world, random, process, feed, Cursor::Before(before), &page).await else { return };
        if !read.more {
            return;
        }
        before = Some(read.next);
        pause(random, 5..30).await;
    }
}

/// What a query asks for besides its cursor.
#[derive(Debug, Default)]
pub struct Page {
    pub types: Vec<&'static str>,
    pub limit: usize,
    pub wait: usize,
    pub epoch: String,
    /// Versions of all events that are acknowledged, in whatever way.
    pub acks: Vec<i64>,
    pub ack_versions: Vec<i64>,
    pub ack_ids: Vec<String>,
}

/// One query at any replica; None when it was not answered with events.
pub async fn query(
    world: &World,
    random: &mut Random,
    process: &str,
    feed: &str,
    cursor: Cursor,
    page: &Page,
) -> Option<Read> {
    let limit = if page.limit == 0 { 100 } else { page.limit };
    let mut body = json!({"limit": limit, "wait": page.wait, "t": page.types.join(",")});
    match cursor {
        Cursor::After(after) => body["a"] = json!(after),
        Cursor::Before(Some(before)) => body["b"] = json!(before),
        Cursor::Before(None) => body["b"] = json!("now"),
        Cursor::Unacked => {}
    }
    if !page.epoch.is_empty() {
        body["epoch"] = json!(page.epoch);
    }
    if !page.acks.is_empty() {
        let versions = page.ack_versions.iter().map(i64::to_string);
        body["c"] = json!(versions.chain(page.ack_ids.iter().cloned()).collect::<Vec<String>>());
    }
    let base = random.pick(&world.bases()).clone();
    let invoked = world.recorder.now();
    let patience = Duration::from_secs(u64::try_from(page.wait).expect("fits")) + POLL_PATIENCE;
    let Answer { outcome, json, headers } = world.ask_at(&base, feed, "/message/query", Some(&body), patience).await;
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let events = json.as_array().map_or(&[][..], Vec::as_slice);
    let read = Read {
        feed: feed.to_owned(),
        cursor,
        types: page.types.clone(),
        limit,
        waited: page.wait > 0,
        acks: page.acks.clone(),
        ack_ids: page.ack_ids.clone(),
        events: events
            .iter()
            .map(|event| Seen { version: event["Version"].as_i64().expect("a version"), text: event.to_string() })
            .collect(),
        next: header("feed-next").parse().unwrap_or(0),
        more: header("feed-more") == "true",
        epoch: header("feed-epoch").to_owned(),
    };
    world.recorder.note(process, invoked, outcome, Kind::Read(read.clone()));
    (outcome == Outcome::Ok).then_some(read)
}
