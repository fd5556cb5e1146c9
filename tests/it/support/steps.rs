//! Steps of a test that wait, each bounded and named, so that a hang says where it is.

use std::time::Duration;

use serde_json::Value;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::client::{Client, Reply};

/// Longer than any request but a poll may take, whatever is wrong.
pub const USUAL: Duration = Duration::from_secs(20);
/// Longer than anything else may take that is to happen in the end.
pub const IN_THE_END: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// Does `work`, which must be done within `limit`.
pub async fn within<T>(what: &str, limit: Duration, work: impl Future<Output = T>) -> T {
    timeout(limit, work).await.unwrap_or_else(|_| panic!("not within {limit:?}: {what}"))
}

/// The result of a task, which must be there within `limit`.
pub async fn joined<T>(what: &str, limit: Duration, task: JoinHandle<T>) -> T {
    within(what, limit, task).await.unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// Asks until the answer is yes.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let last = Instant::now() + IN_THE_END;
    while !is_so().await {
        assert!(Instant::now() < last, "it never happens: {what}");
        sleep(LOOK).await;
    }
}

/// A request in a task of its own.
pub fn posting(client: &Client, path: &str, body: Value) -> JoinHandle<Reply> {
    let (client, path) = (client.clone(), path.to_owned());
    tokio::spawn(async move { client.post(&path, body).await })
}

/// A poll in a task of its own; again while its token has as many open as it may.
pub fn polling(client: &Client, parameters: String) -> JoinHandle<Reply> {
    let client = client.clone();
    tokio::spawn(async move {
        loop {
            let reply = client.query(&parameters).await;
            if reply.status != 429 {
                return reply;
            }
            sleep(LOOK).await;
        }
    })
}

/// Repeats a request until it is answered with 200, as a client does: only 50300 may come before.
pub async fn repeated(what: &str, client: &Client, path: &str, body: &Value) -> Value {
    let last = Instant::now() + IN_THE_END;
    loop {
        let reply = within(what, USUAL, client.post(path, body.clone())).await;
        if reply.status == 200 {
            return reply.json();
        }
        assert_eq!(reply.code(), 50300, "{what}: {}", reply.text);
        assert!(Instant::now() < last, "never answered with 200: {what}");
        sleep(LOOK).await;
    }
}

/// A query that is repeated until it is answered with something else than 50300.
pub async fn read(what: &str, client: &Client, parameters: &str) -> Reply {
    let last = Instant::now() + IN_THE_END;
    loop {
        let reply = within(what, USUAL, client.query(parameters)).await;
        if reply.status != 503 {
            return reply;
        }
        assert!(Instant::now() < last, "never answered: {what}");
        sleep(LOOK).await;
    }
}

/// Waits until a reader has as many polls open at its replica as its token may have.
pub async fn are_parked(reader: &Client, polls: &[JoinHandle<Reply>]) {
    until("the polls are parked", async || {
        assert!(polls.iter().all(|poll| !poll.is_finished()), "a poll is over that was to be parked");
        reader.query("a=0&wait=0").await.status == 429
    })
    .await;
}
