//! `/v1/api-keys`: each change is an entry, no secret is stored or shown twice.

use hyper::StatusCode;
use serde::{Deserialize, Serialize};

use super::access::{self, Gone, checked, checked_end, checked_name, somebody_left};
use super::problem::Problem;
use super::{Call, Handled, render};
use crate::auth::{API_KEYS, Access, ApiKey, Grant, Holder, OWNED_MAX, Role, Stored, USERS, commit};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewApiKey {
    name: String,
    #[serde(default)]
    role: Option<Role>,
    #[serde(default)]
    prefixes: Vec<String>,
    #[serde(default)]
    grants: Vec<Grant>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default, deserialize_with = "super::transactions::whole_or_null")]
    expires_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Changed {
    name: String,
    #[serde(default)]
    role: Option<Role>,
    #[serde(default)]
    prefixes: Vec<String>,
    #[serde(default)]
    grants: Vec<Grant>,
    #[serde(default, deserialize_with = "super::transactions::whole_or_null")]
    expires_ms: Option<u64>,
    #[serde(default)]
    disabled: bool,
}

#[derive(Serialize)]
struct Shown<'a> {
    id: &'a str,
    revision: u64,
    name: &'a str,
    /// Of keys that act for a user: none, the user's counts.
    role: Option<Role>,
    prefixes: &'a [String],
    grants: &'a [Grant],
    user: Option<&'a str>,
    created_ms: u64,
    expires_ms: Option<u64>,
    disabled: bool,
}

#[derive(Serialize)]
struct Issued<'a> {
    #[serde(flatten)]
    shown: Shown<'a>,
    token: String,
}

#[derive(Serialize)]
struct Listed<'a> {
    api_keys: Vec<Shown<'a>>,
}

/// `POST /v1/api-keys`.
pub(crate) async fn create(call: Call) -> Handled {
    let (call, wanted) = access::body::<NewApiKey>(call).await?;
    checked_name(&wanted.name)?;
    checked_end(&call.app.node, wanted.expires_ms)?;
    let node = &call.app.node;
    node.barrier().await?;
    let (holder, mut requirements) = match (wanted.role, wanted.user) {
        (Some(role), None) => (Holder::Nobody(checked(role, wanted.prefixes, wanted.grants)?), Vec::new()),
        (None, Some(user)) if wanted.prefixes.is_empty() && wanted.grants.is_empty() => {
            let owner = USERS.get(node, &user).await?;
            if access::keys_of(node, &user).await?.len() >= OWNED_MAX {
                let detail = format!("the user has {OWNED_MAX} API keys, the most a user may have");
                return Err(Problem::conflict("too-many-api-keys", detail));
            }
            (Holder::User { user }, vec![USERS.unchanged(&owner.id, Some(owner.revision))?])
        }
        _ => return Err(either_or()),
    };
    if API_KEYS.all(node).await?.len() >= API_KEYS.rows_max {
        let detail = format!("the ledger has {} API keys, the most it takes", API_KEYS.rows_max);
        return Err(Problem::conflict("too-many-api-keys", detail));
    }
    let crate::auth::Issued { id, row, token } =
        ApiKey::issue(wanted.name, holder, wanted.expires_ms, call.app.node.now_ms());
    requirements.push(API_KEYS.unchanged(&id, None)?);
    let committed = commit(node, &call.principal.id, requirements, vec![API_KEYS.put(&id, &row)?]).await?;
    let issued = Issued { shown: shown(&id, committed.transaction, &row), token };
    Ok(render::committed(render::json(StatusCode::CREATED, &issued)?, &committed))
}

fn either_or() -> Problem {
    Problem::unprocessable(
        "an API key has a `role` of its own (with `prefixes` and `grants`) or the `user` that it acts for, one of both",
    )
}

/// `GET /v1/api-keys`.
pub(crate) async fn list(call: Call) -> Handled {
    call.app.node.barrier().await?;
    let rows = API_KEYS.all(&call.app.node).await?;
    let api_keys = rows.iter().map(|r| shown(&r.id, r.revision, &r.row)).collect();
    render::json(StatusCode::OK, &Listed { api_keys })
}

/// `PUT /v1/api-keys/{id}`: what may be changed of a key, all of it.
pub(crate) async fn change(call: Call) -> Handled {
    let (call, wanted) = access::body::<Changed>(call).await?;
    checked_name(&wanted.name)?;
    checked_end(&call.app.node, wanted.expires_ms)?;
    let node = &call.app.node;
    node.barrier().await?;
    let before = API_KEYS.get(node, call.captured()).await?;
    let holder = match (&before.row.holder, wanted.role) {
        (Holder::Nobody(_), Some(role)) => Holder::Nobody(checked(role, wanted.prefixes, wanted.grants)?),
        (Holder::User { user }, None) if wanted.prefixes.is_empty() && wanted.grants.is_empty() => {
            Holder::User { user: user.clone() }
        }
        _ => return Err(either_or()),
    };
    let Changed { name, expires_ms, disabled, .. } = wanted;
    let row = ApiKey { name, holder, expires_ms, disabled, ..before.row.clone() };
    let based_on = access::based_on(&call.head.headers, before.revision)?;
    let mut requirements = vec![API_KEYS.unchanged(&before.id, Some(based_on))?];
    if row.disabled || !is_admins(&row) {
        requirements.extend(needed(&call, &before).await?);
    }
    let committed = commit(node, &call.principal.id, requirements, vec![API_KEYS.put(&before.id, &row)?]).await?;
    let shown = shown(&before.id, committed.transaction, &row);
    Ok(render::committed(render::json(StatusCode::OK, &shown)?, &committed))
}

/// `DELETE /v1/api-keys/{id}`.
pub(crate) async fn delete(call: Call) -> Handled {
    let node = &call.app.node;
    node.barrier().await?;
    let before = API_KEYS.get(node, call.captured()).await?;
    let mut requirements = vec![API_KEYS.unchanged(&before.id, Some(before.revision))?];
    requirements.extend(needed(&call, &before).await?);
    let committed = commit(node, &call.principal.id, requirements, vec![API_KEYS.delete(&before.id)?]).await?;
    Ok(render::committed(render::empty(StatusCode::NO_CONTENT), &committed))
}

/// `POST /v1/api-keys/{id}/successor`: one transaction makes the new key and ends the old one.
pub(crate) async fn rotate(call: Call) -> Handled {
    let grace_s = call.query.number("grace").unwrap_or(0);
    let node = &call.app.node;
    node.barrier().await?;
    let before = API_KEYS.get(node, call.captured()).await?;
    let now_ms = node.now_ms();
    if !before.row.is_live(now_ms) {
        let detail = "the API key is disabled or has ended: enable it first, or make a new one";
        return Err(Problem::conflict("api-key-ended", detail));
    }
    if grace_s > 0 && API_KEYS.all(node).await?.len() >= API_KEYS.rows_max {
        let detail = format!("the ledger has {} API keys, the most it takes: rotate without grace", API_KEYS.rows_max);
        return Err(Problem::conflict("too-many-api-keys", detail));
    }
    let ApiKey { name, holder, expires_ms, .. } = before.row.clone();
    let crate::auth::Issued { id, row, token } = ApiKey::issue(name, holder, expires_ms, now_ms);
    let end_ms = now_ms.saturating_add(grace_s.saturating_mul(1000));
    let ending = ApiKey { expires_ms: Some(expires_ms.map_or(end_ms, |end| end.min(end_ms))), ..before.row.clone() };
    let end = if grace_s > 0 { API_KEYS.put(&before.id, &ending)? } else { API_KEYS.delete(&before.id)? };
    // The new key has the same rights, so nobody is left without an administrator.
    let requirements = vec![API_KEYS.unchanged(&before.id, Some(before.revision))?, API_KEYS.unchanged(&id, None)?];
    let committed = commit(node, &call.principal.id, requirements, vec![API_KEYS.put(&id, &row)?, end]).await?;
    let issued = Issued { shown: shown(&id, committed.transaction, &row), token };
    Ok(render::committed(render::json(StatusCode::CREATED, &issued)?, &committed))
}

/// Whether the key lets its holder manage access. That of a user may, as far as this asks.
fn is_admins(key: &ApiKey) -> bool {
    match &key.holder {
        Holder::Nobody(access) => access::is_admin(access),
        Holder::User { .. } => true,
    }
}

/// Conditions for taking the rights of a key away.
async fn needed(call: &Call, key: &Stored<ApiKey>) -> Result<Vec<samovar_node::command::Requirement>, Problem> {
    if key.row.is_live(call.app.node.now_ms()) && is_admins(&key.row) {
        return somebody_left(&call.app.node, Gone::ApiKey(&key.id)).await;
    }
    Ok(Vec::new())
}

fn shown<'a>(id: &'a str, revision: u64, row: &'a ApiKey) -> Shown<'a> {
    let ApiKey { name, holder, created_ms, expires_ms, disabled, hash: _ } = row;
    let (role, prefixes, grants, user): (_, &[String], &[Grant], _) = match holder {
        Holder::Nobody(Access { role, prefixes, grants }) => (Some(*role), prefixes, grants, None),
        Holder::User { user } => (None, &[], &[], Some(user.as_str())),
    };
    Shown {
        id,
        revision,
        name,
        role,
        prefixes,
        grants,
        user,
        created_ms: *created_ms,
        expires_ms: *expires_ms,
        disabled: *disabled,
    }
}
