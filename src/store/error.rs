//! What can go wrong between the service and its database, and what a caller is told of it.

use std::borrow::Cow;

use crate::domain::fault::Fault;

/// Why the database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The driver's error says that the server is away, overloaded, restarting or read-only.
    #[error("PostgreSQL cannot be reached, or is too busy: {0}")]
    Outage(#[source] sqlx::Error),
    /// The same, found by other means than an error of the driver.
    #[error("PostgreSQL cannot be used now: {0}")]
    Away(&'static str),
    /// Our own deadline passed, in milliseconds. Drop the connection: an answer may still be on its way.
    #[error("PostgreSQL did not answer within {0} ms")]
    Timeout(u64),
    /// A commit may or may not have happened.
    #[error("it is not known whether a commit happened: {0}")]
    UnknownOutcome(#[source] Box<Error>),
    /// The data are not what they must be.
    #[error("the data are inconsistent: {0}")]
    Inconsistent(String),
    /// The server refused the statement, or its answer cannot be read.
    #[error("PostgreSQL refused a statement: {0}")]
    Refused(#[source] sqlx::Error),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn inconsistent(what: impl Into<String>) -> Self {
        Self::Inconsistent(what.into())
    }

    /// Whether it says nothing about the request: the same request may succeed later.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Outage(_) | Self::Away(_) | Self::Timeout(_) | Self::UnknownOutcome(_) => true,
            Self::Inconsistent(_) | Self::Refused(_) => false,
        }
    }

    /// The server's error code, if the server answered with one.
    pub fn sqlstate(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Outage(error) | Self::Refused(error) => error.as_database_error()?.code(),
            Self::UnknownOutcome(error) => error.sqlstate(),
            Self::Away(_) | Self::Timeout(_) | Self::Inconsistent(_) => None,
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let is_outage = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            sqlx::Error::Database(error) => error.code().is_some_and(|code| says_outage(&code)),
            _ => false,
        };
        if is_outage { Self::Outage(error) } else { Self::Refused(error) }
    }
}

/// Whether a SQLSTATE says nothing about the statement.
fn says_outage(code: &str) -> bool {
    // 08 connection, 40 rollback, 53 resources, 57 operator intervention (timeouts too), 58 system;
    // 25006 read-only transaction (a standby), 25P03 idle in transaction, 55P03 lock not available.
    ["08", "40", "53", "57", "58"].iter().any(|class| code.starts_with(class))
        || ["25006", "25P03", "55P03"].contains(&code)
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let reason = match &error {
            Error::Inconsistent(_) | Error::Refused(_) => return Self::internal(error),
            Error::UnknownOutcome(_) => "PostgreSQL did not say whether it was kept; try again with the same ids",
            Error::Outage(_) | Error::Away(_) | Error::Timeout(_) => {
                "PostgreSQL cannot be reached or is too busy; try again"
            }
        };
        Self::Unavailable { reason, source: Some(error.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_answered_50300() {
        let closed = || Error::from(sqlx::Error::PoolClosed);
        for error in [closed(), Error::Away("a standby"), Error::Timeout(5), Error::UnknownOutcome(Box::new(closed()))]
        {
            assert!(error.is_outage(), "{error}");
            assert_eq!(Fault::from(error).code(), 50300);
        }
        for error in [Error::inconsistent("no owner"), Error::from(sqlx::Error::RowNotFound)] {
            assert!(!error.is_outage(), "{error}");
            assert_eq!(Fault::from(error).code(), 50000);
        }
    }

    #[test]
    fn codes_of_the_server_are_told_apart() {
        for code in ["08006", "40P01", "53300", "57014", "57P01", "25006", "55P03"] {
            assert!(says_outage(code), "{code}");
        }
        for code in ["23505", "22P02", "42P01", "25P02", "55000"] {
            assert!(!says_outage(code), "{code}");
        }
    }
}
