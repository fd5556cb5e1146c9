//! /message/send: one message, a batch, repetitions, limits.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Client, TestDesk};

const CONTENT_MAX: usize = 64 * 1024;
const BODY_MAX: usize = 256 * 1024;
const BATCH_MAX: usize = 8 * 1024 * 1024;

async fn desk_with_session() -> (TestDesk, Client, Client) {
    let desk = TestDesk::with(3, &[]).await;
    let (ann, web) = (desk.agent("ann").await, desk.gateway("web").await);
    web.open_to("s1", "ann").await.ok();
    (desk, ann, web)
}

#[tokio::test]
async fn a_message_is_answered_with_what_was_kept() {
    let (_desk, ann, web) = desk_with_session().await;
    let sent = web.post("/message/send", json!({"SessionId": "s1", "Content": "你好", "Unknown": {"x": 1}})).await.ok();
    let fields: Vec<&String> = sent.as_object().expect("an object").keys().collect();
    assert_eq!(fields, ["CreateTime", "Id", "SessionId", "Version"]);
    let id = uuid::Uuid::parse_str(sent["Id"].as_str().expect("a text")).expect("a UUID");
    assert_eq!((id.get_version_num(), &sent["SessionId"], &sent["Version"]), (7, &json!("s1"), &json!(3)));
    let message = &ann.feed().await[1]["Data"]["Message"][0];
    assert_eq!((&message["Id"], &message["CreateTime"]), (&sent["Id"], &sent["CreateTime"]));
    assert_eq!(message["Content"], "你好");
    let form = web.form("/message/send", "SessionId=s1&Id=f-1&ContentType=0&Content=a%20b+c%26%E4%BD%A0").await.ok();
    assert_eq!((&form["Id"], &form["Version"]), (&json!("f-1"), &json!(4)));
    assert_eq!(ann.query("a=3&wait=0").await.contents(), ["a b c&你"]);
    // What is empty is absent.
    let empty = json!({"SessionId": "s1", "Id": "", "ContentType": "", "Content": ""});
    assert_eq!(web.post("/message/send", empty).await.ok()["Version"], 5);
}

#[tokio::test]
async fn content_comes_back_as_it_was() {
    let (_desk, ann, web) = desk_with_session().await;
    let texts = [
        "\u{1}\u{1f}\t\r\n\"\\/</script>\u{2028}\u{2029}",
        "\u{feff}\u{200b}\u{202e}\u{fffd}\u{ffff}",
        "😀👨‍👩‍👧 e\u{301} \u{10ffff}",
        "'; drop table events; --",
        "%00 {} [] null",
        " leading and trailing ",
    ];
    for text in texts {
        web.send("s1", text).await.ok();
    }
    assert_eq!(ann.query("a=0&wait=0").await.contents(), texts);
    assert_eq!(ann.query("a=0&wait=0&t=AddSession,Message").await.contents(), texts, "from the table");
}

#[tokio::test]
async fn a_message_that_cannot_be_kept_is_refused_by_name() {
    let (desk, ann, web) = desk_with_session().await;
    for (body, named) in [
        (json!({"SessionId": "s1"}), "Content"),
        (json!({"Content": "x"}), "SessionId"),
        (json!({"SessionId": "", "Content": "x"}), "SessionId"),
        (json!({"SessionId": 1, "Content": "x"}), "SessionId"),
        (json!({"SessionId": "s1", "Content": 1}), "Content"),
        (json!({"SessionId": "s1", "Content": null}), "Content"),
        (json!({"SessionId": "s1", "Content": "x", "Id": 7}), "Id"),
        (json!({"SessionId": "s1", "Content": "x", "Id": "x".repeat(65)}), "Id"),
        (json!({"SessionId": "s1", "Content": "x", "Id": "a\u{0}"}), "Id"),
        (json!({"SessionId": "s1\u{0}", "Content": "x"}), "SessionId"),
        (json!({"SessionId": "s1", "Content": "a\u{0}b"}), "Content"),
        (json!({"SessionId": "s1", "Content": "x", "ContentType": "2"}), "ContentType"),
        (json!({"SessionId": "s1", "Content": "x", "ContentType": 2}), "ContentType"),
        (json!({"SessionId": "s1", "Content": "x", "ContentType": true}), "ContentType"),
        (json!("text"), "body"),
        (json!(null), "body"),
    ] {
        let answer = web.post("/message/send", body.clone()).await;
        assert_eq!(answer.code(), 40000, "{body}");
        let detail = answer.json()["detail"].as_str().expect("a text").to_owned();
        assert!(named == "body" || detail.contains(named), "{body}: {detail}");
    }
    for text in [
        r#"{"SessionId":"s1","Content":"\ud800"}"#,
        r#"{"SessionId":"s1","Content":"\udc00\ud800"}"#,
        r#"{"SessionId":"s1","Content":"x"} x"#,
        r#"{"SessionId":"s1","Content":"x","Content":"y"}"#,
        r#"{"SessionId":"s1","Content":"x""#,
        "{SessionId: 's1'}",
        "",
        "\u{feff}{}",
    ] {
        assert_eq!(web.post_text("/message/send", "application/json", text).await.code(), 40000, "{text}");
    }
    let not_utf8: &[u8] = b"{\"SessionId\":\"s1\",\"Content\":\"\xff\"}";
    assert_eq!(web.post_text("/message/send", "application/json", not_utf8.to_vec()).await.code(), 40000);
    assert_eq!(web.form("/message/send", "SessionId=s1&Content=%FF").await.code(), 40000);
    assert_eq!(web.form("/message/send", "SessionId=s1&Content=%00").await.code(), 40000);
    let deep = format!(r#"{{"SessionId":"s1","Content":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(web.post_text("/message/send", "application/json", deep).await.code(), 40000);
    assert_eq!(web.send("nosuch", "x").await.code(), 40401);
    assert_eq!(ann.feed().await.len(), 1, "none was kept");
    assert_eq!(desk.admin.query("a=now&wait=0&feed=ann").await.next(), 2);
}

#[tokio::test]
async fn an_image_is_a_web_address() {
    let (_desk, ann, web) = desk_with_session().await;
    let image = async |content_type: Value, content: &str| {
        web.post("/message/send", json!({"SessionId": "s1", "ContentType": content_type, "Content": content})).await
    };
    for good in ["https://example.org/a.png?x=1#y", "http://host/", "HTTPS://EXAMPLE.ORG/图.png"] {
        image(json!("1"), good).await.ok();
        image(json!(1), good).await.ok();
    }
    for bad in [
        "",
        "a.png",
        "/a.png",
        "//host/a.png",
        "ftp://host/a",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        "java\nscript:alert(1)",
        "data:image/png;base64,AA",
        "http://",
        "https:// host/",
        " https://host/",
        "https://host/\u{0}",
    ] {
        assert_eq!(image(json!("1"), bad).await.code(), 40000, "{bad:?}");
    }
    let types: Vec<Value> =
        ann.feed().await.iter().skip(1).map(|event| event["Data"]["Message"][0]["ContentType"].clone()).collect();
    assert_eq!(types, vec![json!("1"); 6]);
}

#[tokio::test]
async fn limits_hold_at_their_edges() {
    let (_desk, ann, web) = desk_with_session().await;
    for length in [63, 64] {
        web.send_id("s1", &"界".repeat(length), "x").await.ok();
    }
    assert_eq!(web.send_id("s1", &"界".repeat(65), "x").await.code(), 40000);
    for length in [CONTENT_MAX - 1, CONTENT_MAX] {
        web.send("s1", &"x".repeat(length)).await.ok();
    }
    web.send("s1", &"\u{1}".repeat(CONTENT_MAX / 2)).await.ok();
    let too_large = web.send("s1", &"x".repeat(CONTENT_MAX + 1)).await;
    assert_eq!((too_large.code(), &too_large.json()["limit"]), (41300, &json!(CONTENT_MAX)));
    assert_eq!(
        web.send("s1", &format!("{}é", "x".repeat(CONTENT_MAX - 1))).await.code(),
        41300,
        "bytes, not characters"
    );
    // The body.
    for (length, code) in [(BODY_MAX - 1, 0), (BODY_MAX, 0), (BODY_MAX + 1, 41300), (BATCH_MAX + 1, 41300)] {
        let mut body = r#"{"SessionId":"s1","Content":"x"}"#.to_owned();
        body.extend(std::iter::repeat_n(' ', length - body.len()));
        let answer = web.post_text("/message/send", "application/json", body).await;
        if code == 0 {
            answer.ok();
        } else {
            assert_eq!(answer.code(), code, "{length}");
        }
    }
    for (length, code) in [(BATCH_MAX, 0), (BATCH_MAX + 1, 41300)] {
        let mut body = r#"[{"SessionId":"s1","Content":"x"}]"#.to_owned();
        body.extend(std::iter::repeat_n(' ', length - body.len()));
        // Without a Content-Length, in chunks.
        let chunks: Vec<Result<Vec<u8>, std::io::Error>> =
            body.as_bytes().chunks(60_000).map(|chunk| Ok(chunk.to_vec())).collect();
        let body = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
        let answer = web.post_text("/message/send", "application/json", body).await;
        if code == 0 {
            assert_eq!(answer.ok()[0]["SessionId"], "s1");
        } else {
            assert_eq!((answer.code(), &answer.json()["limit"]), (code, &json!(BATCH_MAX)));
        }
    }
    // Other requests have the small limit.
    let large = json!({"SessionId": "s1", "Unknown": "x".repeat(BODY_MAX)});
    assert_eq!(ann.post("/session/close", large.clone()).await.code(), 41300);
    assert_eq!(ann.query_post(large).await.code(), 41300);
    for (count, fits) in [(0, false), (1, true), (999, true), (1000, true), (1001, false)] {
        let batch = vec![json!({"SessionId": "s1", "Content": "x"}); count];
        let answer = web.post("/message/send", Value::from(batch)).await;
        if fits {
            assert_eq!(answer.ok().as_array().map(Vec::len), Some(count));
        } else {
            assert_eq!(answer.code(), 40000, "{count}");
        }
    }
}

#[tokio::test]
async fn a_batch_keeps_what_is_valid() {
    let (desk, ann, web) = desk_with_session().await;
    web.open_to("s2", "ann").await.ok();
    ann.session("close", "s2").await.ok();
    let other = desk.gateway("other").await;
    other.open_to("s3", "ann").await.ok();
    let text = r#" [
        {"SessionId":"s1","Id":"b1","Content":"one"},
        {"SessionId":"s1","Content":"a\u0000b"},
        {"SessionId":"s1","Content":"\ud800"},
        {"SessionId":"nosuch","Content":"x"},
        {"SessionId":"s2","Content":"x"},
        {"SessionId":"s3","Content":"x"},
        7, null, [], "text", {},
        {"SessionId":"s1","Id":"b1","Content":"one"},
        {"SessionId":"s1","Id":"b1","Content":"other"},
        {"SessionId":"s1","ContentType":1,"Content":"javascript:x"},
        {"SessionId":"s1","Id":"b2","Content":"two"}
    ]"#;
    let answers = web.post_text("/message/send", "application/json", text).await.ok();
    let answers = answers.as_array().expect("an array");
    let codes: Vec<u64> = answers.iter().map(|answer| answer["code"].as_u64().unwrap_or(0)).collect();
    assert_eq!(codes, [0, 40000, 40000, 40401, 40900, 40301, 40000, 40000, 40000, 40000, 40000, 0, 40901, 40000, 0]);
    assert_eq!(answers[0], answers[11]);
    for problem in answers.iter().filter(|answer| answer.get("code").is_some()) {
        assert_eq!(problem["status"].as_u64(), problem["code"].as_u64().map(|code| code / 100));
        assert!(problem["title"].is_string() && problem["type"].is_string() && problem["detail"].is_string());
    }
    assert_eq!(ann.query("a=0&wait=0").await.contents(), ["one", "two"]);
    // 64 KiB over in one of them.
    let batch =
        json!([{"SessionId": "s1", "Content": "x".repeat(CONTENT_MAX + 1)}, {"SessionId": "s1", "Content": "three"}]);
    let answers = web.post("/message/send", batch).await.ok();
    assert_eq!((&answers[0]["code"], answers[1].get("code")), (&json!(41300), None));
}

#[tokio::test]
async fn the_same_id_is_kept_once_wherever_it_is_sent() {
    let (desk, ann, web) = desk_with_session().await;
    for round in 0..20 {
        let id = if round % 2 == 0 { format!("same-{round}") } else { uuid::Uuid::now_v7().to_string() };
        let tasks: Vec<_> = (0..6)
            .map(|number| {
                let (web, id) = (web.at(&desk.base(number % 3)), id.clone());
                tokio::spawn(async move { web.send_id("s1", &id, "text").await.ok() })
            })
            .collect();
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.expect("no panic"));
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
        assert_eq!(answers[0]["Version"], 3 + round);
    }
    assert_eq!(ann.feed().await.len(), 21);
}

#[tokio::test]
async fn a_repetition_gets_the_first_answer_whatever_happened_since() {
    let (desk, ann, web) = desk_with_session().await;
    let bob = desk.agent("bob").await;
    web.open_to("s2", "ann").await.ok();
    let first = web.send_id("s1", "m1", "text").await.ok();
    let reply = ann.send_id("s1", "r1", "reply").await.ok();
    let head = ann.query("a=now&wait=0").await.next();
    let same = async || {
        assert_eq!(web.send_id("s1", "m1", "text").await.ok(), first);
        assert_eq!(ann.send_id("s1", "r1", "reply").await.ok(), reply);
    };
    same().await;
    for (body, code) in [
        (json!({"SessionId": "s1", "Id": "m1", "Content": "other"}), 40901),
        (json!({"SessionId": "s2", "Id": "m1", "Content": "text"}), 40901),
        (json!({"SessionId": "s1", "Id": "m1", "ContentType": 1, "Content": "http://a/"}), 40901),
        (json!({"SessionId": "s1", "Id": "r1", "Content": "reply"}), 40901),
    ] {
        assert_eq!(web.post("/message/send", body.clone()).await.code(), code, "{body}");
    }
    assert_eq!(ann.query("a=now&wait=0").await.next(), head);
    ann.transfer("s1", "bob").await.ok();
    same().await;
    bob.session("close", "s1").await.ok();
    same().await;
    assert_eq!(ann.send_id("s1", "r2", "reply").await.code(), 40301);
    assert_eq!(bob.send_id("s1", "r2", "reply").await.code(), 40900);
    assert_eq!(web.send_id("s1", "m2", "text").await.code(), 40900);
    // Sent while queued: version 0, for ever.
    for id in ["ann", "bob"] {
        desk.admin.post("/admin/agent", json!({"Id": id, "Status": "away"})).await.ok();
    }
    web.open("s3").await.ok();
    let queued = web.send_id("s3", "q1", "text").await.ok();
    assert_eq!(queued["Version"], 0);
    desk.admin.post("/admin/agent", json!({"Id": "ann", "Status": "online"})).await.ok();
    assert_eq!(web.send_id("s3", "q1", "text").await.ok(), queued);
}

#[tokio::test]
async fn a_client_that_goes_away_changes_nothing_about_its_commit() {
    let (_desk, ann, web) = desk_with_session().await;
    let address = web.base.trim_start_matches("http://").to_owned();
    let body = r#"{"SessionId":"s1","Id":"gone-00","Content":"text"}"#;
    let request = |id: &str| {
        let body = body.replace("gone-00", id);
        format!(
            "POST /message/send HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            web.token,
            body.len()
        )
    };
    // Gone in the middle of the request: nothing was asked for.
    let length = request("gone-xx").len();
    for cut in (1..length).step_by(29) {
        let mut stream = tokio::net::TcpStream::connect(&address).await.expect("it listens");
        stream.write_all(&request("gone-xx").as_bytes()[..cut]).await.expect("it reads");
    }
    // Gone right after it: kept once, and the repetition is told of it.
    for number in 10..30 {
        let mut stream = tokio::net::TcpStream::connect(&address).await.expect("it listens");
        stream.write_all(request(&format!("gone-{number}")).as_bytes()).await.expect("it reads");
        if number % 2 == 0 {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.expect("an answer begins");
        }
    }
    for number in 10..30 {
        web.send_id("s1", &format!("gone-{number}"), "text").await.ok();
    }
    assert_eq!(web.send_id("s1", "gone-xx", "text").await.ok()["Version"], 23);
    assert_eq!(ann.feed().await.len(), 22);
}

#[tokio::test]
async fn a_message_that_was_given_no_id_is_known_by_the_one_it_has() {
    let (desk, ann, web) = desk_with_session().await;
    // To the queue, from the customer, from the agent; in batches, of which the first message is kept with its Id.
    let of = |session: &str, text: &str| json!({"SessionId": session, "Content": text});
    ann.post("/agent/presence", json!({"Status": "away"})).await.ok();
    web.open("s2").await.ok();
    let customers = json!([of("s1", "one"), of("s1", "two"), of("s2", "three"), of("s2", "four")]);
    let mut sent = web.post("/message/send", customers.clone()).await.ok().as_array().expect("a batch").clone();
    ann.post("/agent/presence", json!({"Status": "online"})).await.ok();
    let agents = json!([of("s1", "five"), of("s1", "six")]);
    sent.extend(ann.post("/message/send", agents.clone()).await.ok().as_array().expect("a batch").clone());
    let ids: Vec<&str> = sent.iter().map(|sent| sent["Id"].as_str().expect("a text")).collect();
    assert!(ids.iter().all(|id| uuid::Uuid::parse_str(id).is_ok_and(|id| id.get_version_num() == 7)), "{ids:?}");
    assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "{ids:?}");

    // Everybody is shown it under that Id: feeds from memory and from the table, histories, lists.
    let ids_in = |events: Vec<Value>| -> Vec<(String, String)> {
        let messages = events.iter().flat_map(|event| event["Data"]["Message"].as_array().expect("a list").clone());
        let mut ids: Vec<(String, String)> = messages
            .map(|message| (message["Content"].to_string(), message["Id"].as_str().expect("a text").to_owned()))
            .collect();
        ids.sort();
        ids
    };
    let mut all: Vec<(String, String)> = ["one", "two", "three", "four", "five", "six"]
        .iter()
        .zip(&ids)
        .map(|(text, id)| (json!(text).to_string(), (*id).to_owned()))
        .collect();
    all.sort();
    while ids_in(ann.query("a=0&wait=0").await.events()).len() < 6 {
        ann.query("a=0&wait=1").await;
    }
    assert_eq!(ids_in(ann.query("a=0&wait=0").await.events()), all);
    assert_eq!(ids_in(ann.query("a=0&wait=1").await.events()), all);
    assert_eq!(ids_in(ann.query("b=now").await.events()), all);
    let shown_to_gateway = ids_in(web.query("a=0&wait=0").await.events());
    assert_eq!(
        shown_to_gateway,
        all.iter().filter(|(text, _)| ["\"five\"", "\"six\""].contains(&text.as_str())).cloned().collect::<Vec<_>>()
    );
    let history = ann.get("/session/history?SessionId=s1").await.ok();
    let history: Vec<&Value> = history.as_array().expect("a list").iter().map(|message| &message["Id"]).collect();
    assert_eq!(history, [&sent[0]["Id"], &sent[1]["Id"], &sent[4]["Id"], &sent[5]["Id"]]);
    let before = ann.get(&format!("/session/history?SessionId=s1&b={}", ids[5])).await.ok();
    assert_eq!(before.as_array().expect("a list").len(), 3);
    let list = ann.get("/session/list?status=open").await.ok();
    let last: Vec<&Value> =
        list.as_array().expect("a list").iter().map(|session| &session["LastMessage"]["Id"]).collect();
    assert_eq!(last, [&sent[3]["Id"], &sent[5]["Id"]], "newest first");
    let mut sql = desk.sql().await;
    let mut kept: Vec<(String, String)> =
        sqlx::query_as("select to_json(content)::text, coalesce(id::text, id_text) from messages")
            .fetch_all(&mut sql)
            .await
            .expect("the view");
    kept.sort();
    assert_eq!(kept, all);

    // Repeated under it: nothing new. With something else: refused.
    for (number, message) in customers.as_array().expect("a list").iter().enumerate() {
        let mut again = message.clone();
        again["Id"] = sent[number]["Id"].clone();
        assert_eq!(web.post("/message/send", again.clone()).await.ok(), sent[number], "{again}");
        again["Content"] = json!("else");
        assert_eq!(web.post("/message/send", again).await.code(), 40901);
    }
    // Acknowledged by it: each event that brought it, the AddSession of the last one too.
    let all_of_ann = ids.join(",");
    ann.query(&format!("c={all_of_ann}&wait=0")).await.ok();
    let left = ann.query("wait=0").await;
    assert_eq!(left.types(), ["AddSession"], "the one that brought nothing: {}", left.text);
    web.query(&format!("c={}&wait=0", ids[4..].join(","))).await.ok();
    assert!(web.query("wait=0").await.types().iter().all(|r#type| r#type == "AddSession"));
    // One that only looks like it, of another moment, is nobody's: it acknowledges nothing and is kept as it is.
    let stranger = format!("00{}", &ids[1][2..]);
    let fresh = json!({"SessionId": "s1", "Id": stranger, "Content": "two"});
    let kept = web.post("/message/send", fresh.clone()).await.ok();
    assert!(kept["Version"].as_i64() > sent[5]["Version"].as_i64() && kept["Id"] == fresh["Id"], "{kept}");
    ann.query(&format!("c={}&wait=0", stranger.replacen("00", "0f", 1))).await.ok();
    assert_eq!(ann.query("wait=0").await.types(), ["AddSession", "Message"]);
    assert_eq!(web.post("/message/send", fresh).await.ok(), kept);
    desk.stop().await;
}
