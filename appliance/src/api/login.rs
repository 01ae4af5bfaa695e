//! Sessions: `/v1/login`, `/v1/logout`, `/v1/me`, and the keys that sign their tokens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use samovar_node::rt;
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::{Call, Handled, access, render, users};
use crate::auth::{Grant, Old, PASSWORDS, Principal, Role, Secret, Stored, USERS, User, Way, commit};

/// How long a login waits for what peers acknowledged before it.
const CATCH_UP_WAIT: Duration = Duration::from_millis(500);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    user: String,
    password: Secret,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PasswordChange {
    old: Secret,
    new: Secret,
}

#[derive(Serialize)]
struct Session<'a> {
    token: &'a str,
    user: &'a str,
    role: Role,
    expires_ms: u64,
}

#[derive(Serialize)]
struct Me<'a> {
    id: &'a str,
    user: Option<&'a str>,
    role: Option<Role>,
    prefixes: &'a [String],
    grants: &'a [Grant],
    way: &'static str,
    expires_ms: Option<u64>,
}

#[derive(Serialize)]
struct Rotated<'a> {
    key: &'a str,
}

/// `POST /v1/login`.
pub(crate) async fn login(call: Call) -> Handled {
    let (call, Login { user, password }) = access::body::<Login>(call).await?;
    let metrics = call.app.metrics.clone();
    let user = match checked(&call, &user, password).await {
        Ok(Some(user)) if !user.row.disabled => user,
        Ok(_) => {
            metrics.login("refused");
            // One answer for no such user, a wrong password, no password, and a disabled user.
            return Err(Problem::unauthenticated("user name or password is wrong"));
        }
        Err(problem) => {
            metrics.login("not_checked");
            return Err(problem);
        }
    };
    let (token, claims) = call.app.auth.open_session(&user, call.app.session_life_ms).await?;
    metrics.login("granted");
    let session = Session { token: &token, user: &user.id, role: user.row.access.role, expires_ms: claims.expires_ms };
    render::json(StatusCode::OK, &session)
}

/// The user, if the password is right. One argon2 whoever is named, and a record of the attempt.
///
/// Reads what this node has, once it has caught up with what its peers acknowledged: the user may have been made on another
/// one a moment ago. That is waited for no longer than [`CATCH_UP_WAIT`]: who may log in must not depend on a quorum.
///
/// # Errors
/// 429 while attempts are to wait, 503 when too many are being checked.
async fn checked(call: &Call, name: &str, password: Secret) -> Result<Option<Stored<User>>, Problem> {
    let auth = &call.app.auth;
    let address = call.peer.address;
    auth.lockout.attempt(name, address, Instant::now()).map_err(|wait| {
        Problem::too_many("too many failed logins; wait and try again", wait.as_secs().saturating_add(1))
    })?;
    let node = &call.app.node;
    if node.members().len() > 1 {
        // For whoever is named: the time of an answer says nothing of whether there is such a user.
        let _ = rt::timeout(CATCH_UP_WAIT, node.barrier()).await;
    }
    let (user, stored) = (USERS.find(node, name).await?, PASSWORDS.find(node, name).await?);
    let right = match auth.passwords.verify(password, stored.map(|s| s.row.phc)).await {
        Ok(right) => right,
        Err(problem) => {
            auth.lockout.take_back(name, address);
            return Err(problem);
        }
    };
    if right {
        auth.lockout.succeeded(&Arc::from(name), address, Instant::now());
    } else if let Some(user) = &user {
        // The names of users only: what else is sent here might be a password in the wrong field.
        tracing::info!(user = user.id, peer = %address, "a login failed");
    }
    Ok(user.filter(|_| right))
}

/// `POST /v1/logout`.
pub(crate) async fn logout(call: Call) -> Handled {
    let (Way::Session { id, expires_ms }, Some(name)) = (&call.principal.way, &call.principal.user) else {
        return Err(Problem::conflict("no-session", "only a session can be ended so; see DELETE /v1/api-keys"));
    };
    let node = &call.app.node;
    node.barrier().await?;
    let Stored { id: name, revision, row: mut user } = USERS.get(node, name).await?;
    user.end_session(id, *expires_ms, node.now_ms());
    let requirements = vec![USERS.unchanged(&name, Some(revision))?];
    let committed = commit(node, &call.principal.id, requirements, vec![USERS.put(&name, &user)?]).await?;
    Ok(render::committed(render::empty(StatusCode::NO_CONTENT), &committed))
}

/// `GET /v1/me`.
pub(crate) async fn me(call: Call) -> Handled {
    let Principal { id, role, prefixes, grants, user, way } = &*call.principal;
    let expires_ms = match way {
        Way::Session { expires_ms, .. } => Some(*expires_ms),
        Way::None | Way::ApiKey | Way::Certificate | Way::Local => None,
    };
    let me = Me { id, user: user.as_deref(), role: *role, prefixes, grants, way: way.as_str(), expires_ms };
    render::json(StatusCode::OK, &me)
}

/// `PUT /v1/me/password`: with the old one, so that a stolen session cannot keep the account.
pub(crate) async fn change_password(call: Call) -> Handled {
    let (call, PasswordChange { old, new }) = access::body::<PasswordChange>(call).await?;
    let Some(name) = call.principal.user.clone() else {
        return Err(Problem::conflict("no-user", "these credentials are no user's, and so without a password"));
    };
    call.app.node.barrier().await?;
    match checked(&call, &name, old).await? {
        Some(user) => users::replace_password(&call, user, new).await,
        None => Err(Problem::new(StatusCode::FORBIDDEN, "wrong-password", "the old password is wrong")),
    }
}

/// `POST /v1/session-keys`.
pub(crate) async fn rotate(call: Call) -> Handled {
    let old = match call.query.text("old") {
        Some("refused") => Old::Refused,
        _ => Old::Honoured(call.app.session_life_ms),
    };
    let (key, committed) = call.app.auth.rotate_sessions(&call.principal.id, old).await?;
    Ok(render::committed(render::json(StatusCode::CREATED, &Rotated { key: &key })?, &committed))
}
