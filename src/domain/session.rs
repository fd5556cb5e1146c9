//! Sessions: their states, who may do what, and which feeds receive an event. Pure: the append checks that a session
//! has not changed since the decision.

use super::{
    caller::Caller,
    event::{EventType, Reason},
    fault::Fault,
    ids::{FeedKey, SessionKey},
};

/// The state of a session.
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
    /// Incremented by every change that the rules depend on.
    pub revision: i64,
    pub status: Status,
    /// The present owner; the last one if the session is closed.
    pub owner: Option<Owner>,
    pub gateway: Option<FeedKey>,
    pub assigned_version: i64,
    pub last_op: LastOp,
    pub last_op_by: Option<i32>,
    pub last_op_to: Option<FeedKey>,
    pub last_op_version: i64,
}

/// The agent who owns a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub key: FeedKey,
    pub id: String,
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

    /// The owner's feed while the session is open.
    pub fn open_owner(&self) -> Option<FeedKey> {
        self.owner.as_ref().filter(|_| self.status == Status::Open).map(|owner| owner.key)
    }

    fn check_not_closed(&self) -> Result<(), Fault> {
        if self.status == Status::Closed { Err(Fault::SessionClosed(self.session_id.clone())) } else { Ok(()) }
    }
}

/// Something that happens to a session. Assignment from the queue and of new sessions is decided by the database
/// (`append()` in `migrations/0008_append.sql`), because only it knows which agents are available.
#[derive(Debug, Clone, Copy)]
pub enum Happening {
    /// An agent takes it from the queue.
    Claimed {
        by: FeedKey,
    },
    /// `from` is `None` when it was queued.
    Transferred {
        from: Option<FeedKey>,
        to: FeedKey,
    },
    Released {
        from: FeedKey,
    },
    Closed {
        owner: Option<FeedKey>,
    },
    /// The customer wrote; `owner` is `None` while the session is queued.
    Received {
        owner: Option<FeedKey>,
    },
    /// The owner wrote.
    Sent {
        owner: FeedKey,
    },
}

/// Whose profile an event shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProfileSource {
    Nobody,
    Owner,
    NewOwner,
}

impl ProfileSource {
    /// The code that `append()` expects.
    pub fn number(self) -> i16 {
        match self {
            Self::Nobody => 0,
            Self::Owner => 1,
            Self::NewOwner => 2,
        }
    }
}

/// An event to append; `append()` assigns its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    /// [`NOBODY`] for a message of a queued session: it takes a version, but is in no feed.
    pub feed: FeedKey,
    pub r#type: EventType,
    /// Whether it carries a message number: its own, or that of the newest message that an AddSession brings.
    pub is_numbered: bool,
    pub profile: ProfileSource,
    pub reason: Option<Reason>,
}

/// The feed that nobody reads.
pub const NOBODY: FeedKey = FeedKey(0);

impl Happening {
    /// The events, as the table of the wire contract has them, in version order: the owner's event comes before the
    /// gateway's.
    pub fn events(self, gateway: Option<FeedKey>) -> Vec<Outgoing> {
        let event = |feed, r#type, profile| Outgoing {
            feed,
            r#type,
            is_numbered: r#type == EventType::Message,
            profile,
            reason: None,
        };
        let deleted =
            |feed, profile, reason| Outgoing { reason: Some(reason), ..event(feed, EventType::DelSession, profile) };
        // The owner's AddSession brings the newest messages, the gateway's none.
        let added = |to| {
            let own = Outgoing { is_numbered: true, ..event(to, EventType::AddSession, ProfileSource::NewOwner) };
            std::iter::once(own)
                .chain(gateway.map(|gateway| event(gateway, EventType::AddSession, ProfileSource::NewOwner)))
        };
        let mut events = Vec::with_capacity(3);
        match self {
            Self::Claimed { by } => events.extend(added(by)),
            Self::Transferred { from, to } => {
                events.extend(from.map(|from| deleted(from, ProfileSource::Owner, Reason::Transferred)));
                events.extend(added(to));
            }
            Self::Released { from } => events.push(deleted(from, ProfileSource::Owner, Reason::Released)),
            Self::Closed { owner } => {
                let profile = if owner.is_some() { ProfileSource::Owner } else { ProfileSource::Nobody };
                let told = owner.into_iter().chain(gateway);
                events.extend(told.map(|feed| deleted(feed, profile, Reason::Closed)));
            }
            Self::Received { owner } => events.push(match owner {
                Some(owner) => event(owner, EventType::Message, ProfileSource::Owner),
                None => event(NOBODY, EventType::Message, ProfileSource::Nobody),
            }),
            Self::Sent { owner } => {
                let told = std::iter::once(owner).chain(gateway);
                events.extend(told.map(|feed| event(feed, EventType::Message, ProfileSource::Owner)));
            }
        }
        events
    }
}
