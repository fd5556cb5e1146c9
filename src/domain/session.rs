//! Sessions: their states, who may do what, and which feeds are told. Pure: the caller has read
//! the session under the append lock, and writes what comes out.

use super::{
    caller::Caller,
    event::{EventType, Reason},
    fault::Fault,
    ids::{FeedKey, ProfileKey, SessionKey},
};

/// Where a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Queued,
    Open,
    Closed,
}

impl Status {
    pub const ALL: [Self; 3] = [Self::Queued, Self::Open, Self::Closed];

    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }

    pub fn number(self) -> i16 {
        match self {
            Self::Queued => 0,
            Self::Open => 1,
            Self::Closed => 2,
        }
    }

    pub fn from_number(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.number() == number)
    }

    pub fn parse(text: &str) -> Result<Self, Fault> {
        Self::ALL
            .into_iter()
            .find(|status| status.name() == text)
            .ok_or_else(|| Fault::malformed("`status` must be open, queued or closed"))
    }
}

/// The last close, release or transfer, so that a repetition gets the same answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastOp {
    None,
    Close,
    Release,
    Transfer,
}

impl LastOp {
    pub fn number(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Close => 1,
            Self::Release => 2,
            Self::Transfer => 3,
        }
    }

    pub fn from_number(number: i16) -> Self {
        [Self::Close, Self::Release, Self::Transfer].into_iter().find(|op| op.number() == number).unwrap_or(Self::None)
    }
}

/// A session as the rules see it.
#[derive(Debug, Clone)]
pub struct Session {
    pub key: SessionKey,
    pub session_id: String,
    pub status: Status,
    /// The present owner; of a closed session, the last one.
    pub owner: Option<Owner>,
    pub gateway: Option<FeedKey>,
    pub assigned_version: i64,
    pub last_op: LastOp,
    pub last_op_by: Option<i32>,
    pub last_op_to: Option<FeedKey>,
    pub last_op_version: i64,
}

/// An agent in a role about a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub key: FeedKey,
    pub id: String,
    pub profile: ProfileKey,
}

impl Session {
    /// Whether `caller` did `op` last, so that doing it again is a repetition. `to` is the target of a transfer.
    pub fn repeats(&self, op: LastOp, caller: &Caller, to: Option<FeedKey>) -> bool {
        self.last_op == op
            && self.last_op_by == Some(caller.trace_key())
            && (op != LastOp::Transfer || self.last_op_to == to)
    }

    /// Whether `caller` may close, release or transfer it: its owner, or an admin.
    pub fn check_may_direct(&self, caller: &Caller) -> Result<(), Fault> {
        match caller {
            Caller::Admin => {}
            Caller::Agent(agent) if self.is_owned_by(agent.key) => {}
            Caller::Agent(_) => return Err(Fault::NotOwner(self.session_id.clone())),
            Caller::Gateway(_) => return Err(Fault::role_may_not("only the session's owner or an admin may do this")),
        }
        self.check_not_closed()
    }

    /// Whether `caller` may add a message: the gateway that opened it, or its owner.
    pub fn check_may_send(&self, caller: &Caller) -> Result<(), Fault> {
        match caller {
            Caller::Gateway(gateway) if self.gateway == Some(gateway.key) => {}
            Caller::Agent(agent) if self.is_owned_by(agent.key) => {}
            Caller::Admin => return Err(Fault::role_may_not("only a gateway or the session's owner may send")),
            _ => return Err(Fault::NotOwner(self.session_id.clone())),
        }
        self.check_not_closed()
    }

    /// Whether `caller` may read its messages: its owner, its gateway, an admin.
    pub fn check_may_read(&self, caller: &Caller) -> Result<(), Fault> {
        match caller {
            Caller::Admin => Ok(()),
            Caller::Gateway(gateway) if self.gateway == Some(gateway.key) => Ok(()),
            Caller::Agent(agent) if self.is_owned_by(agent.key) => Ok(()),
            _ => Err(Fault::NotOwner(self.session_id.clone())),
        }
    }

    pub fn is_owned_by(&self, agent: FeedKey) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.key == agent)
    }

    fn check_not_closed(&self) -> Result<(), Fault> {
        if self.status == Status::Closed { Err(Fault::SessionClosed(self.session_id.clone())) } else { Ok(()) }
    }
}

/// Something that happened to a session.
#[derive(Debug, Clone, Copy)]
pub enum Happening {
    /// Opened or taken from the queue; `last_seq` is the newest message so far (0: none).
    Assigned {
        to: FeedKey,
        profile: ProfileKey,
        last_seq: i32,
    },
    Transferred {
        from: Option<(FeedKey, ProfileKey)>,
        to: FeedKey,
        profile: ProfileKey,
        last_seq: i32,
    },
    Released {
        from: FeedKey,
        profile: ProfileKey,
    },
    Closed {
        owner: Option<(FeedKey, ProfileKey)>,
    },
    /// A customer wrote; `owner` is none while the session is queued.
    Received {
        owner: Option<(FeedKey, ProfileKey)>,
        seq: i32,
    },
    Sent {
        owner: FeedKey,
        profile: ProfileKey,
        seq: i32,
    },
}

/// One event to append, but for its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    pub feed: FeedKey,
    pub r#type: EventType,
    pub message_seq: i32,
    pub profile: ProfileKey,
    pub reason: Option<Reason>,
}

const NO_PROFILE: ProfileKey = ProfileKey(0);

impl Told {
    /// A message of a queued session: it takes its place in the order, but is in nobody's feed.
    pub fn nobody(message_seq: i32) -> Self {
        Self { feed: FeedKey(0), r#type: EventType::Message, message_seq, profile: NO_PROFILE, reason: None }
    }
}

impl Happening {
    /// Who is told what: the table of the wire contract. In version order; what the owner is told
    /// comes before what the gateway is told.
    pub fn tells(self, gateway: Option<FeedKey>) -> Vec<Told> {
        let told = |feed, r#type, message_seq, profile, reason| Told { feed, r#type, message_seq, profile, reason };
        let mut events = Vec::with_capacity(3);
        match self {
            Self::Assigned { to, profile, last_seq } => {
                events.push(told(to, EventType::AddSession, last_seq, profile, None));
                events.extend(gateway.map(|gateway| told(gateway, EventType::AddSession, 0, profile, None)));
            }
            Self::Transferred { from, to, profile, last_seq } => {
                events.extend(from.map(|(old, old_profile)| {
                    told(old, EventType::DelSession, 0, old_profile, Some(Reason::Transferred))
                }));
                events.push(told(to, EventType::AddSession, last_seq, profile, None));
                events.extend(gateway.map(|gateway| told(gateway, EventType::AddSession, 0, profile, None)));
            }
            Self::Released { from, profile } => {
                events.push(told(from, EventType::DelSession, 0, profile, Some(Reason::Released)));
            }
            Self::Closed { owner } => {
                let profile = owner.map_or(NO_PROFILE, |(_, profile)| profile);
                events.extend(
                    owner.map(|(owner, profile)| told(owner, EventType::DelSession, 0, profile, Some(Reason::Closed))),
                );
                events.extend(
                    gateway.map(|gateway| told(gateway, EventType::DelSession, 0, profile, Some(Reason::Closed))),
                );
            }
            Self::Received { owner, seq } => {
                events.extend(owner.map(|(owner, profile)| told(owner, EventType::Message, seq, profile, None)));
            }
            Self::Sent { owner, profile, seq } => {
                events.push(told(owner, EventType::Message, seq, profile, None));
                events.extend(gateway.map(|gateway| told(gateway, EventType::Message, seq, profile, None)));
            }
        }
        events
    }
}
