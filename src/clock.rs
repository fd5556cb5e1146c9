//! The only caller of the system's clock. Order never depends on it: it decides when a token
//! expires, and what log lines say.

use chrono::{DateTime, Utc};

/// What time it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock;

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn now(self) -> DateTime<Utc> {
        Utc::now()
    }
}
