//! Requests and answers as the wire writes them. What is not plain is checked where it is used.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// A number, written as a number or as text (forms know texts only).
fn int<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    use serde::de::Error as _;
    match Option::<Value>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Value::Number(number)) => {
            number.as_i64().map(Some).ok_or_else(|| D::Error::custom("must be a whole number"))
        }
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => {
            text.trim().parse().map(Some).map_err(|_| D::Error::custom("must be a whole number"))
        }
        Some(_) => Err(D::Error::custom("must be a whole number")),
    }
}

/// A text, which may also be written as a number.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    use serde::de::Error as _;
    match Option::<Value>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(D::Error::custom("must be a string or a number")),
    }
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct SessionRef {
    pub session_id: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct TransferRequest {
    pub session_id: String,
    /// The agent who is to have it.
    pub to_new_id: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct OpenRequest {
    /// Made (UUIDv7) if absent.
    pub session_id: Option<String>,
    #[serde(default, deserialize_with = "int")]
    #[schema(value_type = Option<i32>)]
    pub session_type: Option<i64>,
    pub from_id: String,
    pub from_name: Option<String>,
    pub from_image: Option<String>,
    /// The agent who is to have it; absent: the available agent with the fewest open sessions.
    pub to_id: Option<String>,
}

/// What a session operation answers.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct SessionAnswer {
    pub session_id: String,
    /// `open`, `queued` or `closed`.
    pub status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_id: Option<String>,
    /// Version of the event in the owner's feed; 0 when nobody was told.
    pub version: i64,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct SendRequest {
    pub session_id: String,
    /// 1..64 characters, unique in the store; made (UUIDv7) if absent. A repetition of the same message is kept once.
    pub id: Option<String>,
    /// `"0"` text (default), `"1"` image.
    #[serde(default, deserialize_with = "text")]
    pub content_type: Option<String>,
    /// The text, or the image's http or https URL; at most 64 KiB.
    pub content: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct SendAnswer {
    pub id: String,
    pub session_id: String,
    /// Version of the event in the owner's feed; 0 while the session is queued.
    pub version: i64,
    pub create_time: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct PresenceRequest {
    /// `online` or `away`.
    pub status: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct PresenceAnswer {
    pub status: &'static str,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct AgentRequest {
    pub id: String,
    pub name: Option<String>,
    pub image: Option<String>,
    #[serde(default, deserialize_with = "int")]
    #[schema(value_type = Option<i32>)]
    pub max_sessions: Option<i64>,
    /// `online` or `away`.
    pub status: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct AgentAnswer {
    pub id: String,
    pub name: Option<String>,
    pub image: Option<String>,
    pub max_sessions: i32,
    pub status: &'static str,
    pub open_sessions: i32,
    /// When the agent last polled (RFC 3339); null: never.
    pub last_seen: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct GatewayRequest {
    pub id: String,
    pub name: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct GatewayAnswer {
    pub id: String,
    pub name: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct TokenRequest {
    /// `agent`, `gateway` or `admin`.
    pub role: String,
    /// The agent's or gateway's id.
    pub subject: Option<String>,
    /// Seconds until it expires; absent: never.
    #[serde(default, deserialize_with = "int")]
    #[schema(value_type = Option<i64>)]
    pub expires_in: Option<i64>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct NewTokenAnswer {
    pub token_id: String,
    /// Shown this once.
    pub token: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct RevokeRequest {
    pub token_id: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct RevokeAnswer {
    pub token_id: String,
    pub revoked: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct TokenAnswer {
    pub token_id: String,
    pub role: &'static str,
    pub subject: Option<String>,
    pub created_at: String,
    pub expires_at: Option<String>,
    pub last_used: Option<String>,
    pub revoked: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct FeedStatus {
    pub head: i64,
    pub oldest: i64,
    pub epoch: String,
    pub unacked: i64,
    /// 0 when everything is acknowledged.
    pub oldest_unacked_seconds: i64,
}

/// A session in a list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct SessionLine {
    pub session_id: String,
    pub session_type: i32,
    pub status: &'static str,
    pub from_id: String,
    pub from_name: Option<String>,
    pub from_image: Option<String>,
    pub to_id: Option<String>,
    pub to_name: Option<String>,
    pub open_time: String,
    pub close_time: Option<String>,
    #[schema(value_type = Option<MessageSchema>)]
    pub last_message: Option<Value>,
}

/// An event, for the description of the interface; the bytes are made by the domain.
#[derive(Serialize, ToSchema)]
#[schema(as = Event)]
pub struct EventSchema {
    /// `AddSession`, `Message` or `DelSession`.
    pub e: String,
    #[serde(rename = "Version")]
    pub version: i64,
    #[serde(rename = "Data")]
    pub data: DataSchema,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
#[schema(as = EventData)]
pub struct DataSchema {
    /// 0 AddSession and Message, 1 DelSession.
    pub r#type: i32,
    pub session_id: String,
    pub session_type: i32,
    pub from_id: Option<String>,
    pub from_name: Option<String>,
    pub from_image: Option<String>,
    pub to_id: Option<String>,
    pub to_name: Option<String>,
    pub to_image: Option<String>,
    pub message: Vec<MessageSchema>,
    /// Of a DelSession: `closed`, `transferred` or `released`.
    pub reason: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
#[schema(as = Message)]
pub struct MessageSchema {
    /// 0 received from the customer, 1 sent by an agent.
    pub r#type: i32,
    pub id: String,
    /// `"0"` text, `"1"` image.
    pub content_type: String,
    pub content: String,
    /// `yyyy-MM-dd HH:mm:ss` in the configured zone.
    pub create_time: String,
}

/// Every answer that is not 2xx (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemSchema {
    pub r#type: String,
    pub title: String,
    pub status: u16,
    pub detail: String,
    /// The error's number; its first three digits are the HTTP status.
    pub code: u32,
    pub known: Option<Vec<String>>,
    pub oldest: Option<i64>,
    pub head: Option<i64>,
    pub epoch: Option<String>,
    pub limit: Option<u64>,
}
