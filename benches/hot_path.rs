//! The pieces that every message and every poll goes through, each alone: `cargo bench`.

#![expect(clippy::unwrap_used, reason = "a bench may panic")]

use std::sync::Arc;

use bytes::Bytes;
use chrono::DateTime;
use chrono_tz::Tz;
use deskfeed::{
    domain::{
        cursor::Query,
        event::{Event, EventType, Keep, SessionCard, TypeSet, encode, encode_list},
        ids::{FeedKey, MessageId},
        message::{ContentType, Message, MessageType},
    },
    live::feed::{
        hub::Hub,
        tail::{EncodedEvent, Look, Tail},
    },
};
use divan::{Bencher, black_box, counter::ItemsCount};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

/// A 300-byte message as an event of feed 1.
fn event(version: i64) -> Event {
    Event {
        version,
        feed: FeedKey(1),
        r#type: EventType::Message,
        session: Arc::new(SessionCard {
            session_id: "4711-0815".into(),
            session_type: 0,
            from_id: "customer-42".into(),
            from_name: Some("Chris Customer".into()),
            from_image: None,
        }),
        agent: None,
        reason: None,
        messages: vec![Arc::new(Message {
            r#type: MessageType::Received,
            id: MessageId::Text("0198c0de-0000-7000-8000-000000000001".into()),
            content_type: ContentType::Text,
            content: "Where is my parcel? It was promised for today. ".repeat(7)[..300].into(),
            created_at: DateTime::from_timestamp(1_790_000_000, 0).unwrap(),
        })],
    }
}

fn encoded(versions: std::ops::Range<i64>) -> Vec<EncodedEvent> {
    let json = encode([event(1).shown()].into_iter(), Tz::UTC).unwrap().remove(0);
    versions
        .map(|version| EncodedEvent {
            version,
            feed: FeedKey(i32::try_from(version % 100).unwrap()),
            r#type: EventType::Message,
            json: json.clone(),
        })
        .collect()
}

/// Events of a page from the table, of ten sessions in turn, as a JSON array.
#[divan::bench(args = [100, 1000])]
fn encode_a_page(bencher: Bencher, events: i64) {
    let sessions: Vec<Arc<SessionCard>> = (0..10).map(|_| event(0).session).collect();
    let page: Vec<Event> = (1..=events)
        .zip(sessions.iter().cycle())
        .map(|(version, session)| Event { session: Arc::clone(session), ..event(version) })
        .collect();
    bencher.counter(ItemsCount::new(page.len())).bench(|| -> Bytes {
        let events = black_box(&page).iter().map(Event::shown);
        encode_list(events, Tz::Asia__Shanghai, Keep::First).unwrap().json
    });
}

/// Events of a batch, each of a session of its own, for the tail.
#[divan::bench(args = [1, 30, 100])]
fn encode_a_batch(bencher: Bencher, events: i64) {
    let batch: Vec<Event> = (1..=events).map(event).collect();
    bencher
        .counter(ItemsCount::new(batch.len()))
        .bench(|| -> Vec<Bytes> { encode(black_box(&batch).iter().map(Event::shown), Tz::Asia__Shanghai).unwrap() });
}

/// One batch wakes waiters, each on a feed of its own, out of ten thousand.
#[divan::bench(args = [1, 100, 1000])]
fn wake_waiters(bencher: Bencher, woken: i32) {
    let hub = Arc::new(Hub::default());
    let watches: Vec<_> = (0..10_000).map(|feed| hub.watch(FeedKey(feed))).collect();
    bencher.counter(ItemsCount::new(usize::try_from(woken).unwrap())).bench(|| hub.wake((0..woken).map(FeedKey)));
    drop(watches);
}

/// The parameters of a poll that acknowledges what it was given.
#[divan::bench(args = ["a=4711", "a=4711&wait=25&limit=1000&t=Message,DelSession&c=1-4700,4705,0198c0de-0000-7000-8000-000000000001"])]
fn parse_the_query(bencher: Bencher, text: &str) {
    bencher.bench(|| {
        let pairs = form_urlencoded::parse(black_box(text).as_bytes()).into_owned().collect();
        Query::parse(pairs).unwrap()
    });
}

/// A batch into a tail that is full.
#[divan::bench]
fn push_a_batch(bencher: Bencher) {
    const BATCH: i64 = 64;
    let tail = Tail::new();
    let mut next = 1;
    assert!(tail.push(encoded(1..200_000)));
    next += 199_999;
    bencher
        .counter(ItemsCount::new(64_usize))
        .with_inputs(|| {
            let batch = encoded(next..next + BATCH);
            next += BATCH;
            batch
        })
        .bench_local_values(|batch| assert!(tail.push(batch)));
}

/// A page out of the tail.
#[divan::bench(args = [1, 100, 1000])]
fn look_into_the_tail(bencher: Bencher, limit: i64) {
    let tail = Tail::new();
    assert!(tail.push(encoded(1..100_001)));
    bencher.counter(ItemsCount::new(usize::try_from(limit).unwrap())).bench(|| {
        let Look::Found(slice) = tail.look(FeedKey(7), black_box(1), TypeSet::ALL, limit) else {
            panic!("not covered")
        };
        assert_eq!(slice.events.len(), usize::try_from(limit).unwrap());
        slice
    });
}
