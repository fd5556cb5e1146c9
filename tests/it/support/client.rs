//! A client as others would write one: plain HTTP.

use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

/// Somebody with a token.
#[derive(Clone)]
pub struct Client {
    pub base: String,
    pub token: String,
    http: reqwest::Client,
}

/// An answer, taken apart.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {:?}", self.text))
    }

    /// The events of a 200.
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json().as_array().expect("an array").clone()
    }

    pub fn versions(&self) -> Vec<i64> {
        self.events().iter().map(|event| event["Version"].as_i64().expect("a version")).collect()
    }

    /// (type, content of the only message or the number of messages) of each event.
    pub fn contents(&self) -> Vec<String> {
        self.events()
            .iter()
            .filter(|event| event["e"] == "Message")
            .map(|event| event["Data"]["Message"][0]["Content"].as_str().expect("a text").to_owned())
            .collect()
    }

    /// One event of a 200.
    pub fn event(&self, position: usize) -> Value {
        self.events()[position].clone()
    }

    pub fn types(&self) -> Vec<String> {
        self.events().iter().map(|event| event["e"].as_str().expect("a type").to_owned()).collect()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no header {name}")).to_str().expect("text")
    }

    pub fn next(&self) -> i64 {
        self.header("feed-next").parse().expect("a number")
    }

    pub fn more(&self) -> bool {
        self.header("feed-more") == "true"
    }

    /// The JSON of a 200.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }

    /// The number of a problem, after a look at its form.
    #[track_caller]
    pub fn code(&self) -> u64 {
        assert!(!self.status.is_success(), "no problem: {}", self.text);
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        let code = problem["code"].as_u64().expect("a code");
        assert_eq!(code / 100, u64::from(self.status.as_u16()), "the status is the code's first digits");
        assert_eq!(problem["status"], self.status.as_u16());
        for member in ["type", "title", "detail"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{member} of {problem}");
        }
        code
    }
}

impl Client {
    pub fn new(base: &str, token: &str) -> Self {
        // One pool per client; no proxy of the environment, no time-out of our own.
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { base: base.to_owned(), token: token.to_owned(), http }
    }

    /// The same token at another replica.
    pub fn at(&self, base: &str) -> Self {
        Self { base: base.to_owned(), ..self.clone() }
    }

    pub fn request(&self, method: http::Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token)
    }

    pub async fn try_get(&self, path: &str) -> reqwest::Result<Reply> {
        finish(self.request(http::Method::GET, path)).await
    }

    pub async fn try_post(&self, path: &str, body: &Value) -> reqwest::Result<Reply> {
        finish(self.request(http::Method::POST, path).json(body)).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.try_get(path).await.expect("an answer")
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.try_post(path, &body).await.expect("an answer")
    }

    pub async fn form(&self, path: &str, body: &str) -> Reply {
        let request = self
            .request(http::Method::POST, path)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body.to_owned());
        finish(request).await.expect("an answer")
    }

    /// GET /message/query
    pub async fn query(&self, parameters: &str) -> Reply {
        self.get(&format!("/message/query?{parameters}")).await
    }

    pub async fn send(&self, session: &str, content: &str) -> Reply {
        self.post("/message/send", json!({"SessionId": session, "Content": content})).await
    }

    pub async fn send_id(&self, session: &str, id: &str, content: &str) -> Reply {
        self.post("/message/send", json!({"SessionId": session, "Id": id, "Content": content})).await
    }

    /// `POST /message/query`
    pub async fn query_post(&self, body: Value) -> Reply {
        self.post("/message/query", body).await
    }

    /// `POST` of a session operation that needs nothing but the session.
    pub async fn session(&self, operation: &str, session: &str) -> Reply {
        self.post(&format!("/session/{operation}"), json!({"SessionId": session})).await
    }

    pub async fn transfer(&self, session: &str, to: &str) -> Reply {
        self.post("/session/transfer", json!({"SessionId": session, "ToNewId": to})).await
    }

    /// `POST` of a text that need not be JSON.
    pub async fn post_text(&self, path: &str, content_type: &str, body: impl Into<reqwest::Body>) -> Reply {
        let request = self.request(http::Method::POST, path).header("content-type", content_type).body(body);
        finish(request).await.expect("an answer")
    }

    /// All of this token's feed as it is now.
    pub async fn feed(&self) -> Vec<Value> {
        let answer = self.query("a=0&limit=1000&wait=0").await;
        assert!(!answer.more(), "more than a page");
        answer.events()
    }

    /// Opens a session for an agent.
    pub async fn open_to(&self, session: &str, agent: &str) -> Reply {
        self.post("/session/open", json!({"SessionId": session, "FromId": "customer", "ToId": agent})).await
    }

    /// Opens a session for whoever is available.
    pub async fn open(&self, session: &str) -> Reply {
        self.post("/session/open", json!({"SessionId": session, "FromId": "customer"})).await
    }
}

/// Sends a request and takes the answer apart.
pub async fn finish(request: reqwest::RequestBuilder) -> reqwest::Result<Reply> {
    let response = request.send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    Ok(Reply { status, headers, text: response.text().await? })
}
