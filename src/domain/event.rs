//! Events, and their JSON (`json.rs`).

mod json;

use std::sync::Arc;

pub use self::json::{Keep, List, MessageEntry, encode, encode_list, wire_time};
use super::{
    ids::FeedKey,
    message::{Message, MessageView},
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

/// An event as readers are shown it, whoever keeps its parts.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    pub version: i64,
    pub r#type: EventType,
    pub session: &'a SessionCard,
    pub agent: Option<&'a Profile>,
    pub reason: Option<Reason>,
    pub messages: Messages<'a>,
}

/// The messages of an event.
#[derive(Debug, Clone, Copy)]
pub enum Messages<'a> {
    One(MessageView<'a>),
    Many(&'a [Arc<Message>]),
}

impl Event {
    pub fn shown(&self) -> Shown<'_> {
        Shown {
            version: self.version,
            r#type: self.r#type,
            session: &self.session,
            agent: self.agent.as_deref(),
            reason: self.reason,
            messages: Messages::Many(&self.messages),
        }
    }
}
