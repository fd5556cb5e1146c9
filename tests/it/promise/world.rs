//! What the actors share: the way to the replicas, what they believe about the sessions, and the
//! recorder.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::HeaderMap;
use serde_json::{Value, json};

use super::history::{Change, Kind, Outcome, Random, Recorder, Send, Session};

/// Longer than the service lets any request but a poll take when PostgreSQL answers.
const PATIENCE: Duration = Duration::from_secs(8);
/// One attempt in so many is made twice, at replicas of its own each, the second before the first is answered.
const IMPATIENT: usize = 10;
/// How long a client waits that does not wait for the answer.
const IMPATIENCE_MS: std::ops::Range<u64> = 1..12;
/// Attempts of one operation whose outcome is not known.
const ATTEMPTS: usize = 60;

/// The world of one run.
pub struct World {
    pub recorder: Recorder,
    http: reqwest::Client,
    tokens: HashMap<String, String>,
    bases: Mutex<Vec<String>>,
    board: Mutex<HashMap<String, Card>>,
    writing: AtomicBool,
    /// Where readers may stop; until it is known, nowhere.
    end: AtomicI64,
    ids: AtomicU64,
    /// Answers that the wire contract does not have, or 50000: faults, whatever the circumstances.
    pub faults: Mutex<Vec<String>>,
    /// Requests that ended without an answer, though not by our patience.
    pub broken: Mutex<Vec<String>>,
}

/// What is believed about a session.
#[derive(Debug, Clone)]
pub struct Card {
    pub session: String,
    pub gateway: String,
    pub owner: Option<String>,
}

/// An answer, or none.
pub struct Answer {
    pub outcome: Outcome,
    pub json: Value,
    pub headers: HeaderMap,
}

impl World {
    /// `tokens`: of each feed, and of the admin under the name "".
    pub fn new(tokens: HashMap<String, String>, bases: Vec<String>) -> Self {
        Self {
            recorder: Recorder::default(),
            http: reqwest::Client::builder().no_proxy().build().expect("a client"),
            tokens,
            bases: Mutex::new(bases),
            board: Mutex::default(),
            writing: AtomicBool::new(true),
            end: AtomicI64::new(i64::MAX),
            ids: AtomicU64::new(0),
            faults: Mutex::default(),
            broken: Mutex::default(),
        }
    }

    pub fn is_writing(&self) -> bool {
        self.writing.load(Ordering::Relaxed)
    }

    pub fn stop_writing(&self) {
        self.writing.store(false, Ordering::Relaxed);
    }

    pub fn end(&self) -> i64 {
        self.end.load(Ordering::Relaxed)
    }

    pub fn set_end(&self, head: i64) {
        self.end.store(head, Ordering::Relaxed);
    }

    /// A replica has moved.
    pub fn set_base(&self, replica: usize, base: String) {
        self.bases.lock().unwrap_or_else(PoisonError::into_inner)[replica] = base;
    }

    pub fn bases(&self) -> Vec<String> {
        self.bases.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks one of the replicas.
    pub async fn ask(&self, random: &mut Random, feed: &str, path: &str, body: Option<&Value>) -> Answer {
        let base = random.pick(&self.bases()).clone();
        self.ask_at(&base, feed, path, body, PATIENCE).await
    }

    /// Asks a replica; `feed` says whose token.
    pub async fn ask_at(&self, base: &str, feed: &str, path: &str, body: Option<&Value>, patience: Duration) -> Answer {
        let url = format!("{base}{path}");
        let request = match body {
            Some(body) => self.http.post(url).json(body),
            None => self.http.get(url),
        };
        let answered = async {
            let response = request.bearer_auth(&self.tokens[feed]).timeout(patience).send().await?;
            let (status, headers) = (response.status(), response.headers().clone());
            Ok::<_, reqwest::Error>((status, headers, response.text().await?))
        };
        let (status, headers, text) = match answered.await {
            Ok(answer) => answer,
            Err(error) => {
                if !error.is_timeout() {
                    self.broken.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{path}: {error:?}"));
                }
                return Answer { outcome: Outcome::Unknown, json: Value::Null, headers: HeaderMap::new() };
            }
        };
        let json: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"));
        let outcome = if status.is_success() { Outcome::Ok } else { self.judge(&json) };
        Answer { outcome, json, headers }
    }

    /// What a problem object says of the operation.
    fn judge(&self, problem: &Value) -> Outcome {
        let code = problem["code"].as_u64().unwrap_or_else(|| panic!("no problem: {problem}"));
        if code >= 50000 && code != 50300 {
            self.faults.lock().unwrap_or_else(PoisonError::into_inner).push(problem.to_string());
        }
        if code >= 50000 || code == 42900 { Outcome::Unknown } else { Outcome::Fail(code) }
    }

    /// An Id that nobody has used; every other one is a UUID.
    pub fn new_id(&self, random: &mut Random) -> String {
        let count = self.ids.fetch_add(1, Ordering::Relaxed);
        if count.is_multiple_of(2) {
            uuid::Uuid::from_u128(u128::from(random.next()) << 64 | u128::from(count)).to_string()
        } else {
            format!("id-{count}")
        }
    }

    /// Sends messages (a batch when there are several) until what became of each is known.
    pub async fn send(&self, process: &str, random: &mut Random, mut messages: Vec<Send>) {
        for _ in 0..ATTEMPTS {
            messages = if random.one_in(IMPATIENT) {
                self.send_twice(process, random, messages).await
            } else {
                self.send_once(process, random, messages).await
            };
            if messages.is_empty() {
                return;
            }
            pause(random, 50..200).await;
        }
    }

    /// Two attempts, the second while the first may still be out; gives those whose outcome neither knows.
    async fn send_twice(&self, process: &str, random: &mut Random, messages: Vec<Send>) -> Vec<Send> {
        let (mut first, mut second) = (random.split(), random.split());
        let again = async {
            pause(&mut second, IMPATIENCE_MS).await;
            self.send_once(process, &mut second, messages.clone()).await
        };
        let (mut unknown, unknown_again) = tokio::join!(self.send_once(process, &mut first, messages.clone()), again);
        unknown.retain(|send| unknown_again.iter().any(|other| other.id == send.id && other.content == send.content));
        unknown
    }

    /// One attempt; gives those whose outcome is not known.
    pub async fn send_once(&self, process: &str, random: &mut Random, messages: Vec<Send>) -> Vec<Send> {
        let author = messages[0].author.clone();
        let object = |send: &Send| json!({"SessionId": send.session, "Id": send.id, "Content": send.content});
        let body = match messages.as_slice() {
            [only] => object(only),
            batch => batch.iter().map(object).collect(),
        };
        let invoked = self.recorder.now();
        let answer = self.ask(random, &author, "/message/send", Some(&body)).await;
        let single = messages.len() == 1;
        let mut unknown = Vec::new();
        for (position, mut send) in messages.into_iter().enumerate() {
            let item = if single { &answer.json } else { &answer.json[position] };
            let outcome = match (answer.outcome, item["Version"].as_i64()) {
                (Outcome::Ok, Some(version)) => {
                    send.version = version;
                    Outcome::Ok
                }
                (Outcome::Ok, None) => self.judge(item),
                (other, _) => other,
            };
            self.recorder.note(process, invoked, outcome, Kind::Send(send.clone()));
            if outcome == Outcome::Unknown {
                unknown.push(send);
            }
        }
        unknown
    }

    /// Changes a session; repeated until the outcome is known.
    pub async fn change(
        &self,
        process: &str,
        random: &mut Random,
        change: Change,
        caller: &str,
        body: &Value,
    ) -> Option<Value> {
        let path = match change {
            Change::Open => "/session/open",
            Change::Transfer => "/session/transfer",
            Change::Release => "/session/release",
            Change::Close => "/session/close",
        };
        let attempt = async |random: &mut Random| {
            let invoked = self.recorder.now();
            let answer = self.ask(random, caller, path, Some(body)).await;
            let session = Session {
                change,
                session: body["SessionId"].as_str().expect("a name").to_owned(),
                caller: caller.to_owned(),
                version: answer.json["Version"].as_i64().unwrap_or(0),
            };
            self.recorder.note(process, invoked, answer.outcome, Kind::Session(session));
            answer
        };
        for _ in 0..ATTEMPTS {
            let mut answer = if random.one_in(IMPATIENT) {
                let (mut first, mut second) = (random.split(), random.split());
                let again = async {
                    pause(&mut second, IMPATIENCE_MS).await;
                    attempt(&mut second).await
                };
                let (one, other) = tokio::join!(attempt(&mut first), again);
                // Done is done, whatever the other one was told since.
                if one.outcome == Outcome::Ok { one } else { other }
            } else {
                attempt(random).await
            };
            match answer.outcome {
                Outcome::Ok => return Some(answer.json.take()),
                Outcome::Fail(_) => return None,
                Outcome::Unknown => pause(random, 50..200).await,
            }
        }
        None
    }

    pub fn opened(&self, card: Card) {
        self.board.lock().unwrap_or_else(PoisonError::into_inner).insert(card.session.clone(), card);
    }

    pub fn closed(&self, session: &str) {
        self.board.lock().unwrap_or_else(PoisonError::into_inner).remove(session);
    }

    /// An agent's reader has seen a session come (true) or go.
    pub fn moved(&self, session: &str, agent: &str, came: bool) {
        if let Some(card) = self.board.lock().unwrap_or_else(PoisonError::into_inner).get_mut(session) {
            if came {
                card.owner = Some(agent.to_owned());
            } else if card.owner.as_deref() == Some(agent) {
                card.owner = None;
            }
        }
    }

    /// One of the sessions that fit.
    pub fn some_session(&self, random: &mut Random, fits: impl Fn(&Card) -> bool) -> Option<Card> {
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fitting: Vec<&Card> = board.values().filter(|card| fits(card)).collect();
        fitting.sort_by(|one, other| one.session.cmp(&other.session));
        if fitting.is_empty() { None } else { Some((*random.pick(&fitting)).clone()) }
    }

    pub fn sessions(&self) -> usize {
        self.board.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// Keeps a pace; nothing depends on how long it is.
pub async fn pause(random: &mut Random, ms: std::ops::Range<u64>) {
    let length = ms.start + random.next() % (ms.end - ms.start);
    tokio::time::sleep(Duration::from_millis(length)).await;
}
