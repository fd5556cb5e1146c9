//! The flows of the original specification (`spark-api.zh.md`), step by step, as its clients would do them.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{Client, TestDesk};

const PATIENCE: Duration = Duration::from_secs(30);

/// What 客服接收消息 promises of `Data`: required fields and the types of all.
fn check_data(event: &Value) {
    let (e, data) = (&event["e"], &event["Data"]);
    assert!(e.is_string(), "{event}");
    assert!(data["SessionId"].is_string(), "{event}");
    assert_eq!(data["Type"], i32::from(e == "DelSession"), "{event}");
    assert!(data["SessionType"].is_i64(), "{event}");
    for name in ["FromId", "FromName", "FromImage", "ToId", "ToName", "ToImage"] {
        assert!(data.get(name).is_none_or(|value| value.is_string() || value.is_null()), "{name}: {event}");
    }
    for message in data["Message"].as_array().expect("a list") {
        assert!(message["Type"] == 0 || message["Type"] == 1, "{message}");
        assert!(message["Id"].is_string() && message["Content"].is_string(), "{message}");
        assert!(message["ContentType"] == "0" || message["ContentType"] == "1", "{message}");
        let time = message["CreateTime"].as_str().expect("a text");
        assert!(
            time.len() == 19 && chrono::NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S").is_ok(),
            "{message}"
        );
    }
}

/// A console as the specification has it: it polls in instant mode and acknowledges what it has shown
/// with its next request.
struct Console {
    client: Client,
    /// Sessions shown, and the Ids of their messages in the order they came.
    shown: Vec<(String, Vec<String>)>,
    acks: Vec<String>,
}

impl Console {
    fn new(client: Client) -> Self {
        Self { client, shown: Vec::new(), acks: Vec::new() }
    }

    /// One poll. `c` as the specification writes it, separated by commas and semicolons.
    async fn poll(&mut self, wait: u32) -> usize {
        let answer = self.client.query(&format!("a=&b=&c={}&t=&wait={wait}", self.acks.join(";"))).await;
        self.acks.clear();
        for event in answer.events() {
            check_data(&event);
            let session = event["Data"]["SessionId"].as_str().expect("a text").to_owned();
            let ids: Vec<String> = event["Data"]["Message"]
                .as_array()
                .expect("a list")
                .iter()
                .map(|message| message["Id"].as_str().expect("a text").to_owned())
                .collect();
            if event["e"] == "Message" {
                self.acks.extend(ids.clone());
            } else {
                self.acks.push(event["Version"].to_string());
            }
            if event["e"] == "DelSession" {
                self.shown.retain(|(shown, _)| *shown != session);
                continue;
            }
            if !self.shown.iter().any(|(shown, _)| *shown == session) {
                self.shown.push((session.clone(), Vec::new()));
            }
            let (_, messages) = self.shown.iter_mut().find(|(shown, _)| *shown == session).expect("just added");
            for id in ids {
                // Id唯一，用于客户端去重
                if !messages.contains(&id) {
                    messages.push(id);
                }
            }
        }
        answer.events().len()
    }

    async fn poll_until(&mut self, expected: &[(&str, &[&str])]) {
        let expected: Vec<(String, Vec<String>)> = expected
            .iter()
            .map(|(session, ids)| ((*session).to_owned(), ids.iter().map(|id| (*id).to_owned()).collect()))
            .collect();
        let reached = async {
            while self.shown != expected {
                self.poll(5).await;
            }
        };
        let in_time = timeout(PATIENCE, reached).await.is_ok();
        assert!(in_time, "expected {expected:?}, shown {:?}", self.shown);
    }
}

#[tokio::test]
async fn a_conversation_is_received_answered_transferred_and_closed() {
    let desk = TestDesk::start().await;
    let web = desk.gateway("website").await;
    let (mut ann, mut bob) = (Console::new(desk.agent("ann").await), Console::new(desk.agent("bob").await));
    web.open_to("s1", "ann").await.ok();
    ann.poll_until(&[("s1", &[])]).await;
    web.send_id("s1", "m1", "你好").await.ok();
    let image = json!({"SessionId": "s1", "Id": "m2", "ContentType": "1", "Content": "https://example.org/图.png"});
    web.post("/message/send", image).await.ok();
    ann.poll_until(&[("s1", &["m1", "m2"])]).await;
    ann.client.send_id("s1", "r1", "您好").await.ok();
    ann.poll_until(&[("s1", &["m1", "m2", "r1"])]).await;
    // 转移会话
    ann.client.form("/session/transfer", "SessionId=s1&ToNewId=bob").await.ok();
    ann.poll_until(&[]).await;
    bob.poll_until(&[("s1", &["m1", "m2", "r1"])]).await;
    web.send_id("s1", "m3", "还在吗").await.ok();
    bob.poll_until(&[("s1", &["m1", "m2", "r1", "m3"])]).await;
    // 结束会话
    let refused = ann.client.form("/session/close", "SessionId=s1").await;
    assert_eq!(refused.code(), 40301, "only the owner");
    bob.client.form("/session/close", "SessionId=s1").await.ok();
    bob.poll_until(&[]).await;
    // All was acknowledged on the way.
    ann.poll(0).await;
    bob.poll(0).await;
    assert_eq!((ann.poll(0).await, bob.poll(0).await), (0, 0));
}

#[tokio::test]
async fn a_console_that_comes_back_reads_on_and_looks_back() {
    let desk = TestDesk::start().await;
    let web = desk.gateway("website").await;
    let ann = desk.agent("ann").await;
    web.open_to("s1", "ann").await.ok();
    for number in 1..=30 {
        web.send_id("s1", &format!("m{number}"), "text").await.ok();
    }
    // 获取此版本以后的事件
    let version = ann.query("a=0&limit=10").await.next();
    let ids = |events: &[Value]| -> Vec<String> {
        events.iter().map(|event| event["Data"]["Message"][0]["Id"].as_str().unwrap_or("-").to_owned()).collect()
    };
    let newer = ann.query(&format!("a={version}&t=Message")).await.events();
    assert_eq!(ids(&newer), (10..=30).map(|number| format!("m{number}")).collect::<Vec<_>>());
    // 获取此版本以前的历史事件
    let older = ann.query(&format!("b={version}")).await.events();
    assert_eq!(ids(&older)[1..], (1..=8).map(|number| format!("m{number}")).collect::<Vec<_>>());
    for event in newer.iter().chain(&older) {
        check_data(event);
    }
    // a|b 二选一
    assert_eq!(ann.query(&format!("a={version}&b={version}")).await.code(), 40001);
    // 如果操作失败返回错误编号和错误内容
    let failed = ann.session("close", "nosuch").await;
    assert_eq!(failed.code(), 40401);
    assert!(failed.json()["detail"].as_str().is_some_and(|text| text.contains("nosuch")));
}

#[tokio::test]
async fn what_was_not_acknowledged_comes_again_after_a_crash_of_the_client() {
    let desk = TestDesk::start().await;
    let web = desk.gateway("website").await;
    let client = desk.agent("ann").await;
    let mut ann = Console::new(client.clone());
    web.open_to("s1", "ann").await.ok();
    web.send_id("s1", "m1", "text").await.ok();
    ann.poll_until(&[("s1", &["m1"])]).await;
    // It shows the page and goes before it can acknowledge.
    let mut again = Console::new(client);
    again.poll_until(&[("s1", &["m1"])]).await;
    again.poll(0).await;
    web.send_id("s1", "m2", "text").await.ok();
    let mut third = Console::new(again.client.clone());
    third.poll_until(&[("s1", &["m2"])]).await;
    assert_eq!(third.client.query("a=0&wait=0").await.contents(), ["text", "text"], "the store keeps all");
}
