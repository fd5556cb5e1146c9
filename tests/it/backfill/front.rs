//! What stands between a client and the service, and does not always let it through.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};

use crate::support::{
    client::{self, Client},
    process::START,
};

/// What becomes of a request.
#[derive(Debug, Clone, Copy)]
pub enum Fate {
    Answered,
    /// An answer of this status with this `Retry-After`.
    Turned(u16, Option<u64>),
    /// A problem of this number.
    Problem(u64),
    /// The connection ends without an answer.
    Dropped,
    /// The connection ends in the middle of the answer.
    Cut,
    /// Nothing comes.
    Held,
}

/// A front for one client's requests.
pub struct Front {
    pub base: String,
    /// Paths and times of the requests so far.
    asked: Arc<Mutex<Vec<(String, Instant)>>>,
}

impl Front {
    /// `fate` decides by the request's number, from 0.
    pub async fn start(client: &Client, fate: impl Fn(usize) -> Fate + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let asked = Arc::<Mutex<Vec<(String, Instant)>>>::default();
        let (client, all) = (client.clone(), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let path = path_of(stream, &all).await;
                let Some((stream, path, number)) = path else { continue };
                tokio::spawn(answer(stream, client.clone(), path, fate(number)));
            }
        });
        Self { base, asked }
    }

    pub fn asked(&self) -> Vec<(String, Instant)> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many requests have come.
    pub async fn until_asked(&self, times: usize) {
        let until = Instant::now() + START;
        while self.asked().len() < times {
            assert!(Instant::now() < until, "asked only for {:?}", self.asked());
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Reads a request without a body; one for each connection.
async fn path_of(mut stream: TcpStream, asked: &Mutex<Vec<(String, Instant)>>) -> Option<(TcpStream, String, usize)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let path = String::from_utf8(head).expect("text").split(' ').nth(1).expect("a path").to_owned();
    let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    asked.push((path.clone(), Instant::now()));
    Some((stream, path, asked.len() - 1))
}

async fn answer(mut stream: TcpStream, client: Client, path: String, fate: Fate) {
    let text = match fate {
        Fate::Answered | Fate::Cut => {
            let reply = client::finish(client.request(http::Method::GET, &path)).await.expect("an answer");
            let names = ["content-type", "feed-next", "feed-more", "feed-epoch"].into_iter();
            let headers: Vec<String> = names
                .filter(|name| reply.headers.contains_key(*name))
                .map(|name| format!("{name}: {}\r\n", reply.header(name)))
                .collect();
            format!(
                "HTTP/1.1 {}\r\n{}content-length: {}\r\nconnection: close\r\n\r\n{}",
                reply.status,
                headers.concat(),
                reply.text.len(),
                reply.text
            )
        }
        Fate::Turned(status, after) => {
            let after = after.map_or_else(String::new, |seconds| format!("retry-after: {seconds}\r\n"));
            format!("HTTP/1.1 {status} No\r\n{after}content-length: 0\r\nconnection: close\r\n\r\n")
        }
        Fate::Problem(code) => {
            let body = format!("{{\"code\":{code},\"detail\":\"so it is\"}}");
            let status = code / 100;
            format!("HTTP/1.1 {status} No\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
        }
        Fate::Dropped => return,
        Fate::Held => return std::future::pending().await,
    };
    let bytes = match fate {
        Fate::Cut => &text.as_bytes()[..text.len() - 200],
        _ => text.as_bytes(),
    };
    // A client that was killed does not read it.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
}
