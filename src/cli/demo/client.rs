//! A client as the wire contract wants it: repeats what may be repeated, with the same ids.

use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;
use tokio::time::sleep;

/// Longer than any poll is held.
const PATIENCE: Duration = Duration::from_secs(75);
/// How often a request is repeated: with pauses of up to a second, through a restart.
const TRIES: u32 = 60;

/// Somebody with a token.
#[derive(Clone)]
pub struct Client {
    base: String,
    token: String,
    http: reqwest::Client,
}

/// A page of events.
pub struct Page {
    pub events: Vec<Value>,
    pub next: i64,
    pub more: bool,
}

/// What a request was answered with, when the answer is final.
pub enum Answer {
    Done(Value),
    /// A problem's number.
    Refused(u64),
}

impl Client {
    pub fn new(base: &str, token: &str) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().timeout(PATIENCE).build().context("no HTTP client")?;
        Ok(Self { base: base.to_owned(), token: token.to_owned(), http })
    }

    pub fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    /// POSTs until the answer is final.
    pub async fn try_post(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        let response = self.repeat(path, || self.request(Method::POST, path).json(body)).await?;
        let status = response.status();
        let answer: Value = response.json().await.with_context(|| format!("POST {path}: the answer is not JSON"))?;
        Ok(if status.is_success() {
            Answer::Done(answer)
        } else {
            Answer::Refused(answer["code"].as_u64().unwrap_or(0))
        })
    }

    /// POSTs what must go well.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        match self.try_post(path, body).await? {
            Answer::Done(answer) => Ok(answer),
            Answer::Refused(code) => bail!("POST {path} was refused: {code}"),
        }
    }

    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let response = self.repeat(path, || self.request(Method::GET, path)).await?;
        let status = response.status();
        let answer: Value = response.json().await.with_context(|| format!("GET {path}: the answer is not JSON"))?;
        if !status.is_success() {
            bail!("GET {path} was refused: {answer}");
        }
        Ok(answer)
    }

    /// One page of a feed.
    pub async fn query(&self, parameters: &str) -> anyhow::Result<Page> {
        let path = format!("/message/query?{parameters}");
        let response = self.repeat(&path, || self.request(Method::GET, &path)).await?;
        if !response.status().is_success() {
            bail!("GET {path} was refused: {}", response.text().await?);
        }
        let header = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let (next, more) = (header("feed-next"), header("feed-more"));
        Ok(Page {
            next: next.parse().context("Feed-Next is no number")?,
            more: more == "true",
            events: response.json().await?,
        })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token)
    }

    /// Sends until the answer is neither an outage nor a request to come back later.
    async fn repeat(&self, path: &str, request: impl Fn() -> RequestBuilder) -> anyhow::Result<reqwest::Response> {
        let mut pause = Duration::from_millis(20);
        let mut last = String::new();
        for _ in 0..TRIES {
            match request().send().await {
                Ok(response) if !is_passing(response.status()) => return Ok(response),
                Ok(response) => last = response.status().to_string(),
                Err(error) => last = format!("{:#}", anyhow::Error::from(error)),
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
        bail!("{path}: no answer after {TRIES} tries; the last was: {last}")
    }
}

fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}
