//! A feed as a client reads it: before-queries, repeated when the answer says so or does not come.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use reqwest::{StatusCode, header::HeaderMap};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep};

/// Events asked for at a time: the most there can be.
const LIMIT: i64 = 1000;
/// Before-queries are answered at once; this is for a network that is slow.
const ANSWER: Duration = Duration::from_secs(60);
/// The first pause before a request is repeated, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The history is not kept that far.
const NOT_KEPT: u64 = 41000;
/// The history is another.
const OTHER_HISTORY: u64 = 41001;
const OTHER_HISTORY_CURE: &str = "the store's history is not the one this was begun with (it was restored, imported or failed over): remove the .partial file and start anew";

/// The feed of one token.
pub struct Feed {
    http: reqwest::Client,
    url: String,
    token: String,
    /// How long it may answer nothing of use before it is given up.
    patience: Duration,
}

/// A page of history.
#[derive(Debug)]
pub struct Page {
    /// Version and JSON, in the order of versions.
    pub events: Vec<(i64, Bytes)>,
    /// What to ask for next.
    pub next: i64,
    pub more: bool,
    pub epoch: String,
}

/// What a before-query is answered with, when the answer is final.
#[derive(Debug)]
pub enum Answer {
    Page(Page),
    /// Nothing before that version is kept any more.
    NotKept,
}

/// `application/problem+json`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Problem {
    code: u64,
    detail: String,
}

impl Feed {
    /// # Errors
    /// When no HTTP client can be had.
    pub fn new(url: &str, token: String, patience: Duration) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().timeout(ANSWER).build().context("no HTTP client")?;
        Ok(Self { http, url: format!("{}/message/query", url.trim_end_matches('/')), token, patience })
    }

    /// The newest events before a version; the newest of all without one. `epoch` is the history
    /// that is being read, once it is known.
    ///
    /// # Errors
    /// When the service refuses, or does not answer for too long.
    pub async fn before(&self, before: Option<i64>, epoch: Option<&str>) -> anyhow::Result<Answer> {
        self.query(before, epoch, LIMIT).await
    }

    /// Whether the feed has an event of this version.
    ///
    /// # Errors
    /// As [`Feed::before`].
    pub async fn has(&self, version: i64, epoch: &str) -> anyhow::Result<bool> {
        match self.query(Some(version.saturating_add(1)), Some(epoch), 1).await? {
            Answer::Page(page) => Ok(page.events.first().is_some_and(|(found, _)| *found == version)),
            Answer::NotKept => Ok(false),
        }
    }

    async fn query(&self, before: Option<i64>, epoch: Option<&str>, limit: i64) -> anyhow::Result<Answer> {
        let before_text = before.map_or_else(|| "now".to_owned(), |before| before.to_string());
        let mut query = vec![("b", before_text), ("limit", limit.to_string())];
        query.extend(epoch.map(|epoch| ("epoch", epoch.to_owned())));
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
        let (status, headers, body) = self.repeat(&format!("{}?{query}", self.url)).await?;
        if status.is_success() {
            let page = page(&headers, &body, before)
                .context("the answer is not what the wire contract says; is --url a deskfeed?")?;
            if epoch.is_some_and(|epoch| epoch != page.epoch) {
                bail!("{OTHER_HISTORY_CURE}");
            }
            return Ok(Answer::Page(page));
        }
        let problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
        match problem.code {
            NOT_KEPT => Ok(Answer::NotKept),
            OTHER_HISTORY => bail!("{OTHER_HISTORY_CURE}"),
            _ => bail!("{} answered {status}: {} {}", self.url, problem.code, problem.detail),
        }
    }

    /// Asks until the answer is final.
    async fn repeat(&self, url: &str) -> anyhow::Result<(StatusCode, HeaderMap, Bytes)> {
        let until = Instant::now() + self.patience;
        let mut pause = PAUSE_MIN;
        loop {
            let (why, wanted) = match self.ask(url).await {
                Ok((status, headers, body)) => match status.as_u16() {
                    429 | 502..=504 => (format!("it answered {status}"), retry_after(&headers)),
                    _ => return Ok((status, headers, body)),
                },
                Err(error) if error.is_builder() => return Err(error).context("--url is not the address of a service"),
                Err(error) => (format!("{:#}", anyhow::Error::from(error)), Duration::ZERO),
            };
            let wait = wanted.max(jittered(pause));
            if Instant::now() + wait > until {
                bail!(
                    "{} has been of no use for {} s ({why}); what was read is kept: run the same command again to continue",
                    self.url,
                    self.patience.as_secs()
                );
            }
            tracing::debug!(why, wait_ms = wait.as_millis(), "asking again");
            sleep(wait).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn ask(&self, url: &str) -> reqwest::Result<(StatusCode, HeaderMap, Bytes)> {
        let response = self.http.get(url).bearer_auth(&self.token).send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok((status, headers, response.bytes().await?))
    }
}

/// What the service asks for; nothing when it does not say how many seconds.
fn retry_after(headers: &HeaderMap) -> Duration {
    let seconds = headers.get("retry-after").and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    seconds.map_or(Duration::ZERO, Duration::from_secs)
}

/// Half of `pause` to all of it, so that clients do not come back in step. Without random numbers, all of it.
fn jittered(pause: Duration) -> Duration {
    let mut random = [u8::MAX];
    match getrandom::fill(&mut random) {
        Ok(()) => pause.mul_f64(0.5 + f64::from(random[0]) / 512.0),
        Err(_) => pause,
    }
}

/// Reads an answer, and checks what everything else relies on.
fn page(headers: &HeaderMap, body: &Bytes, before: Option<i64>) -> anyhow::Result<Page> {
    #[derive(Deserialize)]
    struct Event<'a> {
        #[serde(rename = "e", borrow)]
        _type: &'a RawValue,
        #[serde(rename = "Version")]
        version: i64,
    }
    let header = |name: &str| {
        headers.get(name).and_then(|value| value.to_str().ok()).with_context(|| format!("there is no {name}"))
    };
    let more = match header("feed-more")? {
        "true" => true,
        "false" => false,
        other => bail!("Feed-More is {other}"),
    };
    let next = header("feed-next")?.parse().context("Feed-Next is no number")?;
    let epoch = header("feed-epoch")?.to_owned();
    let mut events: Vec<(i64, Bytes)> = Vec::new();
    for raw in serde_json::from_slice::<Vec<&RawValue>>(body).context("the answer is no list of events")? {
        let event: Event = serde_json::from_str(raw.get()).context("an event is none")?;
        let follows = events.last().is_none_or(|(last, _)| *last < event.version);
        if !follows || before.is_some_and(|before| event.version >= before) {
            bail!("event {} is out of order", event.version);
        }
        // Line ends stand between members only: within texts they are escaped.
        let line = match raw.get().contains(['\n', '\r']) {
            true => Bytes::from(raw.get().replace(['\n', '\r'], " ")),
            false => body.slice_ref(raw.get().as_bytes()),
        };
        events.push((event.version, line));
    }
    if more && (events.is_empty() || before.is_some_and(|before| next >= before)) {
        bail!("there is more, but nothing to go on from (Feed-Next is {next})");
    }
    Ok(Page { events, next, more, epoch })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(next: &'static str, more: &'static str, body: &'static str) -> anyhow::Result<Page> {
        let mut headers = HeaderMap::new();
        for (name, value) in [("feed-next", next), ("feed-more", more), ("feed-epoch", "e")] {
            headers.insert(name, value.parse().expect("a header"));
        }
        page(&headers, &Bytes::from_static(body.as_bytes()), Some(10))
    }

    #[test]
    fn a_page_is_read_as_it_is_and_each_event_is_one_line() {
        let found = read(
            "3",
            "true",
            "[{\"e\":\"Message\",\"Version\":3,\n  \"Data\": {\"a\":\"\\n\"}} ,{\"Version\":9,\"e\":\"x\"}]",
        );
        let found = found.expect("a page");
        let lines: Vec<&[u8]> = found.events.iter().map(|(_, line)| &line[..]).collect();
        assert_eq!(
            lines,
            [br#"{"e":"Message","Version":3,   "Data": {"a":"\n"}}"#.as_slice(), br#"{"Version":9,"e":"x"}"#]
        );
        assert_eq!((found.events[0].0, found.events[1].0, found.next, found.more), (3, 9, 3, true));
        assert!(read("0", "false", "[]").expect("a page").events.is_empty());
    }

    #[test]
    fn what_would_lose_or_repeat_events_is_refused() {
        for (next, more, body) in [
            ("0", "true", "[]"),
            ("10", "true", r#"[{"e":"x","Version":9}]"#),
            ("5", "false", r#"[{"e":"x","Version":10}]"#),
            ("5", "false", r#"[{"e":"x","Version":5},{"e":"x","Version":5}]"#),
            ("5", "false", r#"[{"e":"x","Version":6},{"e":"x","Version":5}]"#),
            ("5", "false", r#"[{"Version":5}]"#),
            ("5", "false", r#"[{"e":"x"}]"#),
            ("five", "false", "[]"),
            ("5", "maybe", "[]"),
            ("5", "false", "{}"),
            ("5", "false", "<html>"),
        ] {
            assert!(read(next, more, body).is_err(), "{next} {more} {body}");
        }
    }
}
