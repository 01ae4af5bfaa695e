//! Schemas about the nodes of the cluster.

use serde_json::{Value, json};

use super::{list, nullable, number, number_or_null, object, strict, text};

fn yes_or_no() -> Value {
    json!({ "type": "boolean" })
}

fn node_name() -> Value {
    json!({ "type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$" })
}

/// All of them, by name.
pub(super) fn all() -> [(String, Value); 14] {
    [
        ("Cluster", cluster()),
        ("ClusterNodes", object(&["nodes"], &json!({ "nodes": list(&node()) }))),
        ("ClusterNode", node()),
        ("ChangedNode", changed()),
        ("NewJoinToken", new_token()),
        ("IssuedJoinToken", token(true)),
        ("JoinTokens", object(&["join_tokens"], &json!({ "join_tokens": list(&token(false)) }))),
        ("Joining", joining()),
        ("Joined", joined()),
        ("Format", format()),
        ("Permit", permit()),
        ("Permits", permits()),
        ("NewPermit", new_permit(&["reason"], true)),
        ("Drain", new_permit(&["reason"], false)),
    ]
    .map(|(name, schema)| (name.to_owned(), schema))
}

fn cluster() -> Value {
    object(
        &[
            "origin",
            "answered_by",
            "now_ms",
            "leader",
            "term",
            "voters",
            "live_voters",
            "can_lose",
            "has_quorum",
            "attention",
            "nodes",
        ],
        &json!({
            "origin": text(), "answered_by": text(), "now_ms": number(), "leader": nullable("string"), "term": number(),
            "voters": number(), "live_voters": number(), "can_lose": number(), "has_quorum": yes_or_no(),
            "attention": list(&text()), "nodes": list(&node()),
        }),
    )
}

fn node() -> Value {
    object(
        &[
            "node",
            "name",
            "address",
            "role",
            "voter",
            "state",
            "live",
            "height",
            "trails",
            "contact_ms",
            "age_ms",
            "errors",
        ],
        &json!({
            "node": number(), "name": text(), "address": text(), "role": nullable("string"), "voter": yes_or_no(),
            "state": { "type": "string", "enum": ["member", "joining", "removing"] }, "live": yes_or_no(),
            "height": number_or_null(), "trails": number_or_null(), "contact_ms": number_or_null(),
            "age_ms": number_or_null(), "version": nullable("string"), "slot": nullable("string"),
            "format": number_or_null(), "spare_format": number_or_null(), "free_bytes": number_or_null(), "disk_bytes": number_or_null(), "errors": list(&text()),
        }),
    )
}

fn changed() -> Value {
    object(&["name", "node", "state"], &json!({ "name": text(), "node": number(), "state": text() }))
}

fn new_token() -> Value {
    strict(
        &[],
        &json!({
            "expires_s": { "type": ["integer", "null"], "minimum": 1, "maximum": 86_400 },
            "voter": { "type": ["boolean", "null"] },
            "replaces": { "type": ["string", "null"] },
        }),
    )
}

/// A join token; `issued`: with its secret.
fn token(issued: bool) -> Value {
    let mut required = vec!["id", "created_ms", "expires_ms", "voter", "replaces", "used_by"];
    let mut properties = json!({
        "id": text(), "created_ms": number(), "expires_ms": number(), "voter": yes_or_no(),
        "replaces": nullable("string"), "used_by": number_or_null(),
    });
    if issued {
        required.push("token");
        properties["token"] = text();
    }
    object(&required, &properties)
}

fn joining() -> Value {
    strict(
        &["token", "name", "address", "request", "names"],
        &json!({
            "token": text(), "name": node_name(), "address": text(), "request": text(),
            "names": { "type": "array", "items": text(), "minItems": 1, "maxItems": 64 },
            "format": { "type": ["integer", "null"], "minimum": 0, "maximum": 255 },
        }),
    )
}

fn joined() -> Value {
    object(
        &["node", "name", "voter", "vkey", "ca", "certificate", "admission"],
        &json!({
            "node": number(), "name": text(), "voter": yes_or_no(), "vkey": text(), "ca": text(), "certificate": text(),
            "admission": { "type": "object" },
        }),
    )
}

fn format() -> Value {
    object(
        &["in_force", "newest", "waits_for"],
        &json!({ "in_force": number(), "newest": number(), "waits_for": list(&text()) }),
    )
}

fn permits() -> Value {
    let held = json!({ "anyOf": [permit(), { "type": "null" }] });
    object(&["permit", "taken", "taken_last"], &json!({ "permit": held, "taken": list(&permit()), "taken_last": held }))
}

fn permit() -> Value {
    object(
        &["name", "node", "reason", "by", "granted_ms", "expires_ms", "accepted_outage", "without_quorum", "over"],
        &json!({
            "name": text(), "node": number(), "reason": text(), "by": text(), "granted_ms": number(),
            "expires_ms": number(), "accepted_outage": yes_or_no(), "without_quorum": yes_or_no(), "over": yes_or_no(),
        }),
    )
}

/// What is said to get the permit; `any`: for any node.
fn new_permit(required: &[&str], any: bool) -> Value {
    let mut properties = json!({
        "reason": { "type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$" },
        "expires_s": { "type": ["integer", "null"], "minimum": 60, "maximum": 86_400 },
        "accept_outage": yes_or_no(), "without_quorum": yes_or_no(),
    });
    if any {
        properties["node"] = json!({ "type": ["string", "null"] });
    }
    strict(required, &properties)
}
