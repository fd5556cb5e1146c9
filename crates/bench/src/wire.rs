//! An HTTP client that is cheaper than what it measures: prepared requests, one connection per client, heads parsed by
//! httparse, no buffer while idle. A general-purpose client would use more of the shared cores than the service.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, bail, ensure};
use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{TcpSocket, TcpStream},
};

/// Initial read buffer: enough for a head and one event.
const BUFFER_BYTES: usize = 1024;
/// Most headers of an answer.
const HEADERS_MAX: usize = 24;
/// Connections per source address, which has 28,000 ports.
const CONNECTIONS_PER_SOURCE: usize = 20_000;

/// A keep-alive connection.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    unread: BytesMut,
}

/// An answer.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// `Feed-Next`; 0 without it.
    pub feed_next: i64,
    pub feed_more: bool,
    pub body: Bytes,
}

impl Wire {
    /// # Errors
    /// When nothing listens there, or the machine is out of sockets.
    pub async fn connect(to: SocketAddr) -> anyhow::Result<Self> {
        Self::set_up(TcpStream::connect(to).await, to)
    }

    /// Connects from a given source address; each has ports for only 28,000 connections.
    ///
    /// # Errors
    /// As [`Wire::connect`], or when the address does not belong to this machine.
    pub async fn connect_from(source: Ipv4Addr, to: SocketAddr) -> anyhow::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((source, 0).into()).with_context(|| format!("{source} cannot be connected from"))?;
        Self::set_up(socket.connect(to).await, to)
    }

    /// Opens connection `number` of very many, from a source address that still has ports, where there are several
    /// (on loopback).
    ///
    /// # Errors
    /// As [`Wire::connect`].
    pub async fn connect_numbered(number: usize, to: SocketAddr) -> anyhow::Result<Self> {
        let host = number / CONNECTIONS_PER_SOURCE + 1;
        if host == 1 || to.ip() != IpAddr::V4(Ipv4Addr::LOCALHOST) {
            return Self::connect(to).await;
        }
        let host = u8::try_from(host).context("too many connections")?;
        Self::connect_from(Ipv4Addr::new(127, 0, 0, host), to).await
    }

    fn set_up(connected: std::io::Result<TcpStream>, to: SocketAddr) -> anyhow::Result<Self> {
        let stream = connected.with_context(|| format!("{to} cannot be reached"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, unread: BytesMut::new() })
    }

    /// # Errors
    /// When the connection was closed.
    pub async fn send(&mut self, request: &[u8]) -> anyhow::Result<()> {
        Ok(self.stream.write_all(request).await?)
    }

    /// Receives the next answer. Cancel-safe until its first byte.
    ///
    /// # Errors
    /// When the connection was closed, or the answer is malformed.
    pub async fn receive(&mut self) -> anyhow::Result<Response> {
        if self.unread.is_empty() {
            // Tens of thousands of clients wait: none holds a buffer meanwhile.
            self.unread = BytesMut::new();
            self.stream.ready(Interest::READABLE).await?;
        }
        let mut head = loop {
            if let Some(head) = Head::parse(&self.unread)? {
                break head;
            }
            self.read(BUFFER_BYTES).await?;
        };
        self.unread.advance(head.bytes);
        while self.unread.len() < head.body_bytes {
            self.read(head.body_bytes - self.unread.len()).await?;
        }
        head.response.body = self.unread.split_to(head.body_bytes).freeze();
        Ok(head.response)
    }

    /// # Errors
    /// As [`Wire::send`] and [`Wire::receive`].
    pub async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<Response> {
        self.send(request).await?;
        self.receive().await
    }

    /// As [`Wire::exchange`], for requests that must be answered with 200.
    ///
    /// # Errors
    /// As [`Wire::exchange`], or on any other status.
    pub async fn exchange_ok(&mut self, request: &[u8]) -> anyhow::Result<Response> {
        let response = self.exchange(request).await?;
        response.check()?;
        Ok(response)
    }

    async fn read(&mut self, room: usize) -> anyhow::Result<()> {
        self.unread.reserve(room);
        ensure!(self.stream.read_buf(&mut self.unread).await? > 0, "the connection was closed");
        Ok(())
    }
}

impl Response {
    /// # Errors
    /// On any status but 200; includes the body.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(self.status == 200, "answered {}: {}", self.status, String::from_utf8_lossy(&self.body));
        Ok(())
    }
}

struct Head {
    bytes: usize,
    body_bytes: usize,
    response: Response,
}

impl Head {
    /// Parses the head at the start of `bytes`; `None` while it is incomplete.
    fn parse(bytes: &[u8]) -> anyhow::Result<Option<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(size) = parsed.parse(bytes)? else { return Ok(None) };
        let status = parsed.code.unwrap_or(0);
        let response = Response { status, feed_next: 0, feed_more: false, body: Bytes::new() };
        let mut head = Self { bytes: size, body_bytes: 0, response };
        for header in parsed.headers.iter() {
            let name = header.name;
            if name.eq_ignore_ascii_case("content-length") {
                head.body_bytes = std::str::from_utf8(header.value)?.parse()?;
            } else if name.eq_ignore_ascii_case("feed-next") {
                head.response.feed_next = std::str::from_utf8(header.value)?.parse()?;
            } else if name.eq_ignore_ascii_case("feed-more") {
                head.response.feed_more = header.value == b"true";
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                bail!("a chunked answer, which this client does not support");
            }
        }
        Ok(Some(head))
    }
}

/// Builds a complete GET request.
pub fn get(path: &str, token: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n\r\n").into_bytes()
}

/// Builds a complete POST request.
pub fn post(path: &str, token: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut request = Vec::with_capacity(head.len() + body.len());
    request.extend_from_slice(head.as_bytes());
    request.extend_from_slice(body);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_when_all_of_it_is_there() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nFeed-Next: 4711\r\nfeed-more: true\r\n\r\n[]";
        assert!(Head::parse(&answer[..40]).unwrap().is_none());
        let head = Head::parse(answer).unwrap().unwrap();
        assert_eq!((head.bytes, head.body_bytes), (answer.len() - 2, 2));
        assert_eq!((head.response.status, head.response.feed_next, head.response.feed_more), (200, 4711, true));
    }
}
