//! The JSON of events. The only file that knows the shape of `Data`.
//!
//! A page has up to a thousand events, so what the events of a session have in common is written once
//! and copied, and the few fields of a message are written by hand; tests compare them with what serde
//! makes of the same.

use std::ops::Range;

use bytes::Bytes;
use chrono::{DateTime, Datelike, Timelike, Utc};
use chrono_tz::Tz;
use serde::{Serialize, Serializer};

use super::{EventType, Messages, Profile, SessionCard, Shown};
use crate::domain::{
    ids::MessageId,
    limits,
    message::{ContentType, Message, MessageType, MessageView},
};

/// `CreateTime` and its like: `yyyy-MM-dd HH:mm:ss` in the configured zone.
pub fn wire_time(time: DateTime<Utc>, zone: Tz) -> String {
    WireTime::new(time, zone).as_str().to_owned()
}

/// The text of [`wire_time`]. Written by hand, digit by digit: every event of every page has one.
#[derive(Debug)]
struct WireTime([u8; 19]);

impl WireTime {
    fn new(time: DateTime<Utc>, zone: Tz) -> Self {
        let local = time.with_timezone(&zone).naive_local();
        let mut text = *b"0000-00-00 00:00:00";
        let year = u32::try_from(local.year()).unwrap_or(0);
        for (at, number) in [
            (0, year / 100),
            (2, year % 100),
            (5, local.month()),
            (8, local.day()),
            (11, local.hour()),
            (14, local.minute()),
            (17, local.second()),
        ] {
            for (digit, value) in [(at, number / 10 % 10), (at + 1, number % 10)] {
                text[digit] = b"0123456789"[value as usize];
            }
        }
        Self(text)
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Serialize for WireTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// An entry of `Message`, as session history and session lists show it; events have the same.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct MessageEntry<'a> {
    r#type: i16,
    id: &'a MessageId,
    content_type: &'static str,
    content: &'a str,
    create_time: WireTime,
}

impl<'a> MessageEntry<'a> {
    pub fn new(message: &'a Message, zone: Tz) -> Self {
        Self {
            r#type: message.r#type.number(),
            id: &message.id,
            content_type: content_type(message.content_type),
            content: &message.content,
            create_time: WireTime::new(message.created_at, zone),
        }
    }
}

fn content_type(content_type: ContentType) -> &'static str {
    match content_type {
        ContentType::Text => "0",
        ContentType::Image => "1",
    }
}

/// `Data` up to its messages.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct OpeningJson<'a> {
    r#type: i32,
    session_id: &'a str,
    session_type: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_image: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to_image: Option<&'a str>,
}

/// One side of a conversation: id, name, image.
type Party<'a> = (Option<&'a str>, Option<&'a str>, Option<&'a str>);

/// What decides how the `Data` of an event begins.
#[derive(Clone, Copy)]
struct Begins<'a> {
    data_type: i32,
    session: &'a SessionCard,
    agent: Option<&'a Profile>,
    /// From the agent to the customer.
    by_agent: bool,
}

impl<'a> Begins<'a> {
    fn new(event: &Shown<'a>) -> Self {
        let first = match event.messages {
            Messages::One(message) => Some(message.r#type),
            Messages::Many(messages) => messages.first().map(|message| message.r#type),
        };
        let by_agent = event.r#type == EventType::Message && first == Some(MessageType::Sent);
        Self { data_type: event.r#type.data_type(), session: event.session, agent: event.agent, by_agent }
    }

    /// Whether it is the very same; two that are equal may be told apart.
    fn is(&self, other: &Self) -> bool {
        let same_agent = match (self.agent, other.agent) {
            (Some(one), Some(two)) => std::ptr::eq(one, two),
            (None, None) => true,
            _ => false,
        };
        (self.data_type, self.by_agent) == (other.data_type, other.by_agent)
            && std::ptr::eq(self.session, other.session)
            && same_agent
    }

    /// From is who wrote or opened, To is who receives.
    fn write(&self, bytes: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        let session = self.session;
        let customer: Party<'_> = (Some(&session.from_id), session.from_name.as_deref(), session.from_image.as_deref());
        let agent: Party<'_> = self.agent.map_or((None, None, None), |agent| {
            (Some(agent.agent_id.as_str()), agent.name.as_deref(), agent.image.as_deref())
        });
        let (from, to) = if self.by_agent { (agent, customer) } else { (customer, agent) };
        let json = OpeningJson {
            r#type: self.data_type,
            session_id: &session.session_id,
            session_type: session.session_type,
            from_id: from.0,
            from_name: from.1,
            from_image: from.2,
            to_id: to.0,
            to_name: to.1,
            to_image: to.2,
        };
        serde_json::to_writer(bytes, &json)
    }
}

/// How many beginnings are looked through for one that is the same: agents have about so many
/// sessions at a time.
const BEGINNINGS: usize = 8;

/// Writes events one behind the other.
struct Encoder<'a> {
    zone: Tz,
    bytes: Vec<u8>,
    /// Beginnings of `Data` and where they lie in `bytes`, newest last.
    beginnings: Vec<(Begins<'a>, Range<usize>)>,
}

impl<'a> Encoder<'a> {
    /// With room for `events` and what surrounds them, so that little is moved once it is written.
    fn with_room_for(events: impl Iterator<Item = Shown<'a>>, zone: Tz) -> Self {
        let room: usize = events.map(|event| event.content_bytes() + 360).sum();
        Self { zone, bytes: Vec::with_capacity(room + 2), beginnings: Vec::new() }
    }

    fn push(&mut self, event: &Shown<'a>) -> Result<(), serde_json::Error> {
        self.put(br#"{"e":""#);
        self.put(event.r#type.name().as_bytes());
        self.put(br#"","Version":"#);
        serde_json::to_writer(&mut self.bytes, &event.version)?;
        self.put(br#","Data":"#);
        self.push_beginning(event)?;
        // In place of the brace that ends it.
        self.bytes.pop();
        self.put(br#","Message":["#);
        match event.messages {
            Messages::One(message) => self.push_message(&message)?,
            Messages::Many(messages) => {
                for (position, message) in messages.iter().enumerate() {
                    if position > 0 {
                        self.bytes.push(b',');
                    }
                    self.push_message(&message.view())?;
                }
            }
        }
        self.bytes.push(b']');
        if let Some(reason) = event.reason {
            self.put(br#","Reason":""#);
            self.put(reason.name().as_bytes());
            self.bytes.push(b'"');
        }
        self.put(b"}}");
        Ok(())
    }

    fn push_beginning(&mut self, event: &Shown<'a>) -> Result<(), serde_json::Error> {
        let begins = Begins::new(event);
        let lately = &self.beginnings[self.beginnings.len().saturating_sub(BEGINNINGS)..];
        if let Some((_, place)) = lately.iter().rev().find(|(other, _)| other.is(&begins)) {
            self.bytes.extend_from_within(place.clone());
            return Ok(());
        }
        let start = self.bytes.len();
        begins.write(&mut self.bytes)?;
        self.beginnings.push((begins, start..self.bytes.len()));
        Ok(())
    }

    /// As [`MessageEntry`].
    fn push_message(&mut self, message: &MessageView<'_>) -> Result<(), serde_json::Error> {
        self.put(match message.r#type {
            MessageType::Received => br#"{"Type":0,"Id":""#,
            MessageType::Sent => br#"{"Type":1,"Id":""#,
        });
        match message.id {
            MessageId::Uuid(id) => {
                self.put(id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()).as_bytes());
                self.bytes.push(b'"');
            }
            MessageId::Text(text) => {
                self.bytes.pop();
                self.push_text(text)?;
            }
        }
        self.put(br#","ContentType":""#);
        self.put(content_type(message.content_type).as_bytes());
        self.put(br#"","Content":"#);
        self.push_text(message.content)?;
        self.put(br#","CreateTime":""#);
        self.put(&WireTime::new(message.created_at, self.zone).0);
        self.put(br#""}"#);
        Ok(())
    }

    fn push_text(&mut self, text: &str) -> Result<(), serde_json::Error> {
        // Without a branch, so that it is done for many bytes at a time. What JSON must escape is left to serde.
        let escapes = text
            .bytes()
            .fold(0_u8, |found, byte| found | u8::from(byte < b' ') | u8::from(byte == b'"') | u8::from(byte == b'\\'));
        if escapes != 0 {
            return serde_json::to_writer(&mut self.bytes, text);
        }
        self.bytes.push(b'"');
        self.put(text.as_bytes());
        self.bytes.push(b'"');
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
}

impl Shown<'_> {
    fn content_bytes(&self) -> usize {
        match self.messages {
            Messages::One(message) => message.content.len(),
            // An entry beyond the first has to be surrounded, too.
            Messages::Many(messages) => messages.iter().map(|message| message.content.len() + 130).sum(),
        }
    }
}

/// Events, each as the wire shows it. Made once, in one piece of memory; readers share the bytes.
///
/// # Errors
/// Never in practice: the shape holds nothing that JSON cannot.
pub fn encode<'a>(events: impl Iterator<Item = Shown<'a>> + Clone, zone: Tz) -> Result<Vec<Bytes>, serde_json::Error> {
    let mut encoder = Encoder::with_room_for(events.clone(), zone);
    let mut ends = Vec::with_capacity(events.size_hint().0);
    for event in events {
        encoder.push(&event)?;
        ends.push(encoder.bytes.len());
    }
    let mut bytes = Bytes::from(encoder.bytes);
    let mut start = 0;
    Ok(ends.into_iter().map(|end| bytes.split_to(end - std::mem::replace(&mut start, end))).collect())
}

/// Which events stay when a list would be too long for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    First,
    Last,
}

/// A JSON array of events.
#[derive(Debug)]
pub struct List {
    pub json: Bytes,
    /// How many it holds.
    pub count: usize,
}

/// As many of the events as fit an answer ([`limits::ANSWER_BYTES_MAX`]); one always fits.
///
/// # Errors
/// As [`encode`].
pub fn encode_list<'a>(
    events: impl ExactSizeIterator<Item = Shown<'a>> + Clone,
    zone: Tz,
    keep: Keep,
) -> Result<List, serde_json::Error> {
    let mut encoder = Encoder::with_room_for(events.clone(), zone);
    let mut starts: Vec<usize> = Vec::with_capacity(events.len());
    for event in events {
        starts.push(encoder.bytes.len());
        encoder.bytes.push(b',');
        encoder.push(&event)?;
        if keep == Keep::First && encoder.bytes.len() > limits::ANSWER_BYTES_MAX && starts.len() > 1 {
            encoder.bytes.truncate(starts.pop().unwrap_or_default());
            break;
        }
    }
    let bytes = &mut encoder.bytes;
    let surplus = bytes.len().saturating_sub(limits::ANSWER_BYTES_MAX);
    let first = starts.partition_point(|start| *start < surplus).min(starts.len().saturating_sub(1));
    let first = if keep == Keep::Last { first } else { 0 };
    match starts.get(first) {
        Some(start) => bytes[*start] = b'[',
        None => bytes.push(b'['),
    }
    bytes.push(b']');
    let start = starts.get(first).copied().unwrap_or_default();
    Ok(List { json: Bytes::from(encoder.bytes).slice(start..), count: starts.len() - first })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::{
        event::{Event, Reason},
        ids::FeedKey,
    };

    fn message(r#type: MessageType, id: &str, content: &str) -> Message {
        Message {
            r#type,
            id: MessageId::from_text(id.to_owned()),
            content_type: ContentType::Text,
            content: content.to_owned(),
            created_at: "2026-11-22T23:30:00Z".parse().unwrap(),
        }
    }

    fn event(r#type: EventType, messages: Vec<Message>) -> Event {
        Event {
            version: 4711,
            feed: FeedKey(1),
            r#type,
            session: Arc::new(SessionCard {
                session_id: "s-1".into(),
                session_type: 3,
                from_id: "c-1".into(),
                from_name: Some("Customer".into()),
                from_image: None,
            }),
            agent: Some(Arc::new(Profile { agent_id: "ann".into(), name: Some("Ann".into()), image: None })),
            reason: (r#type == EventType::DelSession).then_some(Reason::Transferred),
            messages: messages.into_iter().map(Arc::new).collect(),
        }
    }

    fn shown(event: &Event, zone: Tz) -> Value {
        serde_json::from_slice(&encode([event.shown()].into_iter(), zone).unwrap()[0]).unwrap()
    }

    #[test]
    fn a_customers_message_goes_from_the_customer_to_the_agent() {
        let message = message(MessageType::Received, "m-1", "你好 \"desk\"\n");
        let shown = shown(&event(EventType::Message, vec![message]), chrono_tz::Asia::Shanghai);
        let expected = json!({"e": "Message", "Version": 4711, "Data": {
            "Type": 0, "SessionId": "s-1", "SessionType": 3, "FromId": "c-1", "FromName": "Customer", "ToId": "ann", "ToName": "Ann",
            "Message": [{"Type": 0, "Id": "m-1", "ContentType": "0", "Content": "你好 \"desk\"\n", "CreateTime": "2026-11-23 07:30:00"}]}});
        assert_eq!(shown, expected);
    }

    #[test]
    fn an_agents_message_goes_the_other_way() {
        let shown = shown(&event(EventType::Message, vec![message(MessageType::Sent, "m-1", "x")]), Tz::UTC);
        assert_eq!((&shown["Data"]["FromId"], &shown["Data"]["ToId"]), (&"ann".into(), &"c-1".into()));
    }

    #[test]
    fn a_session_that_leaves_says_why() {
        let shown = shown(&event(EventType::DelSession, vec![]), Tz::UTC);
        assert_eq!((&shown["Data"]["Type"], &shown["Data"]["Reason"]), (&1.into(), &"transferred".into()));
        assert_eq!(shown["Data"]["Message"], json!([]));
    }

    #[test]
    fn each_event_shows_its_own_session_agent_and_direction() {
        // More of them than beginnings are remembered, and each comes again.
        let mut events: Vec<Event> = Vec::new();
        for (number, sort) in (0..60).zip((0..30).cycle()) {
            let author = if sort % 2 == 0 { MessageType::Received } else { MessageType::Sent };
            let mut event = event(EventType::Message, vec![message(author, &format!("m-{number}"), "x")]);
            event.version = number;
            event.session = Arc::new(SessionCard { session_id: format!("s-{sort}"), ..(*event.session).clone() });
            event.agent =
                (sort % 3 > 0).then(|| Arc::new(Profile { agent_id: format!("a-{sort}"), name: None, image: None }));
            if let Some(earlier) = events.get(usize::try_from(number - 30).unwrap_or(usize::MAX)) {
                (event.session, event.agent) = (Arc::clone(&earlier.session), earlier.agent.clone());
            }
            events.push(event);
        }
        let together = encode(events.iter().map(Event::shown), Tz::UTC).unwrap();
        for (event, together) in events.iter().zip(&together) {
            let alone = encode([event.shown()].into_iter(), Tz::UTC).unwrap();
            assert_eq!(*together, alone[0]);
            let shown: Value = serde_json::from_slice(together).unwrap();
            assert_eq!(shown["Data"]["SessionId"], *event.session.session_id);
        }
    }

    #[test]
    fn a_list_keeps_what_fits_an_answer_at_the_end_that_is_asked_for() {
        let third = "x".repeat(limits::ANSWER_BYTES_MAX / 3);
        let events: Vec<Event> = (1..=4)
            .map(|version| Event {
                version,
                ..event(EventType::Message, vec![message(MessageType::Sent, "m", &third)])
            })
            .collect();
        let versions = |events: &[Event], keep| {
            let list = encode_list(events.iter().map(Event::shown), Tz::UTC, keep).unwrap();
            let shown: Vec<Value> = serde_json::from_slice(&list.json).unwrap();
            assert_eq!(shown.len(), list.count);
            shown.iter().map(|event| event["Version"].as_i64().unwrap()).collect::<Vec<i64>>()
        };
        assert_eq!(versions(&events, Keep::First), [1, 2]);
        assert_eq!(versions(&events, Keep::Last), [3, 4]);
        assert_eq!(versions(&events[..2], Keep::First), [1, 2]);
        assert_eq!(versions(&events[..2], Keep::Last), [1, 2]);
        assert_eq!(versions(&[], Keep::First), [0; 0]);
        assert_eq!(versions(&[], Keep::Last), [0; 0]);
        let whole = "\n".repeat(limits::ANSWER_BYTES_MAX);
        let large = event(EventType::Message, vec![message(MessageType::Sent, "m", &whole)]);
        assert_eq!(versions(&[large.clone(), large.clone()], Keep::First), [4711]);
        assert_eq!(versions(&[large.clone(), large], Keep::Last), [4711]);
    }

    proptest! {
        #[test]
        fn a_message_in_an_event_is_as_it_is_elsewhere(content in any::<String>(), id in "[ -~äü€]{1,64}", image in any::<bool>(), seconds in 0..4_000_000_000_i64) {
            let mut message = message(MessageType::Received, &id, &content);
            message.created_at = DateTime::from_timestamp(seconds, 0).unwrap();
            if image {
                message.content_type = ContentType::Image;
            }
            let zone = chrono_tz::Europe::Berlin;
            let expected = serde_json::to_string(&MessageEntry::new(&message, zone)).unwrap();
            let shown = encode([event(EventType::Message, vec![message]).shown()].into_iter(), zone).unwrap();
            let shown = std::str::from_utf8(&shown[0]).unwrap();
            prop_assert!(shown.ends_with(&format!("\"Message\":[{expected}]}}}}")), "{shown}");
        }
    }
}
