//! The checker, checked: a good history passes, and each way of breaking it is called by its name.

use serde_json::json;

use super::{
    checker::check,
    history::{Change, Cursor, Final, Kept, Kind, Logged, Op, Outcome, Read, Seen, Send, Session},
};

/// (version, feed, type, reason, message)
const LOG: [(i64, &str, &str, &str, Option<&str>); 11] = [
    (1, "ann", "AddSession", "", None),
    (2, "web", "AddSession", "", None),
    (3, "ann", "Message", "", Some("m1")),
    (4, "ann", "Message", "", Some("m2")),
    (5, "web", "Message", "", Some("m2")),
    (6, "ann", "DelSession", "transferred", None),
    (7, "bob", "AddSession", "", None),
    (8, "web", "AddSession", "", None),
    (9, "bob", "Message", "", Some("m3")),
    (10, "bob", "DelSession", "closed", None),
    (11, "web", "DelSession", "closed", None),
];

// Positions of the good history's operations.
const SEND_1: usize = 1;
const READ_1: usize = 2;
const SEND_2: usize = 3;
const DEVICE_1: usize = 5;
const SEND_3: usize = 6;
const READ_2: usize = 7;
const DEVICE_2: usize = 8;
const WALK_NEWEST: usize = 10;
const WALK: usize = 11;
const DEVICE_END: usize = 12;
const READ_END: usize = 13;

/// What the operations were done to, and the operations.
struct Case {
    ops: Vec<Op>,
    end: Final,
}

impl Case {
    /// A session is opened for Ann, handed on to Bob and closed; everybody reads along.
    fn good() -> Self {
        let log = LOG.map(|(version, feed, r#type, reason, message)| Logged {
            version,
            feed: feed.to_owned(),
            r#type,
            session: "s1".to_owned(),
            reason,
            message: message.map(str::to_owned),
        });
        let kept = [("m1", "web", 3), ("m2", "ann", 4), ("m3", "web", 9)].into_iter().zip(1..);
        let kept = kept.map(|((id, author, version), seq)| Kept {
            id: id.to_owned(),
            session: "s1".to_owned(),
            content: format!("text of {id}"),
            author: author.to_owned(),
            version,
            seq,
        });
        let end = Final {
            log: log.to_vec(),
            kept: kept.collect(),
            numbers: (1..=3).map(|number| ("s1".to_owned(), number)).collect(),
            histories: 1,
            gateways: vec!["web".to_owned()],
            readers: vec!["reader ann".to_owned(), "device bob".to_owned()],
        };
        let mut case = Self { ops: Vec::new(), end };
        case.change(Change::Open, "web", 1);
        case.send("gateway", "m1", "web", 3);
        case.read("reader ann", "ann", Cursor::After(0), &[1, 3], 3);
        case.send("agent", "m2", "ann", 4);
        case.change(Change::Transfer, "ann", 6);
        case.read("device bob", "bob", Cursor::Unacked, &[7], 8);
        case.send("gateway", "m3", "web", 9);
        case.read("reader ann", "ann", Cursor::After(3), &[4, 6], 9);
        case.read("device bob", "bob", Cursor::Unacked, &[9], 9);
        case.acks(&[7]);
        case.change(Change::Close, "bob", 10);
        case.read("walker", "web", Cursor::Before(None), &[2, 5, 8, 11], 2);
        case.read("walker", "ann", Cursor::Before(Some(6)), &[1, 3, 4], 1);
        case.read("device bob", "bob", Cursor::Unacked, &[], 11);
        case.acks(&[9, 10]);
        case.read("reader ann", "ann", Cursor::After(9), &[], 11);
        case
    }

    fn add(&mut self, process: &str, kind: Kind) {
        let invoked = 10 * u64::try_from(self.ops.len()).expect("fits");
        let op = Op { process: process.to_owned(), invoked, returned: invoked + 5, outcome: Outcome::Ok, kind };
        self.ops.push(op);
    }

    fn send(&mut self, process: &str, id: &str, author: &str, version: i64) {
        let content = format!("text of {id}");
        let (id, session, author) = (id.to_owned(), "s1".to_owned(), author.to_owned());
        self.add(process, Kind::Send(Send { id, session, content, author, version }));
    }

    fn change(&mut self, change: Change, caller: &str, version: i64) {
        let (session, caller) = ("s1".to_owned(), caller.to_owned());
        self.add("actor", Kind::Session(Session { change, session, caller, version }));
    }

    fn read(&mut self, process: &str, feed: &str, cursor: Cursor, versions: &[i64], next: i64) {
        let events = versions.iter().map(|version| self.seen(*version)).collect();
        let (feed, epoch) = (feed.to_owned(), "e".to_owned());
        let read = Read {
            feed,
            cursor,
            types: vec![],
            limit: 100,
            waited: false,
            acks: vec![],
            ack_ids: vec![],
            events,
            next,
            more: false,
            epoch,
        };
        self.add(process, Kind::Read(read));
    }

    /// Acknowledgements of the newest read.
    fn acks(&mut self, versions: &[i64]) {
        let newest = self.ops.len() - 1;
        self.read_at(newest).acks = versions.to_vec();
    }

    fn seen(&self, version: i64) -> Seen {
        let logged = self.end.log.iter().find(|logged| logged.version == version).expect("it is there");
        let ids: &[&str] = match (version, &logged.message) {
            (7, _) => &["m1", "m2"],
            (_, Some(id)) => &[id.as_str()],
            _ => &[],
        };
        let messages: Vec<_> = ids.iter().map(|id| json!({"Id": id, "Content": format!("text of {id}")})).collect();
        let data = json!({"SessionId": "s1", "Message": messages});
        Seen { version, text: json!({"e": logged.r#type, "Version": version, "Data": data}).to_string() }
    }

    fn read_at(&mut self, position: usize) -> &mut Read {
        match &mut self.ops[position].kind {
            Kind::Read(read) => read,
            other => panic!("{other:?}"),
        }
    }

    fn send_at(&mut self, position: usize) -> &mut Send {
        match &mut self.ops[position].kind {
            Kind::Send(send) => send,
            other => panic!("{other:?}"),
        }
    }

    fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = check(&self.ops, &self.end).iter().map(|violation| violation.invariant).collect();
        names.dedup();
        names
    }
}

/// Breaks a good history; the checker must name at least this invariant, and first of all it.
#[track_caller]
fn breaks(invariant: &str, how: impl FnOnce(&mut Case)) {
    let mut case = Case::good();
    how(&mut case);
    let found = check(&case.ops, &case.end);
    assert!(case.names().contains(&invariant), "expected {invariant}: {found:#?}");
}

/// As [`breaks`], where nothing else is broken by it.
#[track_caller]
fn breaks_only(invariant: &str, how: impl FnOnce(&mut Case)) {
    let mut case = Case::good();
    how(&mut case);
    assert_eq!(case.names(), [invariant], "{:#?}", check(&case.ops, &case.end));
}

#[test]
fn a_good_history_passes() {
    assert_eq!(Case::good().names(), Vec::<&str>::new());
}

#[test]
fn i1_an_answered_send_that_is_lost_or_changed() {
    breaks("I1", |case| case.send("gateway", "m4", "web", 0));
    breaks_only("I1", |case| case.end.kept[2].version = 8);
    breaks("I1", |case| case.end.kept[0].content = "other".to_owned());
}

#[test]
fn i2_an_id_twice() {
    breaks_only("I2", |case| {
        let again = case.end.kept[0].clone();
        case.end.kept.push(again);
    });
    breaks("I2", |case| {
        // A retry whose first attempt had been kept.
        case.send("gateway", "m1", "web", 9);
    });
    breaks("I2", |case| case.end.log[3].message = Some("m1".to_owned()));
}

#[test]
fn i3_a_version_with_two_contents() {
    breaks_only("I3", |case| {
        let text = case.seen(3).text.replace("Version", "version");
        case.read_at(READ_1).events[1].text = text;
    });
    breaks_only("I3", |case| {
        // AddSession without the first of its messages.
        let text = case.seen(7).text.replace("{\"Content\":\"text of m1\",\"Id\":\"m1\"},", "");
        assert_ne!(text, case.seen(7).text);
        case.read_at(DEVICE_1).events[0].text = text;
    });
}

#[test]
fn i4_what_was_refused_or_is_not_there_can_be_read() {
    breaks_only("I4", |case| case.ops[SEND_1].outcome = Outcome::Fail(40900));
    breaks("I4", |case| {
        let ghost = Seen { version: 12, text: case.seen(3).text };
        case.read_at(READ_END).events.push(ghost);
    });
}

#[test]
fn i5_a_reader_is_skipped_given_twice_or_out_of_order() {
    breaks_only("I5", |case| drop(case.read_at(READ_1).events.remove(1)));
    breaks_only("I5", |case| {
        let again = case.seen(3);
        case.read_at(READ_2).events.insert(0, again);
    });
    breaks_only("I5", |case| case.read_at(READ_2).events.reverse());
    breaks_only("I5", |case| {
        let foreign = case.seen(7);
        case.read_at(READ_2).events.push(foreign);
    });
}

#[test]
fn i6_an_event_appears_below_what_a_reader_was_given() {
    // The send of version 9 was still going on when Bob's device was led past it.
    breaks_only("I6", |case| {
        case.ops[SEND_3].invoked = case.ops[DEVICE_1].invoked;
        case.read_at(DEVICE_1).next = 9;
    });
    breaks_only("I6", |case| {
        case.ops[SEND_2].invoked = case.ops[READ_1].invoked;
        case.read_at(READ_1).next = 4;
    });
}

#[test]
fn i7_the_order_contradicts_real_time() {
    breaks("I7", |case| {
        // m1 began after m2 was answered.
        case.ops[SEND_1].invoked = 36;
        case.ops[SEND_1].returned = 37;
    });
}

#[test]
fn i8_pages_backwards_differ() {
    breaks_only("I8", |case| drop(case.read_at(WALK).events.remove(1)));
    breaks_only("I8", |case| drop(case.read_at(WALK_NEWEST).events.remove(0)));
}

#[test]
fn i9_two_ends_two_owners_or_something_after_the_end() {
    breaks("I9", |case| case.change(Change::Close, "bob", 9));
    breaks("I9", |case| case.end.log[5].feed = "bob".to_owned());
    breaks("I9", |case| {
        case.send("gateway", "m4", "web", 0);
        let kept =
            Kept { id: "m4".to_owned(), content: "text of m4".to_owned(), version: 0, ..case.end.kept[0].clone() };
        case.end.kept.push(kept);
    });
    breaks("I9", |case| {
        case.send_at(SEND_2).author = "bob".to_owned();
        case.end.kept[1].author = "bob".to_owned();
    });
}

#[test]
fn i10_acknowledged_events_come_back_or_others_do_not() {
    breaks_only("I10", |case| {
        let acked = case.seen(7);
        case.read_at(DEVICE_END).events.insert(0, acked);
        case.end.readers.truncate(1);
    });
    breaks_only("I10", |case| drop(case.read_at(DEVICE_2).events.remove(0)));
}

#[test]
fn i11_somebody_is_left_behind() {
    breaks_only("I11", |case| case.end.readers.push("reader of the moon".to_owned()));
    breaks_only("I11", |case| drop(case.ops.pop()));
    breaks_only("I11", |case| {
        case.read("healed reader", "ann", Cursor::After(9), &[], 11);
        case.ops.last_mut().expect("it was added").outcome = Outcome::Unknown;
    });
}

#[test]
fn i13_cursors_and_epochs() {
    breaks_only("I13", |case| case.read("stranger", "ann", Cursor::After(12), &[], 12));
    breaks_only("I13", |case| case.ops[READ_2].outcome = Outcome::Fail(41001));
    breaks_only("I13", |case| case.read_at(DEVICE_END).epoch = "f".to_owned());
    // After a failover, but not to and fro.
    let mut case = Case::good();
    case.end.histories = 2;
    case.read_at(DEVICE_END).epoch = "f".to_owned();
    case.read_at(READ_END).epoch = "f".to_owned();
    assert_eq!(case.names(), Vec::<&str>::new());
    breaks_only("I13", |case| {
        case.end.histories = 2;
        case.read_at(READ_2).epoch = "f".to_owned();
        case.read_at(READ_END).epoch = "g".to_owned();
    });
    breaks_only("I13", |case| {
        case.end.histories = 2;
        for epoch in ["e", "f"] {
            case.read("scanner 1 of ann", "ann", Cursor::After(9), &[], 11);
            let newest = case.ops.len() - 1;
            case.read_at(newest).epoch = epoch.to_owned();
        }
    });
}

#[test]
fn i14_a_read_that_does_not_see_what_was_answered() {
    breaks_only("I14", |case| case.read("late", "ann", Cursor::After(6), &[], 6));
    breaks_only("I14", |case| {
        case.read("late", "web", Cursor::Before(None), &[2, 5, 8], 2);
    });
}

#[test]
fn i15_versions_with_a_hole() {
    breaks("I15", |case| drop(case.end.log.remove(1)));
}

#[test]
fn i16_messages_with_one_number_without_one_or_out_of_order() {
    breaks_only("I16", |case| case.end.numbers[2].1 = 2);
    breaks_only("I16", |case| case.end.numbers[2].1 = 4);
    breaks_only("I16", |case| case.end.numbers.swap(0, 1));
    // Each session has its own.
    breaks_only("I16", |case| case.end.numbers[1].0 = "s2".to_owned());
}
