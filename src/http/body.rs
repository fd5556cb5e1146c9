//! Bodies: JSON or a form, limited in size and time.

use std::time::Duration;

use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use percent_encoding::percent_decode;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{auth::holder, problem::Problem, state::App};
use crate::{
    domain::{fault::Fault, limits},
    live::auth::tokens::Grant,
};

/// The format of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Json,
    Form,
}

/// A body as it was received.
pub struct RawBody {
    pub format: Format,
    pub bytes: Bytes,
}

impl RawBody {
    /// Reads a body of at most `limit` bytes; the sender's token must still be valid when it has arrived.
    ///
    /// # Errors
    /// 40000, 40100, 41300, 41500.
    pub async fn read(app: &App, grant: &Grant, request: Request, limit: usize) -> Result<Self, Fault> {
        let format = format(request.headers())?;
        let bytes = tokio::time::timeout(Duration::from_secs(limits::BODY_READ_S), collect(request, limit))
            .await
            .map_err(|_| Fault::malformed(format!("the body did not arrive within {} s", limits::BODY_READ_S)))??;
        // The token may have been revoked while the body was on its way.
        app.tokens.check(grant).await?;
        // A request without a body needs no content type.
        let format = match format {
            Some(format) => format,
            None if bytes.is_empty() => Format::Form,
            None => return Err(Fault::UnsupportedType),
        };
        Ok(Self { format, bytes })
    }

    /// The body as a structure.
    ///
    /// # Errors
    /// 40000, naming the field.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        match self.format {
            Format::Json => from_json(&self.bytes),
            Format::Form => {
                let fields =
                    pairs(&self.bytes)?.into_iter().map(|(name, value)| (name, Value::String(value))).collect();
                serde_path_to_error::deserialize(Value::Object(fields))
                    .map_err(|error| at_field(&error.path().to_string(), error.inner()))
            }
        }
    }
}

/// Reads one JSON value.
///
/// # Errors
/// 40000, naming the field.
pub fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    // Tracking the path costs as much as parsing; only a refusal needs it.
    if let Ok(value) = serde_json::from_slice(bytes) {
        return Ok(value);
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader)
        .map_err(|error| at_field(&error.path().to_string(), error.inner()))?;
    reader.end().map_err(|error| Fault::malformed(format!("the body is not one JSON value: {error}")))?;
    Ok(value)
}

fn at_field(path: &str, error: &serde_json::Error) -> Fault {
    if error.is_syntax() || error.is_eof() {
        Fault::malformed(format!("the body is not JSON: {error}"))
    } else if path == "." {
        Fault::malformed(error.to_string())
    } else {
        Fault::malformed(format!("{path}: {error}"))
    }
}

/// Names and values of a form or a URL's query.
///
/// # Errors
/// 40000 when they are not UTF-8.
pub fn pairs(encoded: &[u8]) -> Result<Vec<(String, String)>, Fault> {
    encoded
        .split(|byte| *byte == b'&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let split = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            let (name, value) = pair.split_at(split);
            Ok((decoded(name)?, decoded(value.strip_prefix(b"=").unwrap_or(value))?))
        })
        .collect()
}

fn decoded(part: &[u8]) -> Result<String, Fault> {
    let spaced: Vec<u8> = part.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    let text = percent_decode(&spaced).decode_utf8().map_err(|_| Fault::malformed("the parameters are not UTF-8"))?;
    Ok(text.into_owned())
}

/// `None` if the request does not say.
fn format(headers: &HeaderMap) -> Result<Option<Format>, Fault> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(None) };
    let value = value.to_str().map_err(|_| Fault::UnsupportedType)?;
    let mut parts = value.split(';').map(str::trim);
    let format = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
        "application/json" => Format::Json,
        "application/x-www-form-urlencoded" => Format::Form,
        _ => return Err(Fault::UnsupportedType),
    };
    for parameter in parts {
        if let Some((name, value)) = parameter.split_once('=')
            && name.trim().eq_ignore_ascii_case("charset")
            && !["utf-8", "utf8"].contains(&value.trim().trim_matches('"').to_ascii_lowercase().as_str())
        {
            return Err(Fault::UnsupportedType);
        }
    }
    Ok(Some(format))
}

async fn collect(request: Request, limit: usize) -> Result<Bytes, Fault> {
    match Limited::new(request.into_body(), limit).collect().await {
        // Most bodies are one frame, which this does not copy.
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Fault::TooLarge { what: "the body", limit }),
        Err(error) => Err(Fault::malformed(format!("the body broke off: {error}"))),
    }
}

/// A body of usual size as a structure.
pub struct Fields<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for Fields<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let grant = holder(request.extensions())?;
        let body = RawBody::read(app, &grant, request, limits::BODY_BYTES_MAX).await?;
        Ok(Self(body.parse()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_decoded() {
        let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            pairs(b"a=1&b=x+y&c=%E4%BD%A0&d&&e=f=g").unwrap(),
            [text("a", "1"), text("b", "x y"), text("c", "你"), text("d", ""), text("e", "f=g")]
        );
        assert!(pairs(b"a=%FF").is_err());
    }

    #[test]
    fn content_types_are_told_apart() {
        let of = |value: &'static str| {
            format(&HeaderMap::from_iter([(header::CONTENT_TYPE, http::HeaderValue::from_static(value))]))
        };
        assert_eq!(of("application/json").unwrap(), Some(Format::Json));
        assert_eq!(of("Application/JSON; charset=UTF-8").unwrap(), Some(Format::Json));
        assert_eq!(of("application/x-www-form-urlencoded").unwrap(), Some(Format::Form));
        assert!(of("application/json; charset=latin1").is_err());
        assert!(of("text/plain").is_err());
    }
}
