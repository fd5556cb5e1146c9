//! Ids as clients write them, validated once, and the short keys that the database uses for them.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};

use super::{fault::Fault, limits};

/// Key of a feed, an agent's or a gateway's, in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FeedKey(pub i32);

/// Key of a session in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey(pub i64);

/// Key of an agent's profile in the database; 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProfileKey(pub i32);

/// Id of an agent or gateway: 1..64 characters of `A-Z a-z 0-9 . _ - @ :`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FeedId(String);

impl FeedId {
    /// Checks `text`; `field` is named in the fault.
    pub fn parse(text: &str, field: &str) -> Result<Self, Fault> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@' | ':');
        if (1..=64).contains(&text.len()) && text.chars().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Fault::malformed(format!("{field} must be 1..64 characters of A-Z a-z 0-9 . _ - @ :")))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FeedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Validates a text chosen by the caller: its length in characters, and no NUL (PostgreSQL cannot store it).
pub fn checked_text(text: String, field: &str, chars_max: usize) -> Result<String, Fault> {
    if text.is_empty() || text.chars().count() > chars_max {
        return Err(Fault::malformed(format!("{field} must have 1..{chars_max} characters")));
    }
    refuse_nul(&text, field)?;
    Ok(text)
}

/// Like [`checked_text`]; an empty text counts as absent.
pub fn checked_optional_text(text: Option<String>, field: &str, chars_max: usize) -> Result<Option<String>, Fault> {
    match text {
        Some(text) if !text.is_empty() => checked_text(text, field, chars_max).map(Some),
        _ => Ok(None),
    }
}

/// Validates a client's `SessionId`.
pub fn session_id(text: String) -> Result<String, Fault> {
    checked_text(text, "SessionId", limits::SESSION_ID_CHARS_MAX)
}

/// Refuses U+0000, which PostgreSQL's text cannot hold: one such row would fail its whole batch.
pub fn refuse_nul(text: &str, field: &str) -> Result<(), Fault> {
    if text.contains('\0') {
        return Err(Fault::malformed(format!("{field} holds the character U+0000, which cannot be kept")));
    }
    Ok(())
}

/// A message's Id, in the two forms that PostgreSQL stores: most are UUIDs, which take less than half the space.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MessageId {
    /// A UUID in its usual form (lower case, hyphens).
    Uuid(uuid::Uuid),
    /// Anything else of 1..64 characters.
    Text(String),
}

impl MessageId {
    /// The derived Id of a message without a client's: a UUIDv7 (RFC 9562) of its time (milliseconds, and the remaining
    /// microseconds as 12 bits, section 6.2, method 3), with its version in place of random bits. Unique because the
    /// version is. The same as `made_message_id` in the database.
    pub fn made(version: i64, created_at: DateTime<Utc>) -> Self {
        let us = created_at.timestamp_micros();
        let (ms, rest) = (us.div_euclid(1000).unsigned_abs(), us.rem_euclid(1000).unsigned_abs() * 4096 / 1000);
        Self::Uuid(uuid::Uuid::from_u64_pair(ms << 16 | 7 << 12 | rest, 1 << 63 | version.unsigned_abs()))
    }

    /// The version of the only message that can have this as its derived Id.
    pub fn version_made_of(&self) -> Option<i64> {
        let Self::Uuid(id) = self else { return None };
        let version = id.as_u64_pair().1 & (u64::MAX >> 2);
        (id.get_version_num() == 7).then(|| i64::try_from(version).ok()).flatten()
    }

    /// Whether this store could still derive this Id if `head` is its newest version. About one in 10^7 of the UUIDv7s
    /// that clients generate looks like that; one in 18,000 if its time is in the future, which clients do not use.
    pub fn is_reserved(&self, head: i64, now: DateTime<Utc>) -> bool {
        let Self::Uuid(id) = self else { return false };
        let Some(version) = self.version_made_of() else { return false };
        let high = id.as_u64_pair().0;
        // Only 1,000 of the 4,096 values of the 12 bits are possible.
        let rest = high & 0xfff;
        if rest != (rest * 1000).div_ceil(4096) * 4096 / 1000 {
            return false;
        }
        let ms = i64::try_from(high >> 16).unwrap_or(i64::MAX);
        let end = if ms <= now.timestamp_millis() + limits::CLIENT_CLOCK_AHEAD_MS {
            head.saturating_add(limits::VERSIONS_SOON)
        } else {
            limits::VERSION_END
        };
        head < version && version < end
    }

    /// Validates a client's Id.
    pub fn parse(text: String) -> Result<Self, Fault> {
        let text = checked_text(text, "Id", limits::MESSAGE_ID_CHARS_MAX)?;
        Ok(Self::from_text(text))
    }

    /// Converts a text that is known to be a valid Id.
    pub fn from_text(text: String) -> Self {
        match uuid::Uuid::try_parse(&text) {
            // Only the form that Display reproduces exactly; others stay texts.
            Ok(id) if text.len() == 36 && id.to_string() == text => Self::Uuid(id),
            _ => Self::Text(text),
        }
    }

    /// The two columns in PostgreSQL, exactly one of which is set.
    pub fn columns(&self) -> (Option<uuid::Uuid>, Option<&str>) {
        match self {
            Self::Uuid(id) => (Some(*id), None),
            Self::Text(text) => (None, Some(text)),
        }
    }

    /// From the two columns of a message; derived from its version and time if both are null.
    pub fn from_columns(id: Option<uuid::Uuid>, text: Option<String>, version: i64, created_at: DateTime<Utc>) -> Self {
        match (id, text) {
            (Some(id), _) => Self::Uuid(id),
            (None, Some(text)) => Self::Text(text),
            (None, None) => Self::made(version, created_at),
        }
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(id) => id.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl Serialize for MessageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Uuid(id) => serializer.serialize_str(id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer())),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_id_reads_back_as_it_was_written() {
        let ids = [
            "0190f5fe-7a3c-7cc1-9f2b-1f2e3d4c5b6a",
            "0190F5FE-7A3C-7CC1-9F2B-1F2E3D4C5B6A",
            "0190f5fe7a3c7cc19f2b1f2e3d4c5b6a",
            "{0190f5fe-7a3c-7cc1-9f2b-1f2e3d4c5b6a}",
            "m-1",
            "消息",
        ];
        for id in ids {
            assert_eq!(MessageId::from_text(id.to_owned()).to_string(), id);
        }
        assert!(matches!(MessageId::from_text(ids[0].to_owned()), MessageId::Uuid(_)));
        assert!(matches!(MessageId::from_text(ids[1].to_owned()), MessageId::Text(_)));
    }

    #[test]
    fn an_id_that_is_made_tells_its_version_and_rises_with_it() {
        let at = |us| DateTime::from_timestamp_micros(us).unwrap();
        let ids: Vec<MessageId> = [
            (1, 1_790_000_000_000_000),
            (2, 1_790_000_000_000_000),
            (4711, 1_790_000_000_000_001),
            (1 << 40, 1_790_000_000_000_999),
            (i64::MAX >> 1, 1_790_000_000_001_000),
        ]
        .map(|(version, us)| MessageId::made(version, at(us)))
        .into();
        assert_eq!(ids[2].to_string(), "01a0c450-6c00-7004-8000-000000001267");
        let versions: Vec<Option<i64>> = ids.iter().map(MessageId::version_made_of).collect();
        assert_eq!(versions, [1, 2, 4711, 1 << 40, i64::MAX >> 1].map(Some));
        assert!(ids.windows(2).all(|pair| pair[0].to_string() < pair[1].to_string()), "{ids:?}");
        assert_eq!(MessageId::from_text("9f2b1f2e-3d4c-4b6a-8000-000000001267".into()).version_made_of(), None);
    }

    #[test]
    fn feed_ids_are_checked() {
        for good in ["a", "Ann.B_c-d@e:f", &"x".repeat(64)] {
            assert!(FeedId::parse(good, "Id").is_ok(), "{good}");
        }
        for bad in ["", "a b", "ä", "a/b", &"x".repeat(65)] {
            assert!(FeedId::parse(bad, "Id").is_err(), "{bad}");
        }
    }
}
