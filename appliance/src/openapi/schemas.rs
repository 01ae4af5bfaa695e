//! Schemas of bodies and answers.

use serde_json::{Value, json};

mod cluster;

use crate::auth::{PASSWORD_BYTES_MAX, PASSWORD_CHARS_MIN, PREFIXES_MAX, ROLES, Role, USER_BYTES_MAX};

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

/// The CID of a blob. 58 characters of five bits hold 36 bytes, of which the first four are always the same: so the eighth
/// character has two bits that are, and the last has two that are zero.
pub(super) fn cid() -> Value {
    json!({ "type": "string", "pattern": "^bafkrei[a-h][a-z2-7]{50}[aeimquy4]$" })
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
    json!({ "type": "string", "enum": ROLES.map(Role::as_str) })
}

/// Null where the role is another's: that of the user for whom an API key acts.
fn role_or_null() -> Value {
    json!({ "type": ["string", "null"] })
}

/// All of them, by name.
pub(super) fn all() -> Value {
    let mut all = most();
    all.as_object_mut().into_iter().for_each(|all| all.extend(cluster::all()));
    all
}

fn most() -> Value {
    json!({
        "Problem": problem(),
        "Written": object(
            &["key", "revision", "transaction", "block"],
            &json!({ "key": text(), "revision": number(), "transaction": number(), "block": number() }),
        ),
        "Transaction": transaction(),
        "Uploaded": object(&["cid", "size"], &json!({ "cid": cid(), "size": number() })),
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
            &["origin", "vkey", "cosigners", "policy", "key_changes"],
            &json!({
                "origin": text(), "vkey": text(), "cosigners": list(&text()), "policy": text(),
                "key_changes": list(&number()),
            }),
        ),
        "Login": strict(&["user", "password"], &json!({ "user": text(), "password": text() })),
        "Session": object(
            &["token", "user", "role", "expires_ms"],
            &json!({ "token": text(), "user": text(), "role": role(), "expires_ms": number() }),
        ),
        "Me": me(),
        "PasswordChange": strict(&["old", "new"], &json!({ "old": text(), "new": password() })),
        "NewUser": strict(&["name", "role"], &with(access(), &json!({ "name": user(), "password": or_null(password()) }))),
        "UserChange": strict(&["role"], &with(access(), &json!({ "disabled": { "type": "boolean" } }))),
        "NewPassword": strict(&["password"], &json!({ "password": password() })),
        "User": object(
            &["name", "revision", "role", "prefixes", "grants", "password", "disabled", "created_ms"],
            &with(access(), &json!({
                "name": text(), "revision": number(), "password": { "type": "boolean" },
                "disabled": { "type": "boolean" }, "created_ms": number(),
            })),
        ),
        "Users": object(&["users"], &json!({ "users": list(&refer("User")) })),
        "NewApiKey": json!({
            "oneOf": [
                strict(&["name", "role"], &with(access(), &json!({
                    "name": name(), "user": { "type": "null" }, "expires_ms": number_or_null(),
                }))),
                strict(&["name", "user"], &json!({
                    "name": name(), "user": user(), "role": { "type": "null" }, "expires_ms": number_or_null(),
                })),
            ],
        }),
        "ApiKeyChange": strict(
            &["name"],
            &with(access(), &json!({
                "name": name(), "expires_ms": number_or_null(), "disabled": { "type": "boolean" },
            })),
        ),
        "ApiKey": api_key(),
        "IssuedApiKey": json!({
            "allOf": [refer("ApiKey"), object(&["token"], &json!({ "token": text() }))],
        }),
        "ApiKeys": object(&["api_keys"], &json!({ "api_keys": list(&refer("ApiKey")) })),
        "NewCertificate": strict(
            &["name", "user", "key"],
            &json!({ "name": name(), "user": user(), "key": hash(), "expires_ms": number_or_null() }),
        ),
        "Certificate": object(
            &["key", "revision", "name", "user", "created_ms"],
            &json!({
                "key": hash(), "revision": number(), "name": text(), "user": text(), "created_ms": number(),
                "expires_ms": number_or_null(),
            }),
        ),
        "Certificates": object(&["certificates"], &json!({ "certificates": list(&refer("Certificate")) })),
        "RotatedKey": object(&["key"], &json!({ "key": text() })),
        "RotatedLogKey": object(&["vkey", "transaction"], &json!({ "vkey": text(), "transaction": number() })),
        "RotatedCertificate": object(
            &["certificate", "not_after_s", "rolling_over", "site_ordered"],
            &json!({
                "certificate": hash(), "not_after_s": number(), "rolling_over": { "type": "boolean" },
                "site_ordered": { "type": "boolean" },
            }),
        ),
        "Status": status(),
        "AcceptedClock": object(
            &["transaction", "block", "before_ms", "block_time_ms"],
            &json!({
                "transaction": number(), "block": number(), "before_ms": number(), "block_time_ms": number(),
            }),
        ),
        "NewLogLevel": strict(
            &["directives"],
            &json!({
                "directives": { "type": "string", "minLength": 1, "maxLength": 512 },
                "for_s": { "type": ["integer", "null"], "minimum": 1, "maximum": 86_400 },
            }),
        ),
        "LogLevel": log_level(),
        "NewUpdate": strict(&["bundle"], &json!({ "bundle": { "type": "string", "minLength": 1, "maxLength": 4096 } })),
        "Updates": updates(),
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
    let blob = strict(&["key", "blob"], &json!({ "key": key(), "blob": cid(), "type": media_type() }));
    let put = json!({ "oneOf": [json, bytes, blob] });
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
        &json!({ "key": text(), "revision": number(), "size": number(), "type": text(), "blob": { "type": "boolean" } }),
    );
    object(&["block", "keys", "next"], &json!({ "block": number(), "keys": list(&row), "next": nullable("string") }))
}

fn history_page() -> Value {
    let row = object(
        &["revision", "block", "time_ms", "author", "change"],
        &json!({
            "revision": number(), "block": number(), "time_ms": number(), "author": text(),
            "change": { "type": "string", "enum": ["put", "delete"] },
            "size": number(), "type": text(), "blob": { "type": "boolean" }, "erased_by": number(),
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
        &["id", "revision", "name", "role", "prefixes", "grants", "user", "created_ms", "expires_ms", "disabled"],
        &json!({
            "id": text(), "revision": number(), "name": text(), "role": role_or_null(), "prefixes": list(&text()),
            "grants": grants(), "user": nullable("string"), "created_ms": number(), "expires_ms": number_or_null(),
            "disabled": { "type": "boolean" },
        }),
    )
}

fn me() -> Value {
    object(
        &["id", "user", "role", "prefixes", "grants", "way", "expires_ms"],
        &json!({
            "id": text(), "user": nullable("string"), "role": role_or_null(), "prefixes": list(&text()),
            "grants": grants(), "expires_ms": number_or_null(),
            "way": { "type": "string", "enum": ["api-key", "session", "certificate", "local"] },
        }),
    )
}

/// What may be given to a user or API key.
fn access() -> Value {
    json!({
        "role": role(), "prefixes": { "type": "array", "maxItems": PREFIXES_MAX, "items": key() }, "grants": grants(),
    })
}

fn grants() -> Value {
    list(&json!({ "type": "string", "enum": ["erase"] }))
}

/// Name of a user.
pub(super) fn user() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": USER_BYTES_MAX, "pattern": "^[a-z0-9][a-z0-9._-]*$" })
}

/// A string of a kind, or null for none.
fn or_null(mut some: Value) -> Value {
    some["type"] = json!(["string", "null"]);
    some
}

fn password() -> Value {
    json!({ "type": "string", "minLength": PASSWORD_CHARS_MIN, "maxLength": PASSWORD_BYTES_MAX })
}

/// What an API key or certificate is for.
fn name() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$" })
}

/// A SHA-256.
pub(super) fn hash() -> Value {
    json!({ "type": "string", "pattern": "^[0-9a-f]{64}$" })
}

fn refer(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// The members of both objects.
fn with(mut some: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().into_iter().flatten() {
        some[name] = value.clone();
    }
    some
}

fn status() -> Value {
    object(
        &["node", "name", "version", "role", "leader", "term", "height", "size", "clock", "tls", "errors", "now_ms"],
        &json!({
            "node": number(), "name": text(), "version": text(), "role": text(), "leader": number_or_null(),
            "term": number(), "height": number(), "size": number(), "block_time_ms": number(),
            "checkpoint_size": number(), "keys": number(), "free_bytes": number(), "reserve_bytes": number(),
            "store_bytes": number(), "archive_bytes": number(), "uptime_s": number(), "now_ms": number(),
            "errors": list(&text()), "clock": clock(), "tls": tls(), "log_level": refer("LogLevel"),
        }),
    )
}

fn tls() -> Value {
    object(
        &["node_not_after_s", "ca_not_after_s", "rolling_over", "site"],
        &json!({
            "node_not_after_s": number_or_null(), "ca_not_after_s": number_or_null(),
            "rolling_over": { "type": "boolean" }, "site": site(),
        }),
    )
}

fn site() -> Value {
    object(
        &["source", "names", "not_after_s", "served", "error", "next_try_ms"],
        &json!({
            "source": { "type": "string", "enum": ["local", "files", "acme"] }, "names": list(&text()),
            "not_after_s": number_or_null(), "served": { "type": "boolean" }, "error": nullable("string"),
            "next_try_ms": number_or_null(),
        }),
    )
}

fn log_level() -> Value {
    object(
        &["configured", "directives", "by", "until_ms"],
        &json!({
            "configured": text(), "directives": nullable("string"), "by": nullable("string"),
            "until_ms": number_or_null(),
        }),
    )
}

fn updates() -> Value {
    let slot = || json!({ "slot": text(), "version": text(), "standing": text() });
    let event = object(
        &["sequence", "time_s", "step", "version", "slot", "by", "why"],
        &json!({
            "sequence": number(), "time_s": number(), "step": text(), "version": text(), "slot": text(), "by": text(),
            "why": text(),
        }),
    );
    object(
        &["state", "message", "slot", "version", "standing", "spare", "events"],
        &with(
            slot(),
            &json!({
                "state": text(), "message": text(), "spare": object(&["slot", "version", "standing"], &slot()),
                "events": list(&event),
            }),
        ),
    )
}

fn clock() -> Value {
    let yes = json!({ "type": "boolean" });
    object(
        &["wall_ms", "sure_ms", "synchronised", "doubted", "held"],
        &json!({ "wall_ms": number(), "sure_ms": number(), "synchronised": yes, "doubted": yes, "held": yes }),
    )
}
