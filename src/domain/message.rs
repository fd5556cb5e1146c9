//! Messages: what may be said.

use chrono::{DateTime, Utc};

use super::{
    fault::Fault,
    ids::{MessageId, refuse_nul},
    limits,
};

/// Who said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageType {
    /// Received from the customer.
    Received,
    /// Sent by an agent.
    Sent,
}

impl MessageType {
    pub fn number(self) -> i16 {
        match self {
            Self::Received => 0,
            Self::Sent => 1,
        }
    }

    pub fn from_number(number: i16) -> Self {
        if number == 0 { Self::Received } else { Self::Sent }
    }
}

/// What `Content` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentType {
    Text,
    /// `Content` is the image's URL.
    Image,
}

impl ContentType {
    pub fn number(self) -> i16 {
        match self {
            Self::Text => 0,
            Self::Image => 1,
        }
    }

    pub fn from_number(number: i16) -> Self {
        if number == 1 { Self::Image } else { Self::Text }
    }

    /// `Content` of an erased message: nothing, or an address that leads nowhere for ever (RFC 6761), so
    /// that it still is what its type says.
    pub fn erased(self) -> &'static str {
        match self {
            Self::Text => "",
            Self::Image => "https://erased.invalid/",
        }
    }

    pub fn parse(text: &str) -> Result<Self, Fault> {
        match text {
            "0" => Ok(Self::Text),
            "1" => Ok(Self::Image),
            _ => Err(Fault::malformed("ContentType must be \"0\" (text) or \"1\" (image)")),
        }
    }
}

/// A message as kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub r#type: MessageType,
    pub id: MessageId,
    pub content_type: ContentType,
    pub content: String,
    pub created_at: DateTime<Utc>,
}

impl Message {
    pub fn view(&self) -> MessageView<'_> {
        MessageView {
            r#type: self.r#type,
            id: &self.id,
            content_type: self.content_type,
            content: &self.content,
            created_at: self.created_at,
        }
    }
}

/// A [`Message`], wherever its parts are kept.
#[derive(Debug, Clone, Copy)]
pub struct MessageView<'a> {
    pub r#type: MessageType,
    pub id: &'a MessageId,
    pub content_type: ContentType,
    pub content: &'a str,
    pub created_at: DateTime<Utc>,
}

/// A message as a client wants it kept, checked.
#[derive(Debug, Clone)]
pub struct NewMessage {
    pub session_id: String,
    /// The client's; with one, it may have been kept before.
    pub id: Option<MessageId>,
    pub content_type: ContentType,
    pub content: String,
}

/// Checks `Content`.
pub fn checked_content(content: String, content_type: ContentType) -> Result<String, Fault> {
    if content.len() > limits::CONTENT_BYTES_MAX {
        return Err(Fault::TooLarge { what: "Content", limit: limits::CONTENT_BYTES_MAX });
    }
    refuse_nul(&content, "Content")?;
    if content_type == ContentType::Image {
        require_web_url(&content, "Content of an image")?;
    }
    Ok(content)
}

/// An absolute http or https URL with a host, so that no console is ever handed a script.
pub fn require_web_url(text: &str, field: &str) -> Result<(), Fault> {
    let good = url::Url::parse(text)
        .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        // The parser drops these silently, but the text is kept as it was written.
        && !text.chars().any(|c| c.is_control() || c.is_whitespace());
    if good { Ok(()) } else { Err(Fault::malformed(format!("{field} must be an http or https URL"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_a_web_address() {
        for good in ["http://a/b.png", "https://example.org/x?y=z#f", "HTTPS://EXAMPLE.org/"] {
            assert!(checked_content(good.to_owned(), ContentType::Image).is_ok(), "{good}");
        }
        for bad in [
            "",
            "x",
            "//host/a",
            "javascript:alert(1)",
            "data:image/png;base64,AA",
            "ftp://a/b",
            "http://",
            "java\nscript:x",
            "https://a/ b",
            "\thttps://a/b",
        ] {
            assert!(checked_content(bad.to_owned(), ContentType::Image).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_erased_still_is_what_its_type_says() {
        for content_type in [ContentType::Text, ContentType::Image] {
            assert!(checked_content(content_type.erased().to_owned(), content_type).is_ok(), "{content_type:?}");
        }
    }

    #[test]
    fn content_has_a_limit_in_bytes() {
        let fits = "é".repeat(limits::CONTENT_BYTES_MAX / 2);
        assert!(checked_content(fits.clone(), ContentType::Text).is_ok());
        assert!(matches!(checked_content(fits + "x", ContentType::Text), Err(Fault::TooLarge { .. })));
        assert!(checked_content("a\0b".to_owned(), ContentType::Text).is_err());
    }
}
