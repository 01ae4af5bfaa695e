//! Schemas of bodies and answers.

use serde_json::{Value, json};

fn object(required: &[&str], properties: &Value) -> Value {
    json!({ "type": "object", "required": required, "properties": properties })
}

/// An object that takes no other fields: what clients send.
fn strict(required: &[&str], properties: &Value) -> Value {
    let mut schema = object(required, properties);
    schema["additionalProperties"] = json!(false);
    schema
}

/// A whole number of 64 bits.
pub(super) fn number() -> Value {
    json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX, "format": "uint64" })
}

fn number_or_null() -> Value {
    json!({ "type": ["integer", "null"], "minimum": 0, "maximum": u64::MAX, "format": "uint64" })
}

/// A key as clients may name it. At most 512 bytes, which JSON Schema cannot say: it counts characters.
pub(super) fn key() -> Value {
    json!({
        "type": "string", "minLength": 1, "maxLength": 512,
        "pattern": "^[^~\\u0000-\\u001f\\u007f-\\u009f][^\\u0000-\\u001f\\u007f-\\u009f]*$",
    })
}

/// The beginning of keys, perhaps of all.
pub(super) fn prefix() -> Value {
    json!({
        "type": "string", "maxLength": 512,
        "pattern": "^([^~\\u0000-\\u001f\\u007f-\\u009f][^\\u0000-\\u001f\\u007f-\\u009f]*)?$",
    })
}

fn media_type() -> Value {
    let token = "[!#$%&'*+.^_`|~0-9A-Za-z-]+";
    json!({ "type": "string", "maxLength": 127, "pattern": format!("^{token}/{token}(;[ -~]*)?$") })
}

fn base64() -> Value {
    let pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$";
    json!({ "type": "string", "contentEncoding": "base64", "pattern": pattern })
}

fn nullable(name: &str) -> Value {
    json!({ "type": [name, "null"] })
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn list(items: &Value) -> Value {
    json!({ "type": "array", "items": items })
}

fn role() -> Value {
    json!({ "type": "string", "enum": crate::auth::ROLES.map(|r| r.as_str()) })
}

/// All of them, by name.
pub(super) fn all() -> Value {
    json!({
        "Problem": problem(),
        "Written": object(
            &["key", "revision", "transaction", "block"],
            &json!({ "key": text(), "revision": number(), "transaction": number(), "block": number() }),
        ),
        "Transaction": transaction(),
        "Committed": object(
            &["transaction", "block", "revisions"],
            &json!({
                "transaction": number(), "block": number(),
                "revisions": { "type": "object", "additionalProperties": number() },
            }),
        ),
        "KeyPage": key_page(),
        "HistoryPage": history_page(),
        "Record": record(),
        "BlockPage": object(
            &["blocks", "next"],
            &json!({ "blocks": list(&json!({ "$ref": "#/components/schemas/Block" })), "next": number_or_null() }),
        ),
        "Block": object(
            &["height", "first", "last", "time_ms", "entry"],
            &json!({
                "height": number(), "first": number(), "last": number(), "time_ms": number(),
                "entry": { "type": "object" },
            }),
        ),
        "Log": object(
            &["origin", "vkey", "cosigners", "policy"],
            &json!({ "origin": text(), "vkey": text(), "cosigners": list(&text()), "policy": text() }),
        ),
        "NewApiKey": strict(
            &["name", "role"],
            &json!({
                "name": { "type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$" },
                "role": role(), "prefixes": { "type": "array", "maxItems": crate::auth::PREFIXES_MAX, "items": key() }, "expires_ms": number_or_null(),
            }),
        ),
        "ApiKey": api_key(),
        "IssuedApiKey": json!({
            "allOf": [
                { "$ref": "#/components/schemas/ApiKey" },
                object(&["token"], &json!({ "token": text() })),
            ],
        }),
        "ApiKeys": object(
            &["api_keys"],
            &json!({ "api_keys": list(&json!({ "$ref": "#/components/schemas/ApiKey" })) }),
        ),
        "Status": status(),
        "AcceptedClock": object(
            &["transaction", "block", "before_ms", "block_time_ms"],
            &json!({
                "transaction": number(), "block": number(), "before_ms": number(), "block_time_ms": number(),
            }),
        ),
        "Health": object(&["status"], &json!({ "status": text() })),
    })
}

fn problem() -> Value {
    object(
        &["type", "title", "status", "detail", "request_id"],
        &json!({
            "type": super::problem_type(), "title": text(), "status": number(), "detail": text(),
            "request_id": text(),
        }),
    )
}

fn transaction() -> Value {
    let one = |name: &str, schema: Value| strict(&[name], &json!({ name: schema }));
    let json = strict(&["key", "value"], &json!({ "key": key(), "value": true, "type": media_type() }));
    let bytes = strict(&["key", "bytes"], &json!({ "key": key(), "bytes": base64(), "type": media_type() }));
    let put = json!({ "oneOf": [json, bytes] });
    let delete = strict(&["key"], &json!({ "key": key() }));
    let erase = strict(&["key", "revision"], &json!({ "key": key(), "revision": number() }));
    let require = strict(&["key", "revision"], &json!({ "key": key(), "revision": number_or_null() }));
    let require = json!({ "type": "array", "maxItems": 128, "items": require });
    let operations = json!({
        "type": "array", "minItems": 1, "maxItems": 128,
        "items": { "oneOf": [one("put", put), one("delete", delete), one("erase", erase)] },
    });
    strict(&["operations"], &json!({ "require": require, "operations": operations }))
}

fn key_page() -> Value {
    let row = object(
        &["key", "revision", "size", "type"],
        &json!({ "key": text(), "revision": number(), "size": number(), "type": text() }),
    );
    object(&["block", "keys", "next"], &json!({ "block": number(), "keys": list(&row), "next": nullable("string") }))
}

fn history_page() -> Value {
    let row = object(
        &["revision", "block", "time_ms", "author", "change"],
        &json!({
            "revision": number(), "block": number(), "time_ms": number(), "author": text(),
            "change": { "type": "string", "enum": ["put", "delete"] },
            "size": number(), "type": text(), "erased_by": number(),
        }),
    );
    object(&["key", "versions", "next"], &json!({ "key": text(), "versions": list(&row), "next": number_or_null() }))
}

fn record() -> Value {
    let opening = object(&["key"], &json!({ "key": text(), "salt": text(), "value": text(), "erased_by": number() }));
    object(
        &["index", "block", "entry", "openings"],
        &json!({
            "index": number(), "block": number(), "entry": { "type": "object" }, "openings": list(&opening),
        }),
    )
}

fn api_key() -> Value {
    object(
        &["id", "name", "role", "prefixes", "created_ms", "expires_ms", "revoked"],
        &json!({
            "id": text(), "name": text(), "role": role(), "prefixes": list(&text()), "created_ms": number(),
            "expires_ms": number_or_null(), "revoked": { "type": "boolean" },
        }),
    )
}

fn status() -> Value {
    object(
        &["node", "name", "version", "role", "leader", "term", "height", "size", "clock", "errors", "now_ms"],
        &json!({
            "node": number(), "name": text(), "version": text(), "role": text(), "leader": number_or_null(),
            "term": number(), "height": number(), "size": number(), "block_time_ms": number(),
            "checkpoint_size": number(), "keys": number(), "free_bytes": number(), "reserve_bytes": number(),
            "store_bytes": number(), "uptime_s": number(), "now_ms": number(), "errors": list(&text()), "clock": clock(),
        }),
    )
}

fn clock() -> Value {
    let yes = json!({ "type": "boolean" });
    object(
        &["wall_ms", "sure_ms", "synchronised", "doubted", "held"],
        &json!({ "wall_ms": number(), "sure_ms": number(), "synchronised": yes, "doubted": yes, "held": yes }),
    )
}
