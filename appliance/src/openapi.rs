//! The description of the API, OpenAPI 3.1, made from the table of routes and the schemas below.

use std::sync::LazyLock;

use hyper::{Method, StatusCode};
use serde_json::{Map, Value, json};

use crate::api::problem::TYPE_PREFIX;
use crate::api::{Parameter, ROUTES, Route, Takes};
use crate::auth::Right;

mod schemas;

/// Statuses of problems that every route may answer.
const PROBLEMS_EVERYWHERE: &[u16] = &[400, 414, 429, 500, 503];

/// Entity tags: a revision in quotes.
const TAG: &str = "^\"(0|[1-9][0-9]{0,18})\"$";

/// The document, made once.
pub(crate) fn document() -> &'static str {
    static DOCUMENT: LazyLock<String> = LazyLock::new(|| build().to_string());
    &DOCUMENT
}

fn build() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.pattern).or_insert_with(|| json!({}));
        path[route.method.as_str().to_lowercase()] = operation(route, &route.method);
        if route.method == Method::GET {
            path["head"] = operation(route, &Method::HEAD);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Samovar",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A ledger: keys and values in a Merkle log that peers cosign.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": {
            "schemas": schemas::all(),
            "securitySchemes": {
                "token": { "type": "http", "scheme": "bearer", "description": "An API key or a session token." },
                "certificate": { "type": "mutualTLS", "description": "A client certificate with a registered key." },
            },
        },
    })
}

fn operation(route: &Route, method: &Method) -> Value {
    let name = format!("{} {}", method.as_str().to_lowercase(), route.pattern);
    let id: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let mut operation = json!({
        "operationId": id.trim_end_matches('_'),
        "summary": route.summary,
        "description": format!("Roles: {}.", route.right.roles()),
        "parameters": parameters(route),
        "responses": responses(route, method),
    });
    if !route.right.is_open() {
        operation["security"] = json!([{ "token": [] }, { "certificate": [] }]);
    }
    if let Some(body) = route.body {
        operation["requestBody"] = json!({ "required": body != "bytes", "content": content(body) });
    }
    operation
}

fn parameters(route: &Route) -> Vec<Value> {
    let path = route.pattern.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(name, _)| {
        let schema = match name {
            "n" | "height" => schemas::number(),
            "key" => schemas::key(),
            "id" => json!({ "type": "string", "pattern": "^[0-9a-f]{16}$" }),
            "user" => schemas::user(),
            "hash" => schemas::hash(),
            "cid" => schemas::cid(),
            _ => json!({ "type": "string" }),
        };
        json!({ "name": name, "in": "path", "required": true, "schema": schema })
    });
    let any = |name: &str, doc: &str, schema: Value| json!({ "name": name, "in": "header", "description": doc, "schema": schema });
    let header = |name: &str, doc: &str, pattern: &str| any(name, doc, json!({ "type": "string", "pattern": pattern }));
    let mut all: Vec<_> = path.into_iter().chain(route.query.iter().map(query_parameter)).collect();
    let on_key = route.pattern == "/v1/keys/{key}";
    if on_key {
        all.push(header("If-Match", "A revision in quotes.", TAG));
        all.push(if route.method == Method::GET {
            // Weak tags and lists are taken too, and what is no tag matches nothing (RFC 9110, 13.1.2).
            any("If-None-Match", "A revision in quotes.", json!({ "type": "string" }))
        } else {
            header("If-None-Match", "`*`: only if the key has no value. Empty excludes nothing.", "^\\*?$")
        });
    }
    if route.pattern == "/v1/blobs" {
        let digest = "SHA-256 of the body (RFC 9530): `sha-256=:BASE64:`.";
        all.push(header("Content-Digest", digest, "^sha-256=:[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=:$"));
    }
    if route.pattern == "/v1/blobs/{cid}" {
        let any_text = || json!({ "type": "string" });
        all.push(any("Range", "One range of bytes; several are answered with the whole blob.", any_text()));
        all.push(any("If-Range", "The CID in quotes.", any_text()));
        all.push(any("If-None-Match", "The CID in quotes.", any_text()));
    }
    if route.right == Right::WriteKeys && route.pattern != "/v1/blobs" {
        all.push(header("Idempotency-Key", "1 to 128 visible ASCII characters; makes a retry safe.", "^[!-~]{1,128}$"));
    }
    if matches!((&route.method, route.pattern), (&Method::PUT, "/v1/users/{user}" | "/v1/api-keys/{id}")) {
        all.push(header("If-Match", "The revision that the change is based on, in quotes.", TAG));
    }
    if route.pattern == "/v1/watch" {
        all.push(header("Last-Event-ID", "Id of the last event seen.", "^(0|[1-9][0-9]{0,18})$"));
    }
    all
}

fn query_parameter(parameter: &Parameter) -> Value {
    let number = |least: u64, most: u64| json!({ "type": "integer", "minimum": least, "maximum": most });
    let schema = match parameter.takes {
        Takes::Text if parameter.name == "prefix" => schemas::prefix(),
        Takes::Text => schemas::key(),
        // As far as the default of `limits.request_deadline` reaches.
        Takes::Number(least, _) if parameter.name == "seconds" => number(least, 25),
        Takes::Number(0, u64::MAX) => schemas::number(),
        Takes::Number(least, most) => number(least, most),
        Takes::OneOf(choices) => json!({ "type": "string", "enum": choices }),
    };
    json!({ "name": parameter.name, "in": "query", "description": parameter.doc, "schema": schema })
}

fn responses(route: &Route, method: &Method) -> Value {
    let mut all = Map::new();
    for (status, body) in route.answers {
        let mut answer = json!({ "description": reason(*status) });
        if let (Some(body), true) = (body, *method != Method::HEAD) {
            answer["content"] = content(body);
        }
        all.insert(status.to_string(), answer);
    }
    let secured = [401, 403];
    let secured: &[u16] = if route.right.is_open() { &[] } else { &secured };
    for status in PROBLEMS_EVERYWHERE.iter().chain(secured).chain(route.problems) {
        let mut answer = json!({ "description": reason(*status) });
        if *method != Method::HEAD {
            let schema = json!({ "$ref": "#/components/schemas/Problem" });
            answer["content"] = json!({ "application/problem+json": { "schema": schema } });
        }
        all.insert(status.to_string(), answer);
    }
    Value::Object(all)
}

/// `bytes` are of any type, as values have their own; a name with a slash is a media type; others are schemas.
fn content(body: &str) -> Value {
    if body == "bytes" {
        json!({ "*/*": {} })
    } else if body == "application/octet-stream" {
        json!({ body: {} })
    } else if body.contains('/') {
        json!({ body: { "schema": { "type": if body == "application/json" { "object" } else { "string" } } } })
    } else {
        json!({ "application/json": { "schema": { "$ref": format!("#/components/schemas/{body}") } } })
    }
}

fn reason(status: u16) -> &'static str {
    StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Answer")
}

/// `type` of problems, for the schema.
fn problem_type() -> Value {
    json!({ "type": "string", "pattern": format!("^{TYPE_PREFIX}[a-z-]+$") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_and_document_are_the_same() {
        let document: Value = serde_json::from_str(document()).expect("JSON");
        let described: Vec<_> = document["paths"]
            .as_object()
            .expect("paths")
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().expect("methods").keys().map(move |m| format!("{m} {path}"))
            })
            .collect();
        let mut served: Vec<_> = ROUTES
            .iter()
            .flat_map(|r| {
                let head = (r.method == Method::GET).then(|| format!("head {}", r.pattern));
                head.into_iter().chain([format!("{} {}", r.method.as_str().to_lowercase(), r.pattern)])
            })
            .collect();
        served.sort();
        let mut sorted = described.clone();
        sorted.sort();
        assert_eq!(sorted, served);
    }

    #[test]
    fn every_reference_has_a_schema() {
        let document: Value = serde_json::from_str(document()).expect("JSON");
        let schemas = document["components"]["schemas"].as_object().expect("schemas");
        let text = document.to_string();
        let mut count = 0;
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap_or("");
            assert!(schemas.contains_key(name), "schema {name} is referred to and missing");
            count += 1;
        }
        assert!(count > ROUTES.len(), "the document refers to schemas");
        for name in schemas.keys() {
            assert!(text.contains(&format!("schemas/{name}\"")), "schema {name} is used by no route");
        }
    }

    #[test]
    fn operation_ids_are_unique() {
        let document: Value = serde_json::from_str(document()).expect("JSON");
        let paths = document["paths"].as_object().expect("paths");
        let ids: Vec<_> = paths.values().flat_map(|p| p.as_object().expect("methods").values()).collect();
        let ids: Vec<_> = ids.iter().map(|o| o["operationId"].as_str().expect("an id")).collect();
        let unique: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len(), "{ids:?}");
    }
}
