//! What can be wrong with a request, as facts. Knows the numbers of the wire contract, no HTTP.

use std::borrow::Cow;

/// A refusal or failure. `detail` is for the caller, `source` for the log only.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// 40000: a missing or wrong field or parameter; the text names it.
    #[error("{0}")]
    Malformed(Cow<'static, str>),
    /// 40000: an event type that there is not.
    #[error("`t` names the unknown event type {0:?}; known are AddSession, Message and DelSession")]
    UnknownType(String),
    /// 40001: a reader asked for both directions.
    #[error("give either `a` (events after a version) or `b` (events before it), not both")]
    BothCursors,
    /// 40100.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// 40300.
    #[error("{0}")]
    RoleMayNot(Cow<'static, str>),
    /// 40301.
    #[error("the session {0:?} belongs to somebody else")]
    NotOwner(String),
    /// 40400.
    #[error("there is nothing at this path; /openapi.json lists what there is")]
    NoSuchPath,
    /// 40401.
    #[error("there is no session {0:?}")]
    NoSuchSession(String),
    /// 40402.
    #[error("there is no agent {0:?}")]
    NoSuchAgent(String),
    /// 40500.
    #[error("this path takes {0} only")]
    WrongMethod(String),
    /// 40900.
    #[error("the session {0:?} is closed")]
    SessionClosed(String),
    /// 40901.
    #[error("a message with Id {0:?} exists already, in another session or with other content")]
    IdTaken(String),
    /// 40902.
    #[error("the session belongs to {0:?} already")]
    TransferToOwner(String),
    /// 40903.
    #[error("the agent {0:?} is away or has as many sessions as MaxSessions allows")]
    AgentUnavailable(String),
    /// 40904: a claim of a session that does not wait any more.
    #[error("the session {0:?} is not in the queue any more")]
    NotQueued(String),
    /// 40905.
    #[error("the id {0:?} belongs to {1}")]
    OtherKind(String, &'static str),
    /// 41000.
    #[error("events up to version {after} are no longer all kept; begin again with a=0 or a={}", oldest - 1)]
    HistoryGone { after: i64, oldest: i64 },
    /// 41001.
    #[error("this is not the history that the reader followed; begin again with a=0 or a=now")]
    HistoryUnknown { head: i64, epoch: String },
    /// 41300.
    #[error("{what} is over the limit of {limit} bytes")]
    TooLarge { what: &'static str, limit: usize },
    /// 41500.
    #[error("the body must be application/json or application/x-www-form-urlencoded, in UTF-8")]
    UnsupportedType,
    /// 42900.
    #[error("{0}")]
    TooMany(&'static str),
    /// 50000.
    #[error("the service failed; the operator finds the cause in its log")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// 50300.
    #[error("{reason}")]
    Unavailable {
        reason: &'static str,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl Fault {
    /// A 40000 with a text that names what is wrong.
    pub fn malformed(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::Malformed(detail.into())
    }

    /// A 40300 with a text that says who may.
    pub fn role_may_not(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::RoleMayNot(detail.into())
    }

    /// A 50000 with its cause, which only the log shows.
    pub fn internal(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(source.into())
    }

    /// A 50300: nothing is known to be wrong with the request; try again.
    pub fn unavailable(reason: &'static str) -> Self {
        Self::Unavailable { reason, source: None }
    }

    /// The error's number; its first three digits are the HTTP status.
    pub fn code(&self) -> u32 {
        match self {
            Self::Malformed(_) | Self::UnknownType(_) => 40000,
            Self::BothCursors => 40001,
            Self::Unauthenticated(_) => 40100,
            Self::RoleMayNot(_) => 40300,
            Self::NotOwner(_) => 40301,
            Self::NoSuchPath => 40400,
            Self::NoSuchSession(_) => 40401,
            Self::NoSuchAgent(_) => 40402,
            Self::WrongMethod(_) => 40500,
            Self::SessionClosed(_) => 40900,
            Self::IdTaken(_) => 40901,
            Self::TransferToOwner(_) => 40902,
            Self::AgentUnavailable(_) => 40903,
            Self::NotQueued(_) => 40904,
            Self::OtherKind(..) => 40905,
            Self::HistoryGone { .. } => 41000,
            Self::HistoryUnknown { .. } => 41001,
            Self::TooLarge { .. } => 41300,
            Self::UnsupportedType => 41500,
            Self::TooMany(_) => 42900,
            Self::Internal(_) => 50000,
            Self::Unavailable { .. } => 50300,
        }
    }

    /// Short name of the kind of fault, the same for every occurrence.
    pub fn title(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::UnknownType(_) => "Malformed request",
            Self::BothCursors => "Both a and b",
            Self::Unauthenticated(_) => "Not authenticated",
            Self::RoleMayNot(_) => "The token's role may not do this",
            Self::NotOwner(_) => "Not the session's owner",
            Self::NoSuchPath => "No such path",
            Self::NoSuchSession(_) => "No such session",
            Self::NoSuchAgent(_) => "No such agent",
            Self::WrongMethod(_) => "Wrong method",
            Self::SessionClosed(_) => "The session is closed",
            Self::IdTaken(_) => "The Id is taken",
            Self::TransferToOwner(_) => "Transfer to the present owner",
            Self::AgentUnavailable(_) => "The agent is not available",
            Self::NotQueued(_) => "The session has moved on",
            Self::OtherKind(..) => "The id belongs to the other kind",
            Self::HistoryGone { .. } => "History no longer kept",
            Self::HistoryUnknown { .. } => "Not this store's history",
            Self::TooLarge { .. } => "Too large",
            Self::UnsupportedType => "Unsupported content type",
            Self::TooMany(_) => "Too many",
            Self::Internal(_) => "Fault of the service",
            Self::Unavailable { .. } => "Not available now",
        }
    }
}
