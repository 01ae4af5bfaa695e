//! `/v1/api-keys`: each change is an entry, no secret is stored or shown twice.

use hyper::StatusCode;
use samovar_node::Key;
use samovar_node::command::{KEY_BYTES_MAX, RESERVED_PREFIX};
use samovar_node::view::{Consistency, Found};
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::transactions::{from_json, json_body};
use super::{Call, Handled, render};
use crate::auth::{API_KEYS, API_KEYS_MAX, ApiKey, PREFIXES_MAX, Role, row_key};

/// Largest body, in bytes.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Longest name of an API key, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// Rows read at once.
const ROWS_AT_ONCE: usize = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewApiKey {
    name: String,
    role: Role,
    #[serde(default)]
    prefixes: Vec<String>,
    #[serde(default)]
    expires_ms: Option<u64>,
}

#[derive(Serialize)]
struct Shown {
    id: String,
    name: String,
    role: Role,
    prefixes: Vec<String>,
    created_ms: u64,
    expires_ms: Option<u64>,
    revoked: bool,
}

#[derive(Serialize)]
struct Issued {
    #[serde(flatten)]
    shown: Shown,
    token: String,
}

#[derive(Serialize)]
struct Listed {
    api_keys: Vec<Shown>,
}

/// A row with its revision.
struct Row {
    id: String,
    revision: u64,
    row: ApiKey,
}

/// `POST /v1/api-keys`.
pub(crate) async fn create(call: Call) -> Handled {
    json_body(&call)?;
    let (call, body) = call.read(BODY_BYTES_MAX).await?;
    let now_ms = call.app.node.now_ms();
    let wanted = from_json::<NewApiKey>(&body)?.check(now_ms)?;
    if rows(&call).await?.len() >= API_KEYS_MAX {
        let detail = format!("the ledger has {API_KEYS_MAX} API keys, the most it takes");
        return Err(Problem::conflict("too-many-api-keys", detail));
    }
    let issued = ApiKey::issue(wanted.name, wanted.role, wanted.prefixes, wanted.expires_ms, now_ms);
    let committed = call.commit(issued.row.store(&issued.id, None, &call.principal.id)?).await?;
    let answer = Issued { shown: shown(issued.id, issued.row), token: issued.token };
    Ok(render::committed(render::json(StatusCode::CREATED, &answer)?, &committed))
}

/// `GET /v1/api-keys`.
pub(crate) async fn list(call: Call) -> Handled {
    let api_keys = rows(&call).await?.into_iter().map(|r| shown(r.id, r.row)).collect();
    render::json(StatusCode::OK, &Listed { api_keys })
}

/// `DELETE /v1/api-keys/{id}`. Revoking twice is no error.
pub(crate) async fn revoke(call: Call) -> Handled {
    row_key(call.captured())?;
    let now_ms = call.app.node.now_ms();
    let rows = rows(&call).await?;
    let Some(target) = rows.iter().find(|r| r.id == call.captured()) else {
        return Err(Problem::missing("no-such-api-key", "no API key has this id"));
    };
    if target.row.revoked {
        return Ok(render::empty(StatusCode::NO_CONTENT));
    }
    let is_live_admin = |r: &&Row| r.row.role == Role::Admin && r.row.prefixes.is_empty() && r.row.is_live(now_ms);
    if is_live_admin(&target) && rows.iter().filter(is_live_admin).count() == 1 {
        let detail = "this is the last API key that may make others; make a new one first";
        return Err(Problem::conflict("last-admin", detail));
    }
    let revoked = ApiKey { revoked: true, ..target.row.clone() };
    let committed = call.commit(revoked.store(&target.id, Some(target.revision), &call.principal.id)?).await?;
    Ok(render::committed(render::empty(StatusCode::NO_CONTENT), &committed))
}

impl NewApiKey {
    fn check(self, now_ms: u64) -> Result<Self, Problem> {
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX || self.name.chars().any(char::is_control) {
            let detail = format!("`name` must have 1 to {NAME_BYTES_MAX} bytes and no control characters");
            return Err(Problem::unprocessable(detail));
        }
        let bad_prefix = |p: &String| {
            p.is_empty() || p.len() > KEY_BYTES_MAX || p.starts_with(RESERVED_PREFIX) || p.chars().any(char::is_control)
        };
        if self.prefixes.len() > PREFIXES_MAX || self.prefixes.iter().any(bad_prefix) {
            let detail =
                format!("`prefixes` takes at most {PREFIXES_MAX} beginnings of keys; leave it out for all keys");
            return Err(Problem::unprocessable(detail));
        }
        if self.expires_ms.is_some_and(|end| end <= now_ms) {
            return Err(Problem::unprocessable("`expires_ms` lies in the past"));
        }
        Ok(self)
    }
}

fn shown(id: String, row: ApiKey) -> Shown {
    let ApiKey { name, role, prefixes, created_ms, expires_ms, revoked, hash: _ } = row;
    Shown { id, name, role, prefixes, created_ms, expires_ms, revoked }
}

/// Every API key, at most [`API_KEYS_MAX`].
async fn rows(call: &Call) -> Result<Vec<Row>, Problem> {
    let node = &call.app.node;
    node.barrier().await?;
    let mut rows = Vec::new();
    let mut after: Option<Key> = None;
    loop {
        let page = node.keys(API_KEYS, after.as_ref(), ROWS_AT_ONCE).await?;
        for listed in &page.keys {
            let Found::Value(value) = node.get(&listed.key, Consistency::Stale, None).await?.found else { continue };
            let row = serde_json::from_slice(&value.content).map_err(|e| Problem::internal(&e))?;
            let id = listed.key.as_str().trim_start_matches(API_KEYS).to_owned();
            rows.push(Row { id, revision: value.revision, row });
        }
        match page.next {
            Some(next) if rows.len() < API_KEYS_MAX => after = Some(next),
            _ => return Ok(rows),
        }
    }
}
