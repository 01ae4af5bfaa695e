//! What the routes about users, API keys and certificates share: what may be given to whom, and that somebody is left who
//! may give it.

use hyper::HeaderMap;
use samovar_node::Node;
use samovar_node::command::{KEY_BYTES_MAX, RESERVED_PREFIX, Requirement};
use serde::de::DeserializeOwned;

use super::problem::Problem;
use super::transactions::{from_json, json_body};
use super::{Call, keys};
use crate::auth::{API_KEYS, Access, ApiKey, Grant, Holder, PASSWORDS, PREFIXES_MAX, Role, Stored, USERS, User};

/// Largest body of these routes, in bytes.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Longest name of an API key or certificate, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 128;

/// The body of a request, strictly.
pub(super) async fn body<T: DeserializeOwned>(call: Call) -> Result<(Call, T), Problem> {
    json_body(&call)?;
    let (call, bytes) = call.read(BODY_BYTES_MAX).await?;
    let body = from_json(&bytes)?;
    Ok((call, body))
}

/// Refuses what cannot be given.
pub(super) fn checked(role: Role, prefixes: Vec<String>, mut grants: Vec<Grant>) -> Result<Access, Problem> {
    let bad_prefix = |p: &String| {
        p.is_empty() || p.len() > KEY_BYTES_MAX || p.starts_with(RESERVED_PREFIX) || p.chars().any(char::is_control)
    };
    if prefixes.len() > PREFIXES_MAX || prefixes.iter().any(bad_prefix) {
        let detail = format!("`prefixes` takes at most {PREFIXES_MAX} beginnings of keys; leave it out for all keys");
        return Err(Problem::unprocessable(detail));
    }
    grants.dedup();
    Ok(Access { role, prefixes, grants })
}

/// Refuses a name that could not be shown.
pub(super) fn checked_name(name: &str) -> Result<(), Problem> {
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Problem::unprocessable(format!("`name` must have 1 to {NAME_BYTES_MAX} bytes and no control characters")))
}

/// Refuses an end that is over.
pub(super) fn checked_end(node: &Node, expires_ms: Option<u64>) -> Result<(), Problem> {
    if expires_ms.is_some_and(|end| end <= node.now_ms()) {
        return Err(Problem::unprocessable("`expires_ms` lies in the past"));
    }
    Ok(())
}

/// The revision that a change is based on: that of `If-Match`, else the one that was just read.
pub(super) fn based_on(headers: &HeaderMap, read: u64) -> Result<u64, Problem> {
    Ok(keys::if_match(headers)?.unwrap_or(read))
}

/// What a change takes away.
#[derive(Clone, Copy)]
pub(super) enum Gone<'a> {
    /// The rights of an API key.
    ApiKey(&'a str),
    /// The rights of a user, and so of the user's keys.
    User(&'a str),
}

/// Conditions under which somebody is left who may manage access.
///
/// # Errors
/// 409 when there is nobody else: then the change could not be undone but by root on a node.
pub(super) async fn somebody_left(node: &Node, gone: Gone<'_>) -> Result<Vec<Requirement>, Problem> {
    let users = USERS.all(node).await?;
    let gone_user = |name: &str| matches!(gone, Gone::User(g) if g == name);
    let admin = |name: &str| users.iter().find(|u| u.id == name && !gone_user(name) && manages(&u.row));
    for key in API_KEYS.all(node).await? {
        if matches!(gone, Gone::ApiKey(id) if id == key.id) || !key.row.is_live(node.now_ms()) {
            continue;
        }
        let holder = match &key.row.holder {
            Holder::Nobody(access) if is_admin(access) => None,
            Holder::User { user } => match admin(user) {
                Some(user) => Some(user),
                None => continue,
            },
            Holder::Nobody(_) => continue,
        };
        let mut kept = vec![API_KEYS.unchanged(&key.id, Some(key.revision))?];
        if let Some(user) = holder {
            kept.push(USERS.unchanged(&user.id, Some(user.revision))?);
        }
        return Ok(kept);
    }
    for user in users.iter().filter(|u| !gone_user(&u.id) && manages(&u.row)) {
        if let Some(password) = PASSWORDS.find(node, &user.id).await? {
            return Ok(vec![
                USERS.unchanged(&user.id, Some(user.revision))?,
                PASSWORDS.unchanged(&user.id, Some(password.revision))?,
            ]);
        }
    }
    let detail = "nobody would be left who may manage users and API keys; make another administrator first";
    Err(Problem::conflict("last-admin", detail))
}

/// Whether somebody with this access may manage everybody's.
pub(super) fn is_admin(access: &Access) -> bool {
    access.role == Role::Admin && access.prefixes.is_empty()
}

fn manages(user: &User) -> bool {
    !user.disabled && is_admin(&user.access)
}

/// The API keys of a user.
pub(super) async fn keys_of(node: &Node, name: &str) -> Result<Vec<Stored<ApiKey>>, Problem> {
    let mut keys = API_KEYS.all(node).await?;
    keys.retain(|k| matches!(&k.row.holder, Holder::User { user } if user == name));
    Ok(keys)
}
