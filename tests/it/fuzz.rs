//! Malformed requests at every route: each is answered, and never with a 5xx.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{Client, TestDesk, client::finish, random::Random};

const PATIENCE: Duration = Duration::from_secs(30);

const NAMES: [&str; 32] = [
    "a",
    "after",
    "b",
    "before",
    "c",
    "acks",
    "t",
    "type",
    "limit",
    "epoch",
    "feed",
    "status",
    "SessionId",
    "Id",
    "Content",
    "ContentType",
    "FromId",
    "FromName",
    "FromImage",
    "ToId",
    "ToNewId",
    "SessionType",
    "Status",
    "Role",
    "Subject",
    "ExpiresIn",
    "TokenId",
    "MaxSessions",
    "Name",
    "Image",
    "",
    "\u{0}",
];

const TEXTS: [&str; 30] = [
    "",
    "0",
    "1",
    "-1",
    "now",
    "@",
    "@2026-11-22T09:30:00Z",
    "@-9999-01-01T00:00:00Z",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "1e309",
    "NaN",
    "1-",
    "-1-1",
    "0-9223372036854775807",
    "s1",
    "ann",
    "web",
    "nosuch",
    "a\u{0}b",
    "\u{0}",
    "é",
    "' or 1=1 --",
    "%s%n{}{{}}",
    "../../etc/passwd",
    "Message,Nonsense",
    "，；,;",
    "online",
    "😀\u{202e}\u{feff}",
];

const TYPES: [&str; 9] = [
    "application/json",
    "application/x-www-form-urlencoded",
    "application/json; charset=utf-8",
    "application/json;charset=utf-16",
    "text/plain",
    "multipart/form-data; boundary=x",
    "application/json; boundary",
    "",
    "*/*",
];

fn value(random: &mut Random, depth: usize) -> Value {
    match random.below(if depth > 3 { 8 } else { 10 }) {
        0 => Value::Null,
        1 => Value::Bool(random.chance(50)),
        2 => json!(i64::MIN),
        3 => json!(u64::MAX),
        4 => json!(1.5e300),
        5 => json!(random.below(3)),
        6 | 7 => Value::from(*random.pick(&TEXTS)),
        8 => (0..random.below(4)).map(|_| value(random, depth + 1)).collect(),
        _ => object(random, depth + 1),
    }
}

fn object(random: &mut Random, depth: usize) -> Value {
    let mut members = serde_json::Map::new();
    for _ in 0..random.below(6) {
        let member = value(random, depth);
        members.insert((*random.pick(&NAMES)).to_owned(), member);
    }
    Value::Object(members)
}

/// A body that is nearly right, or not at all.
fn body(random: &mut Random) -> Vec<u8> {
    let whole = match random.below(9) {
        0 => object(random, 0).to_string().into_bytes(),
        1 => Value::from((0..random.below(5)).map(|_| object(random, 0)).collect::<Vec<_>>()).to_string().into_bytes(),
        2 => query(random).into_bytes(),
        3 => {
            let size = random.below(200);
            random.bytes(size)
        }
        4 => format!("{}{}", "[".repeat(5000), "]".repeat(5000)).into_bytes(),
        5 => format!("{}1{}", r#"{"SessionId":"#.repeat(3000), "}".repeat(3000)).into_bytes(),
        6 => br#"{"SessionId":"s1","Content":"\ud800","Id":"\udfff"}"#.to_vec(),
        7 => format!(r#"{{"SessionId":"s1","SessionType":{},"Content":1}}"#, "9".repeat(4000)).into_bytes(),
        _ => value(random, 0).to_string().into_bytes(),
    };
    if random.chance(20) { whole[..random.below(whole.len() + 1)].to_vec() } else { whole }
}

/// A query string, percent-encoded or not quite.
fn query(random: &mut Random) -> String {
    let mut pairs = Vec::new();
    for _ in 0..random.below(5) {
        let (name, text) = (*random.pick(&NAMES), *random.pick(&TEXTS));
        let encode = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        pairs.push(match random.below(6) {
            0 => format!("{}={}", encode(name), "%FF%FE"),
            1 => format!("{}=%zz%", encode(name)),
            2 => encode(name),
            3 => {
                let size = random.below(40);
                format!(
                    "{}={}",
                    encode(name),
                    random.bytes(size).iter().map(|byte| format!("%{byte:02X}")).collect::<String>()
                )
            }
            _ => format!("{}={}", encode(name), encode(text)),
        });
    }
    pairs.join("&")
}

#[tokio::test]
async fn no_request_is_too_odd_for_any_route() {
    let mut random = Random::of("no_request_is_too_odd_for_any_route");
    let desk = TestDesk::start().await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    web.send("s1", "text").await.ok();
    let stranger = Client::new(&desk.base(0), "nobody");
    let api = desk.admin.get("/openapi.json").await.ok();
    let paths: Vec<&String> = api["paths"].as_object().expect("paths").keys().collect();
    for path in &paths {
        for round in 0..60 {
            let client = random.pick(&[desk.admin.clone(), ann.clone(), web.clone(), stranger.clone()]).clone();
            let method = random.pick(&["GET", "POST", "POST", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "FOO"]);
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            // `wait=0`: what happens to be right is to be answered at once.
            let target = format!("{path}?wait=0&{}", query(&mut random));
            let content_type = *random.pick(&TYPES);
            let body = body(&mut random);
            let shown = format!("{round}: {method} {target} {content_type} {:?}", String::from_utf8_lossy(&body));
            let request = client.request(method, &target).header("content-type", content_type).body(body);
            let answer = timeout(PATIENCE, finish(request)).await.unwrap_or_else(|_| panic!("no answer: {shown}"));
            let answer = answer.unwrap_or_else(|error| panic!("{error}: {shown}"));
            if answer.status.is_success() {
                continue;
            }
            assert!(answer.code() < 50000, "{}: {shown}", answer.text);
        }
    }
    // It is as well as before.
    assert_eq!(desk.admin.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn a_chunked_body_over_the_limit_is_refused_at_every_route() {
    let desk = TestDesk::start().await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    for (client, path, total) in [
        (&web, "/message/send", 9 << 20),
        (&ann, "/message/query?wait=0", 300 << 10),
        (&web, "/session/open", 300 << 10),
        (&ann, "/session/close", 2 << 20),
        (&ann, "/session/release", 300 << 10),
        (&ann, "/session/transfer", 300 << 10),
        (&ann, "/agent/presence", 300 << 10),
        (&desk.admin, "/admin/agent", 300 << 10),
        (&desk.admin, "/admin/gateway", 300 << 10),
        (&desk.admin, "/admin/token", 300 << 10),
        (&desk.admin, "/admin/token/revoke", 20 << 20),
    ] {
        let chunk = vec![b' '; 50_000];
        let chunks: Vec<Result<Vec<u8>, std::io::Error>> =
            (0..=total / chunk.len()).map(|_| Ok(chunk.clone())).collect();
        let body = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
        assert_eq!(client.post_text(path, "application/json", body).await.code(), 41300, "{path}");
    }
}

#[derive(PartialEq)]
enum Then {
    Stay,
    Leave,
}

/// Sends bytes on a connection of its own and gives all that comes back.
async fn raw(address: &str, bytes: &[u8], then: Then) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    // The answer may come, and the connection end, before all is taken.
    drop(stream.write_all(bytes).await);
    if then == Then::Leave {
        drop(stream.shutdown().await);
    }
    let mut answer = Vec::new();
    let read = async {
        let mut buffer = [0; 4096];
        while let Ok(count) = stream.read(&mut buffer).await
            && count > 0
        {
            answer.extend_from_slice(&buffer[..count]);
        }
    };
    timeout(PATIENCE, read).await.unwrap_or_else(|_| {
        panic!("neither answered nor closed: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(200)]))
    });
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn bytes_that_are_no_request_are_answered_with_a_problem() {
    let desk = TestDesk::start().await;
    let address = desk.base(0).trim_start_matches("http://").to_owned();
    let token = &desk.admin.token;
    let close = format!("host: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\n");
    let chunked = format!(
        "POST /message/query?wait=0&feed=ann HTTP/1.1\r\n{close}content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    for (bytes, status) in [
        (b"nonsense\r\n\r\n".to_vec(), "400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), "400"),
        (b"GET\r\n\r\n".to_vec(), "400"),
        (b"GET /healthz HTTP/9.9\r\n\r\n".to_vec(), "400"),
        (format!("GET /healthz HTTP/1.1\r\nbad header\r\n{close}\r\n").into_bytes(), "400"),
        (format!("GET /healthz HTTP/1.1\r\nx: a\0b\r\n{close}\r\n").into_bytes(), "400"),
        (format!("GET /health z HTTP/1.1\r\n{close}\r\n").into_bytes(), "400"),
        (format!("POST /message/query HTTP/1.1\r\ncontent-length: -1\r\n{close}\r\n").into_bytes(), "400"),
        (
            format!("POST /message/query HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n{close}\r\n")
                .into_bytes(),
            "400",
        ),
        (
            format!("POST /message/query HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n{close}\r\n").into_bytes(),
            "400",
        ),
        (format!("{chunked}zz\r\n").into_bytes(), "400"),
        (format!("{chunked}-1\r\n").into_bytes(), "400"),
        (format!("{chunked}fffffffffffffffffff\r\n").into_bytes(), "400"),
        (format!("GET /healthz HTTP/1.1\r\nx: {}\r\n{close}\r\n", "y".repeat(200_000)).into_bytes(), "400"),
        (format!("GET /healthz HTTP/1.1\r\n{}{close}\r\n", "x: y\r\n".repeat(500)).into_bytes(), "400"),
        (format!("GET /{} HTTP/1.1\r\n{close}\r\n", "x".repeat(1_000_000)).into_bytes(), "4"),
        (format!("GET /message/query?c={} HTTP/1.1\r\n{close}\r\n", "1".repeat(50_000)).into_bytes(), "400"),
        (format!("OPTIONS * HTTP/1.1\r\n{close}\r\n").into_bytes(), "40"),
        (format!("CONNECT x:1 HTTP/1.1\r\n{close}\r\n").into_bytes(), "40"),
        (format!("GET http://x/nosuch HTTP/1.1\r\n{close}\r\n").into_bytes(), "404"),
        (format!("FOO /message/query HTTP/1.1\r\n{close}\r\n").into_bytes(), "405"),
    ] {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(120)]).into_owned();
        let answer = raw(&address, &bytes, Then::Stay).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{shown:?}: {answer:?}");
        assert!(answer.to_lowercase().contains("content-type: application/problem+json"), "{shown:?}: {answer:?}");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let problem: Value =
            serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {shown:?}: {answer:?}"));
        assert_eq!(problem["code"].as_u64().map(|code| code / 100), problem["status"].as_u64(), "{problem}");
    }
    let absolute = format!("GET http://x/healthz HTTP/1.1\r\n{close}\r\n");
    assert!(raw(&address, absolute.as_bytes(), Then::Stay).await.starts_with("HTTP/1.1 200"));
    let old = format!("GET /healthz HTTP/1.0\r\n{close}\r\n");
    assert!(raw(&address, old.as_bytes(), Then::Stay).await.contains(" 200 OK"));
}

#[tokio::test]
async fn random_bytes_on_a_socket_harm_nobody() {
    let mut random = Random::of("random_bytes_on_a_socket_harm_nobody");
    let desk = TestDesk::start().await;
    let address = desk.base(0).trim_start_matches("http://").to_owned();
    let request = format!(
        "GET /message/query?a=0&wait=0&feed=ann HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {}\r\n\r\n",
        desk.admin.token
    );
    for _ in 0..200 {
        let mut bytes = if random.chance(30) {
            let size = random.below(300) + 1;
            random.bytes(size)
        } else {
            request.clone().into_bytes()
        };
        for _ in 0..random.below(4) {
            let position = random.below(bytes.len());
            bytes[position] = random.bytes(1)[0];
        }
        // What is left open, or is right by chance and would be waited for, ends with our side.
        bytes.extend_from_slice(b"\r\n\r\n");
        let answer = raw(&address, &bytes, Then::Leave).await;
        assert!(!answer.starts_with("HTTP/1.1 5"), "{answer}: {:?}", String::from_utf8_lossy(&bytes));
    }
    assert_eq!(desk.admin.get("/readyz").await.status, 200);
}
