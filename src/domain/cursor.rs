//! What a reader of a feed asks for: the parameters of `/message/query`, checked.

use chrono::{DateTime, Utc};

use super::{
    event::{EventType, TypeSet},
    fault::Fault,
    ids::{FeedId, MessageId},
    limits,
};

/// Which events, seen from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cursor {
    /// Greater than this version, oldest first.
    After(From),
    /// The newest that are less than this version; none: the newest there are.
    Before(Option<i64>),
    /// Those not acknowledged, oldest first.
    Unacked,
}

/// Where an `a` reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Version(i64),
    /// From this moment on.
    Now,
    /// From the first event at or after a time.
    Time(DateTime<Utc>),
}

/// One item of an acknowledgement list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ack {
    /// All digits: an event version; where the feed has no such event, a message Id.
    Version(i64),
    /// `first-last`, both ends in it; where a message of the feed has that very Id, that message.
    Range {
        first: i64,
        last: i64,
    },
    Id(MessageId),
}

/// A whole request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    pub cursor: Cursor,
    pub acks: Vec<Ack>,
    pub types: TypeSet,
    pub limit: i64,
    pub wait_s: u64,
    pub epoch: Option<String>,
    /// Whose feed, when an admin asks.
    pub feed: Option<FeedId>,
}

impl Query {
    /// Reads the parameters, whatever carried them. Names it does not know are ignored.
    pub fn parse(pairs: Vec<(String, String)>) -> Result<Self, Fault> {
        let mut given = Given::default();
        for (name, value) in pairs {
            given.take(&name, value)?;
        }
        Ok(Self {
            cursor: cursor(filled(given.a), filled(given.b))?,
            acks: filled(given.c).map_or(Ok(Vec::new()), |list| acks(&list))?,
            types: filled(given.t).map_or(Ok(TypeSet::ALL), |list| types(&list))?,
            limit: filled(given.limit).map_or(Ok(limits::EVENTS_PER_PAGE_DEFAULT), |text| limit(&text))?,
            wait_s: filled(given.wait).map_or(Ok(limits::POLL_WAIT_S_DEFAULT), |text| wait_s(&text))?,
            epoch: filled(given.epoch),
            feed: filled(given.feed).map(|text| FeedId::parse(&text, "feed")).transpose()?,
        })
    }
}

/// The parameters as texts; each may be given once, under one of its names.
#[derive(Default)]
struct Given {
    a: Option<String>,
    b: Option<String>,
    c: Option<String>,
    t: Option<String>,
    limit: Option<String>,
    wait: Option<String>,
    epoch: Option<String>,
    feed: Option<String>,
}

impl Given {
    fn take(&mut self, name: &str, value: String) -> Result<(), Fault> {
        let (slot, names) = match name {
            "a" | "after" => (&mut self.a, "`a` (or `after`)"),
            "b" | "before" => (&mut self.b, "`b` (or `before`)"),
            "c" | "acks" => (&mut self.c, "`c` (or `acks`)"),
            "t" | "type" => (&mut self.t, "`t` (or `type`)"),
            "limit" => (&mut self.limit, "`limit`"),
            "wait" => (&mut self.wait, "`wait`"),
            "epoch" => (&mut self.epoch, "`epoch`"),
            "feed" => (&mut self.feed, "`feed`"),
            _ => return Ok(()),
        };
        if slot.replace(value).is_some() {
            return Err(Fault::malformed(format!("{names} is given more than once")));
        }
        Ok(())
    }
}

fn filled(text: Option<String>) -> Option<String> {
    text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn cursor(a: Option<String>, b: Option<String>) -> Result<Cursor, Fault> {
    match (a, b) {
        (Some(_), Some(_)) => Err(Fault::BothCursors),
        (Some(a), None) => from(&a).map(Cursor::After),
        (None, Some(b)) if b == "now" => Ok(Cursor::Before(None)),
        (None, Some(b)) => version(&b, "`b` must be a whole number 0..9223372036854775807 or `now`")
            .map(|version| Cursor::Before(Some(version))),
        (None, None) => Ok(Cursor::Unacked),
    }
}

fn from(text: &str) -> Result<From, Fault> {
    if text == "now" {
        return Ok(From::Now);
    }
    match text.strip_prefix('@') {
        Some(time) => from_time(time).map(From::Time),
        None => version(text, "`a` must be a whole number 0..9223372036854775807, `now`, or @ and an RFC 3339 time")
            .map(From::Version),
    }
}

fn from_time(text: &str) -> Result<DateTime<Utc>, Fault> {
    // A `+` that was not escaped in a URL arrives as a space.
    DateTime::parse_from_rfc3339(text)
        .or_else(|error| match text.rsplit_once(' ') {
            Some((time, zone)) => DateTime::parse_from_rfc3339(&format!("{time}+{zone}")),
            None => Err(error),
        })
        .map(|time| time.with_timezone(&Utc))
        .map_err(|_| Fault::malformed("`a=@...` must hold an RFC 3339 time such as 2026-11-22T09:30:00Z"))
}

fn version(text: &str, otherwise: &'static str) -> Result<i64, Fault> {
    digits(text).ok_or_else(|| Fault::malformed(otherwise))
}

/// A number of digits only (no sign), that fits.
fn digits(text: &str) -> Option<i64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

fn limit(text: &str) -> Result<i64, Fault> {
    checked_limit(text, limits::EVENTS_PER_PAGE_MAX)
}

/// `limit` of any list.
pub fn checked_limit(text: &str, max: i64) -> Result<i64, Fault> {
    digits(text)
        .filter(|limit| (1..=max).contains(limit))
        .ok_or_else(|| Fault::malformed(format!("`limit` must be a whole number 1..{max}")))
}

fn wait_s(text: &str) -> Result<u64, Fault> {
    digits(text).and_then(|wait| u64::try_from(wait).ok()).filter(|wait| *wait <= limits::POLL_WAIT_S_MAX).ok_or_else(
        || Fault::malformed(format!("`wait` must be a whole number of seconds 0..{}", limits::POLL_WAIT_S_MAX)),
    )
}

fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split([',', ';', '，', '；']).map(str::trim).filter(|item| !item.is_empty())
}

fn types(list: &str) -> Result<TypeSet, Fault> {
    let mut types = TypeSet::NONE;
    for name in items(list) {
        let known = EventType::ALL.into_iter().find(|r#type| r#type.name().eq_ignore_ascii_case(name));
        types = types.with(known.ok_or_else(|| Fault::UnknownType(name.to_owned()))?);
    }
    Ok(if types == TypeSet::NONE { TypeSet::ALL } else { types })
}

fn acks(list: &str) -> Result<Vec<Ack>, Fault> {
    let mut acks = Vec::new();
    for item in items(list) {
        if acks.len() == limits::ACKS_PER_REQUEST_MAX {
            return Err(Fault::malformed(format!(
                "`c` holds more than {} items; ranges of versions are shorter",
                limits::ACKS_PER_REQUEST_MAX
            )));
        }
        acks.extend(ack(item));
    }
    Ok(acks)
}

/// None for what cannot be an Id: unknown acknowledgements are ignored.
fn ack(item: &str) -> Option<Ack> {
    if let Some(version) = digits(item) {
        return Some(Ack::Version(version));
    }
    if let Some((first, last)) = item.split_once('-')
        && let (Some(first), Some(last)) = (digits(first), digits(last))
        && first <= last
    {
        return Some(Ack::Range { first, last });
    }
    MessageId::parse(item.to_owned()).ok().map(Ack::Id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<Query, Fault> {
        Query::parse(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    fn code(query: &str) -> u32 {
        parse(query).expect_err(query).code()
    }

    #[test]
    fn the_cursor_is_one_of_three() {
        assert_eq!(parse("").unwrap().cursor, Cursor::Unacked);
        assert_eq!(parse("a=&b=").unwrap().cursor, Cursor::Unacked);
        assert_eq!(parse("a=0").unwrap().cursor, Cursor::After(From::Version(0)));
        assert_eq!(parse("after=9223372036854775807").unwrap().cursor, Cursor::After(From::Version(i64::MAX)));
        assert_eq!(parse("a=now").unwrap().cursor, Cursor::After(From::Now));
        assert_eq!(parse("b=now").unwrap().cursor, Cursor::Before(None));
        assert_eq!(parse("before=7").unwrap().cursor, Cursor::Before(Some(7)));
        assert_eq!(code("a=1&b=2"), 40001);
        assert_eq!(code("a=1&after=1"), 40000);
        assert_eq!(code("a=1&a=1"), 40000);
        for bad in [
            "a=-1",
            "a=1.5",
            "a=9223372036854775808",
            "a=x",
            "b=-1",
            "b=@2026-01-01T00:00:00Z",
            "a=@yesterday",
            "a=%2B1",
        ] {
            assert_eq!(code(bad), 40000, "{bad}");
        }
    }

    #[test]
    fn times_are_rfc_3339_with_or_without_an_escaped_plus() {
        let time = "2026-11-22T09:30:00Z".parse().unwrap();
        for query in ["a=@2026-11-22T09:30:00Z", "a=@2026-11-22T10:30:00%2B01:00", "a=@2026-11-22T10:30:00+01:00"] {
            assert_eq!(parse(query).unwrap().cursor, Cursor::After(From::Time(time)), "{query}");
        }
    }

    #[test]
    fn acknowledgements_take_all_separators_and_ranges() {
        let acks = parse("c=7,m-1;4700-4790，x；; ,9-3").unwrap().acks;
        let id = |text: &str| Ack::Id(MessageId::Text(text.to_owned()));
        assert_eq!(acks, [Ack::Version(7), id("m-1"), Ack::Range { first: 4700, last: 4790 }, id("x"), id("9-3")]);
        assert_eq!(parse("c=99999999999999999999").unwrap().acks, [id("99999999999999999999")]);
        assert_eq!(parse(&format!("c={}", "x".repeat(65))).unwrap().acks, []);
    }

    #[test]
    fn types_are_read_in_any_case() {
        let both = TypeSet::NONE.with(EventType::Message).with(EventType::DelSession);
        assert_eq!(parse("t=MESSAGE；delsession").unwrap().types, both);
        assert_eq!(parse("type=,").unwrap().types, TypeSet::ALL);
        assert!(parse("t=Nonsense").unwrap_err().to_string().contains("AddSession"));
    }

    #[test]
    fn limits_hold_at_their_edges() {
        assert_eq!(parse("limit=1&wait=0").unwrap().limit, 1);
        assert_eq!(parse("limit=1000&wait=60").unwrap().wait_s, 60);
        for bad in ["limit=0", "limit=1001", "wait=61", "wait=-1", "limit=ten", "wait=1.5"] {
            assert_eq!(code(bad), 40000, "{bad}");
        }
    }
}
