//! Events and their JSON. The only file that knows the shape of `Data`.

use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Datelike, Timelike, Utc};
use chrono_tz::Tz;
use serde::{Serialize, Serializer};

use super::{
    ids::{FeedKey, MessageId},
    message::Message,
};

/// What an event tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventType {
    AddSession,
    Message,
    DelSession,
}

impl EventType {
    pub const ALL: [Self; 3] = [Self::AddSession, Self::Message, Self::DelSession];

    /// As `e` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AddSession => "AddSession",
            Self::Message => "Message",
            Self::DelSession => "DelSession",
        }
    }

    /// As the database keeps it.
    pub fn number(self) -> i16 {
        match self {
            Self::AddSession => 0,
            Self::Message => 1,
            Self::DelSession => 2,
        }
    }

    pub fn from_number(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|r#type| r#type.number() == number)
    }

    /// `Data.Type` (wire contract).
    fn data_type(self) -> i32 {
        match self {
            Self::AddSession | Self::Message => 0,
            Self::DelSession => 1,
        }
    }
}

/// Some of the event types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeSet(u8);

impl TypeSet {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self(0b111);

    #[must_use]
    pub fn with(self, r#type: EventType) -> Self {
        Self(self.0 | 1 << r#type.number())
    }

    pub fn has(self, r#type: EventType) -> bool {
        self.0 & 1 << r#type.number() != 0
    }
}

/// Why a session left a feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Closed,
    Transferred,
    Released,
}

impl Reason {
    pub fn number(self) -> i16 {
        match self {
            Self::Closed => 1,
            Self::Transferred => 2,
            Self::Released => 3,
        }
    }

    pub fn from_number(number: i16) -> Option<Self> {
        [Self::Closed, Self::Transferred, Self::Released].into_iter().find(|reason| reason.number() == number)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Transferred => "transferred",
            Self::Released => "released",
        }
    }
}

/// What an event shows of its session. Never changes after the session is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionCard {
    pub session_id: String,
    pub session_type: i32,
    pub from_id: String,
    pub from_name: Option<String>,
    pub from_image: Option<String>,
}

/// What an event shows of an agent, as the agent was then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    pub agent_id: String,
    pub name: Option<String>,
    pub image: Option<String>,
}

/// One operation in a feed.
#[derive(Debug, Clone)]
pub struct Event {
    pub version: i64,
    pub feed: FeedKey,
    pub r#type: EventType,
    pub session: Arc<SessionCard>,
    /// The agent it tells of: the owner, or the author of a message that was sent.
    pub agent: Option<Arc<Profile>>,
    pub reason: Option<Reason>,
    pub messages: Vec<Arc<Message>>,
}

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

/// An entry of `Message`, as events, session history and session lists show it.
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
            content_type: if message.content_type.number() == 1 { "1" } else { "0" },
            content: &message.content,
            create_time: WireTime::new(message.created_at, zone),
        }
    }
}

#[derive(Serialize)]
struct EventJson<'a> {
    e: &'static str,
    #[serde(rename = "Version")]
    version: i64,
    #[serde(rename = "Data")]
    data: DataJson<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DataJson<'a> {
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
    message: Vec<MessageEntry<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

/// One side of a conversation: id, name, image.
type Party<'a> = (Option<&'a str>, Option<&'a str>, Option<&'a str>);

/// Events as the wire shows them. Made once, in one piece of memory; readers share the bytes.
///
/// # Errors
/// Never in practice: the shape holds nothing that JSON cannot.
pub fn encode(events: &[Event], zone: Tz) -> Result<Vec<Bytes>, serde_json::Error> {
    // Room for what surrounds the content, so that nothing is moved once it is written.
    let messages = events.iter().flat_map(|event| &event.messages);
    let content: usize = messages.map(|message| message.content.len() + 130).sum();
    let mut bytes = Vec::with_capacity(content + 220 * events.len());
    let mut ends = Vec::with_capacity(events.len());
    for event in events {
        event.encode_into(zone, &mut bytes)?;
        ends.push(bytes.len());
    }
    let mut bytes = Bytes::from(bytes);
    let mut start = 0;
    Ok(ends.into_iter().map(|end| bytes.split_to(end - std::mem::replace(&mut start, end))).collect())
}

impl Event {
    /// Writes the event as the wire shows it.
    ///
    /// # Errors
    /// Never in practice: the shape holds nothing that JSON cannot.
    fn encode_into(&self, zone: Tz, bytes: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        let (from, to) = self.parties();
        let json = EventJson {
            e: self.r#type.name(),
            version: self.version,
            data: DataJson {
                r#type: self.r#type.data_type(),
                session_id: &self.session.session_id,
                session_type: self.session.session_type,
                from_id: from.0,
                from_name: from.1,
                from_image: from.2,
                to_id: to.0,
                to_name: to.1,
                to_image: to.2,
                message: self.messages.iter().map(|message| MessageEntry::new(message, zone)).collect(),
                reason: self.reason.map(Reason::name),
            },
        };
        serde_json::to_writer(bytes, &json)
    }

    /// From is who wrote or opened, To is who receives.
    fn parties(&self) -> (Party<'_>, Party<'_>) {
        let session = &self.session;
        let customer: Party<'_> = (Some(&session.from_id), session.from_name.as_deref(), session.from_image.as_deref());
        let agent: Party<'_> = self.agent.as_ref().map_or((None, None, None), |agent| {
            (Some(agent.agent_id.as_str()), agent.name.as_deref(), agent.image.as_deref())
        });
        let written_by_agent = self.r#type == EventType::Message
            && self.messages.first().is_some_and(|message| message.r#type.number() == 1);
        if written_by_agent { (agent, customer) } else { (customer, agent) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        ids::MessageId,
        message::{ContentType, MessageType},
    };

    fn event(r#type: EventType, message_type: MessageType) -> Event {
        let message = Message {
            r#type: message_type,
            id: MessageId::Text("m-1".into()),
            content_type: ContentType::Text,
            content: "你好 \"desk\"\n".into(),
            created_at: "2026-11-22T23:30:00Z".parse().unwrap(),
        };
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
            messages: if r#type == EventType::Message { vec![Arc::new(message)] } else { vec![] },
        }
    }

    fn json(event: &Event, zone: Tz) -> serde_json::Value {
        serde_json::from_slice(&encode(std::slice::from_ref(event), zone).unwrap()[0]).unwrap()
    }

    #[test]
    fn a_customers_message_goes_from_the_customer_to_the_agent() {
        let shown = json(&event(EventType::Message, MessageType::Received), chrono_tz::Asia::Shanghai);
        let expected = serde_json::json!({"e": "Message", "Version": 4711, "Data": {
            "Type": 0, "SessionId": "s-1", "SessionType": 3, "FromId": "c-1", "FromName": "Customer", "ToId": "ann", "ToName": "Ann",
            "Message": [{"Type": 0, "Id": "m-1", "ContentType": "0", "Content": "你好 \"desk\"\n", "CreateTime": "2026-11-23 07:30:00"}]}});
        assert_eq!(shown, expected);
    }

    #[test]
    fn an_agents_message_goes_the_other_way() {
        let shown = json(&event(EventType::Message, MessageType::Sent), Tz::UTC);
        assert_eq!((&shown["Data"]["FromId"], &shown["Data"]["ToId"]), (&"ann".into(), &"c-1".into()));
    }

    #[test]
    fn a_session_that_leaves_says_why() {
        let shown = json(&event(EventType::DelSession, MessageType::Received), Tz::UTC);
        assert_eq!((&shown["Data"]["Type"], &shown["Data"]["Reason"]), (&1.into(), &"transferred".into()));
        assert_eq!(shown["Data"]["Message"], serde_json::json!([]));
    }
}
