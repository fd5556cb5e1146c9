//! Who asks.

use super::{
    fault::Fault,
    ids::{FeedId, FeedKey},
};

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    Agent,
    Gateway,
    Admin,
}

impl Role {
    /// As the wire writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Gateway => "gateway",
            Self::Admin => "admin",
        }
    }

    /// As a client writes it.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Agent, Self::Gateway, Self::Admin].into_iter().find(|role| role.name() == text)
    }
}

/// The holder of a valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    Agent(Subject),
    Gateway(Subject),
    Admin,
}

/// Whose feed a token reads and in whose name it acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub key: FeedKey,
    pub id: FeedId,
}

impl Caller {
    pub fn role(&self) -> Role {
        match self {
            Self::Agent(_) => Role::Agent,
            Self::Gateway(_) => Role::Gateway,
            Self::Admin => Role::Admin,
        }
    }

    /// The token's own feed, if it has one.
    pub fn subject(&self) -> Option<&Subject> {
        match self {
            Self::Agent(subject) | Self::Gateway(subject) => Some(subject),
            Self::Admin => None,
        }
    }

    /// How a session remembers who asked for something: the feed, or 0 for an admin.
    pub fn trace_key(&self) -> i32 {
        self.subject().map_or(0, |subject| subject.key.0)
    }

    /// The agent, or 40300.
    pub fn agent(&self) -> Result<&Subject, Fault> {
        match self {
            Self::Agent(subject) => Ok(subject),
            _ => Err(Fault::role_may_not("only an agent may do this")),
        }
    }

    /// 40300 for anybody but an admin.
    pub fn require_admin(&self) -> Result<(), Fault> {
        match self {
            Self::Admin => Ok(()),
            _ => Err(Fault::role_may_not("only an admin may do this")),
        }
    }
}
