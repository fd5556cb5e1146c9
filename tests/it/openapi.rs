//! /openapi.json: it is OpenAPI 3.1, and it lists exactly the routes there are.

use std::collections::{BTreeMap, BTreeSet};

use http::Method;
use serde_json::Value;

use crate::support::{TestDesk, client::finish};

/// The paths of the wire contract that carry data.
const CONTRACT: [(&str, &[&str]); 18] = [
    ("/admin/agent", &["get", "post"]),
    ("/admin/gateway", &["get", "post"]),
    ("/admin/token", &["get", "post"]),
    ("/admin/token/revoke", &["post"]),
    ("/agent/presence", &["post"]),
    ("/feed/status", &["get"]),
    ("/healthz", &["get"]),
    ("/message/query", &["get", "post"]),
    ("/message/send", &["post"]),
    ("/metrics", &["get"]),
    ("/openapi.json", &["get"]),
    ("/readyz", &["get"]),
    ("/session/close", &["post"]),
    ("/session/history", &["get"]),
    ("/session/list", &["get"]),
    ("/session/open", &["post"]),
    ("/session/release", &["post"]),
    ("/session/transfer", &["post"]),
];

const METHODS: [&str; 8] = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

/// Calls `check` with every object of a JSON value and the way to it.
fn walk(value: &Value, way: &str, check: &mut dyn FnMut(&Value, &str)) {
    check(value, way);
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                walk(member, &format!("{way}/{name}"), check);
            }
        }
        Value::Array(items) => {
            for (position, item) in items.iter().enumerate() {
                walk(item, &format!("{way}/{position}"), check);
            }
        }
        _ => {}
    }
}

#[tokio::test]
async fn it_lists_exactly_the_routes_there_are() {
    let desk = TestDesk::start().await;
    let api = desk.admin.get("/openapi.json").await.ok();
    let mut listed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, operations) in api["paths"].as_object().expect("paths") {
        let methods =
            operations.as_object().expect("operations").keys().filter(|name| METHODS.contains(&name.as_str()));
        listed.insert(path.clone(), methods.cloned().collect());
    }
    for (path, methods) in CONTRACT {
        let of_path = listed.get(path).unwrap_or_else(|| panic!("{path} is not listed"));
        assert_eq!(of_path.iter().collect::<Vec<_>>(), methods, "{path}");
    }
    // Pages for people may be listed or not; whatever is listed is there, with these methods only.
    for (path, methods) in &listed {
        for name in METHODS {
            let method = Method::from_bytes(name.to_uppercase().as_bytes()).expect("a method");
            let answer = finish(desk.admin.request(method, path).query(&[("limit", "x")])).await.expect("an answer");
            let code = answer.text.contains("\"code\"").then(|| answer.json()["code"].clone());
            assert_ne!(code, Some(Value::from(40400)), "{name} {path}");
            if name != "head" {
                assert_eq!(code != Some(Value::from(40500)), methods.contains(name), "{name} {path}");
            }
        }
    }
}

#[tokio::test]
async fn it_is_openapi_3_1() {
    let desk = TestDesk::start().await;
    let api = desk.admin.get("/openapi.json").await.ok();
    assert!(api["openapi"].as_str().is_some_and(|version| version.starts_with("3.1.")), "{}", api["openapi"]);
    for member in ["title", "version"] {
        assert!(api["info"][member].as_str().is_some_and(|text| !text.is_empty()), "info.{member}");
    }
    let mut ids = BTreeSet::new();
    for (path, operations) in api["paths"].as_object().expect("paths") {
        assert!(path.starts_with('/'), "{path}");
        for (method, operation) in operations.as_object().expect("operations") {
            let place = format!("{method} {path}");
            let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{place} has no operationId"));
            assert!(ids.insert(id.to_owned()), "{place}: {id} twice");
            let responses = operation["responses"].as_object().unwrap_or_else(|| panic!("{place} has no responses"));
            assert!(responses.contains_key("200"), "{place}");
            for (status, response) in responses {
                assert!(status == "default" || status.parse::<u16>().is_ok_and(|code| (100..600).contains(&code)));
                assert!(response["description"].is_string(), "{place} {status} needs a description");
            }
            let mut parameters = BTreeSet::new();
            for parameter in operation["parameters"].as_array().unwrap_or(&Vec::new()) {
                let name = parameter["name"].as_str().unwrap_or_else(|| panic!("{place}: a parameter without a name"));
                assert!(parameters.insert(name.to_owned()), "{place}: {name} twice");
                assert_eq!(parameter["in"], "query", "{place}: {name}");
                assert!(parameter["schema"].is_object(), "{place}: {name}");
            }
            if let Some(body) = operation.get("requestBody") {
                assert!(body["content"].as_object().is_some_and(|content| !content.is_empty()), "{place}");
            }
        }
    }
    // Every reference leads somewhere, every type is one that JSON Schema knows.
    let types = ["null", "boolean", "object", "array", "number", "string", "integer"];
    let mut references = 0;
    walk(&api, "", &mut |value, way| {
        if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            references += 1;
            let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{way}: {reference}"));
            assert!(api.pointer(pointer).is_some(), "{way}: {reference} leads nowhere");
        }
        if way.ends_with("/schema") && value.is_object() {
            let named =
                value.get("type").into_iter().flat_map(|of| of.as_array().cloned().unwrap_or_else(|| vec![of.clone()]));
            for name in named {
                assert!(types.contains(&name.as_str().expect("a text")), "{way}: {name}");
            }
        }
    });
    assert!(references > 10, "{references}");
    let schemes = api["components"]["securitySchemes"].as_object().expect("schemes");
    let security = api["security"].as_array().expect("a list");
    assert!(
        security
            .iter()
            .flat_map(|need| need.as_object().expect("an object").keys())
            .all(|name| schemes.contains_key(name))
    );
    assert!(schemes.values().any(|scheme| scheme["type"] == "http" && scheme["scheme"] == "bearer"));
}
