//! What passes between a client and PostgreSQL, as far as the proxy must tell it apart.

use std::collections::HashMap;

/// Which requests a rule is about.
#[derive(Debug, Clone, Copy)]
pub struct Passing {
    /// What the connection's name begins with.
    application: &'static str,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Anything,
    /// What makes something durable: the text `commit`, or an append in a transaction of its own.
    Commit,
    /// What makes an append durable: one that is a transaction of its own, or the `commit` after one.
    Append,
    /// What makes acknowledgements durable.
    Acknowledgement,
    /// A request that holds this, in a statement's text or among its parameters.
    Bytes(&'static str),
}

impl Passing {
    pub fn anything() -> Self {
        Self { application: "", what: What::Anything }
    }

    pub fn commit() -> Self {
        Self { application: "", what: What::Commit }
    }

    /// The point at which an append is committed, whatever way it takes.
    pub fn append() -> Self {
        Self { application: "", what: What::Append }
    }

    /// The point at which acknowledgements are committed.
    pub fn acknowledgement() -> Self {
        Self { application: "", what: What::Acknowledgement }
    }

    /// A request that holds `bytes`, in a statement's text or among its parameters.
    pub fn holding(bytes: &'static str) -> Self {
        Self { application: "", what: What::Bytes(bytes) }
    }

    /// The same, on connections whose `application_name` begins like this only.
    pub fn of(self, application: &'static str) -> Self {
        Self { application, ..self }
    }

    pub fn is_met_by(&self, seen: &Seen<'_>) -> bool {
        if !seen.application.starts_with(self.application) {
            return false;
        }
        let has = |text: &str| seen.texts.iter().any(|executed| executed.contains(text));
        let appends = seen.texts.iter().any(|text| is_append(text));
        let is_commit = seen.texts.contains(&"commit");
        let commits_append = !seen.in_transaction && appends || is_commit && seen.in_append;
        match self.what {
            What::Anything => seen.is_request,
            What::Commit => is_commit || commits_append,
            What::Append => commits_append,
            What::Acknowledgement => {
                seen.application == "deskfeed/acks" && is_commit
                    || !seen.in_transaction && has("/* acks.") && !has("/* acks.find")
            }
            What::Bytes(wanted) => {
                seen.is_request && seen.bytes.windows(wanted.len()).any(|window| window == wanted.as_bytes())
            }
        }
    }
}

/// Whether a statement appends: its comment says that it is one of the appends', and it calls `append()`. (To settle
/// what became of an append is none.)
fn is_append(text: &str) -> bool {
    let calls = |name: &str| {
        text.match_indices(name).any(|(at, _)| {
            let before = text[..at].chars().next_back();
            before.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_' && c != '.')
        })
    };
    text.contains("/* appends.") && calls("append(")
}

/// What a request says.
#[derive(Debug)]
pub struct Seen<'a> {
    pub application: &'a str,
    pub bytes: &'a [u8],
    /// Texts of the statements that it executes.
    pub texts: Vec<&'a str>,
    /// Whether it executes anything; else it is part of the connection's start or end.
    pub is_request: bool,
    pub in_transaction: bool,
    /// Whether its transaction appends.
    pub in_append: bool,
}

/// What is passed on as a whole: all up to and with what the server answers by being ready again.
#[derive(Debug, Clone)]
pub struct Unit {
    bytes: Vec<u8>,
    is_answered: bool,
    executed: Vec<String>,
}

impl Unit {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Takes apart what a client says.
#[derive(Debug, Default)]
pub struct Reader {
    buffer: Vec<u8>,
    application: String,
    has_started: bool,
    has_looked: bool,
    /// Texts of the prepared statements by name.
    statements: HashMap<Vec<u8>, String>,
    in_append: bool,
}

impl Reader {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether the connection says that it is there to LISTEN.
    pub fn listens(&self) -> bool {
        self.application.starts_with("deskfeed/listens")
    }

    /// Whether this is the first time that one can ask who it is.
    pub fn takes_first_look(&mut self) -> bool {
        self.has_started && !std::mem::replace(&mut self.has_looked, true)
    }

    /// The next unit, if it is there in full.
    pub fn next(&mut self) -> Option<Unit> {
        if !self.has_started {
            // The first packet has no tag.
            let length = length_at(&self.buffer, 0)?;
            let bytes = take(&mut self.buffer, length)?;
            let parameters: Vec<&[u8]> = bytes[8.min(bytes.len())..].split(|byte| *byte == 0).collect();
            let named = parameters.iter().position(|parameter| *parameter == b"application_name");
            if let Some(name) = named.and_then(|name| parameters.get(name + 1)) {
                self.application = String::from_utf8_lossy(name).into_owned();
            }
            self.has_started = true;
            return Some(Unit { bytes, is_answered: true, executed: Vec::new() });
        }
        let (mut end, mut executed) = (0, Vec::new());
        loop {
            let tag = *self.buffer.get(end)?;
            let length = 1 + length_at(&self.buffer, end + 1)?;
            let body = self.buffer.get(end + 5..end + length)?.to_vec();
            end += length;
            match tag {
                b'Q' => executed.push(text_of(&body)),
                // Parse: the statement's name, its text.
                b'P' => {
                    let mut parts = body.splitn(3, |byte| *byte == 0);
                    let (name, text) = (parts.next()?.to_vec(), parts.next()?);
                    self.statements.insert(name, String::from_utf8_lossy(text).into_owned());
                }
                // Bind: the portal's name, the statement's.
                b'B' => {
                    let name = body.splitn(3, |byte| *byte == 0).nth(1)?;
                    executed.extend(self.statements.get(name).cloned());
                }
                _ => {}
            }
            let is_answered = matches!(tag, b'Q' | b'S');
            // Parts of a request are passed on together, everything else by itself.
            if is_answered || !matches!(tag, b'P' | b'B' | b'D' | b'E' | b'C') {
                let bytes = take(&mut self.buffer, end)?;
                return Some(Unit { bytes, is_answered, executed });
            }
        }
    }

    /// What a unit says. To be called once for each, in their order.
    pub fn look<'a>(&'a mut self, unit: &'a Unit, in_transaction: bool) -> Seen<'a> {
        let appends = unit.executed.iter().any(|text| is_append(text) || text.contains("lock table append_lock"));
        self.in_append = appends || in_transaction && self.in_append;
        Seen {
            application: &self.application,
            bytes: &unit.bytes,
            texts: unit.executed.iter().map(String::as_str).collect(),
            is_request: !unit.executed.is_empty(),
            in_transaction,
            in_append: self.in_append,
        }
    }
}

/// Follows what a server says.
#[derive(Debug, Default)]
pub struct Replies {
    buffer: Vec<u8>,
    /// Bytes of a long message that are still to come.
    skip: usize,
    /// How often it will still say that it is ready.
    expected: usize,
    in_transaction: bool,
}

impl Replies {
    pub fn expect(&mut self, unit: &Unit) {
        self.expected += usize::from(unit.is_answered);
    }

    pub fn are_complete(&self) -> bool {
        self.expected == 0
    }

    pub fn is_in_transaction(&self) -> bool {
        self.in_transaction
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        loop {
            let skipped = self.skip.min(self.buffer.len());
            self.buffer.drain(..skipped);
            self.skip -= skipped;
            let (Some(tag), Some(length)) = (self.buffer.first(), length_at(&self.buffer, 1)) else { return };
            if *tag == b'Z' {
                let Some(status) = self.buffer.get(5) else { return };
                self.in_transaction = *status != b'I';
                self.expected = self.expected.saturating_sub(1);
            }
            self.skip = 1 + length;
        }
    }
}

fn length_at(bytes: &[u8], at: usize) -> Option<usize> {
    let length = bytes.get(at..at + 4)?.try_into().expect("four bytes");
    Some(usize::try_from(u32::from_be_bytes(length)).expect("fits"))
}

/// The first `count` bytes, if they are there.
fn take(bytes: &mut Vec<u8>, count: usize) -> Option<Vec<u8>> {
    (bytes.len() >= count).then(|| bytes.drain(..count).collect())
}

fn text_of(body: &[u8]) -> String {
    String::from_utf8_lossy(body.strip_suffix(b"\0").unwrap_or(body)).into_owned()
}

#[test]
fn what_appends_is_known_by_its_name_and_its_call() {
    for text in ["/* appends.append */ select * from append($1)", "/* appends.append */ select version from append($1)"]
    {
        assert!(is_append(text), "{text}");
    }
    for text in [
        "/* appends.backend */ select pid from pg_stat_activity",
        "/* appends.settle */ select settle_append($1)",
        "select append($1)",
        "/* events.read */ select append from events",
    ] {
        assert!(!is_append(text), "{text}");
    }
}
