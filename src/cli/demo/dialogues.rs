//! What is said in a demo.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use anyhow::{Context, bail};
use serde::Deserialize;

/// A conversation: the first turn is the customer's, then they alternate.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Dialogue {
    pub language: String,
    pub topic: String,
    pub turns: Vec<String>,
}

impl Dialogue {
    /// Whether a turn is the customer's.
    pub fn is_customers(turn: usize) -> bool {
        turn.is_multiple_of(2)
    }
}

/// Reads an NDJSON file.
///
/// # Errors
/// Names the line that cannot be read.
pub fn read(path: &Path) -> anyhow::Result<Vec<Dialogue>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut dialogues = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let place = || format!("{}, line {}", path.display(), number + 1);
        let line = line.with_context(place)?;
        if line.trim().is_empty() {
            continue;
        }
        let dialogue: Dialogue = serde_json::from_str(&line).with_context(place)?;
        if dialogue.turns.is_empty() {
            bail!("{}: a conversation without turns", place());
        }
        dialogues.push(dialogue);
    }
    Ok(dialogues)
}

/// A few of our own.
pub fn own() -> Vec<Dialogue> {
    OWN.iter()
        .map(|(language, topic, turns)| Dialogue {
            language: (*language).to_owned(),
            topic: (*topic).to_owned(),
            turns: turns.iter().map(|turn| (*turn).to_owned()).collect(),
        })
        .collect()
}

const OWN: [(&str, &str, &[&str]); 10] = [
    (
        "english",
        "delivery",
        &[
            "Hello, my parcel should have come yesterday.",
            "I'm sorry to hear that. May I have the order number?",
            "It's 4711-0815.",
            "Thank you. It is on the van and comes before noon.",
            "Great, thanks!",
            "You're welcome. Have a nice day.",
        ],
    ),
    (
        "english",
        "refund",
        &["Can I still return the red shoes?", "Yes, within 30 days. Shall I send you a label?", "Please do."],
    ),
    (
        "chinese",
        "发票",
        &["你好，请问可以开发票吗？", "您好，可以的。请提供公司抬头和税号。", "好的，稍后发给您。", "收到，谢谢！"],
    ),
    (
        "german",
        "Rechnung",
        &[
            "Guten Tag, auf meiner Rechnung fehlt die Umsatzsteuer.",
            "Guten Tag! Ich schaue sofort nach.",
            "Danke schön.",
            "Die korrigierte Rechnung ist unterwegs – schöne Grüße!",
        ],
    ),
    (
        "spanish",
        "contraseña",
        &["¿Cómo cambio mi contraseña?", "En «Mi cuenta», pestaña «Seguridad».", "¡Perfecto, gracias!"],
    ),
    ("arabic", "الطلب", &["مرحبا، أين طلبي؟", "أهلاً بك، سيصل غداً بإذن الله.", "شكراً جزيلاً"]),
    (
        "japanese",
        "予約",
        &[
            "予約を変更したいのですが。",
            "かしこまりました。ご希望の日時をお知らせください。",
            "来週の金曜日、午後三時です。",
            "承知しました。変更いたしました。",
        ],
    ),
    (
        "russian",
        "доставка",
        &["Здравствуйте! Вы доставляете в Казань?", "Здравствуйте! Да, за два дня.", "Отлично, спасибо."],
    ),
    ("emoji", "thanks", &["👋🏽", "Hi! How can I help? 😊", "🙏🎉", "👩‍👩‍👧‍👦 ❤️"]),
    (
        "technical",
        "escaping",
        &[
            "My file is called \"C:\\new\\table.txt\" & it has <b>tags</b>;\n\tis that a problem?",
            "Not at all: {\"ok\": true, \"emoji\": \"\\u2603\"} is stored as it is.",
        ],
    ),
];
