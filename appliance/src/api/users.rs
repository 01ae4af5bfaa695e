//! `/v1/users`: people, and service accounts, which are users without a password. Each change is an entry.

use hyper::StatusCode;
use samovar_node::Node;
use samovar_node::command::Requirement;
use serde::{Deserialize, Serialize};

use super::access::{self, Gone, checked, somebody_left};
use super::problem::Problem;
use super::{Call, Handled, render};
use crate::auth::{
    API_KEYS, Access, CERTIFICATES, Grant, PASSWORDS, Password, Role, Secret, Stored, USER_BYTES_MAX, USERS, User,
    commit, is_user_name,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewUser {
    name: String,
    role: Role,
    #[serde(default)]
    prefixes: Vec<String>,
    #[serde(default)]
    grants: Vec<Grant>,
    /// None: a service account.
    #[serde(default)]
    password: Option<Secret>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Changed {
    role: Role,
    #[serde(default)]
    prefixes: Vec<String>,
    #[serde(default)]
    grants: Vec<Grant>,
    #[serde(default)]
    disabled: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewPassword {
    password: Secret,
}

#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    revision: u64,
    role: Role,
    prefixes: &'a [String],
    grants: &'a [Grant],
    /// Whether there is a password; a service account has none.
    password: bool,
    disabled: bool,
    created_ms: u64,
}

#[derive(Serialize)]
struct Listed<'a> {
    users: Vec<Shown<'a>>,
}

/// `POST /v1/users`.
pub(crate) async fn create(call: Call) -> Handled {
    let (call, wanted) = access::body::<NewUser>(call).await?;
    let NewUser { name, role, prefixes, grants, password } = wanted;
    if !is_user_name(&name) {
        let detail = format!(
            "`name` must have 1 to {USER_BYTES_MAX} of a-z, 0-9, `.`, `_` and `-`, and begin with a letter or digit"
        );
        return Err(Problem::unprocessable(detail));
    }
    let user = User::new(checked(role, prefixes, grants)?, call.app.node.now_ms());
    let node = &call.app.node;
    node.barrier().await?;
    if USERS.all(node).await?.len() >= USERS.rows_max {
        let detail = format!("the ledger has {} users, the most it takes", USERS.rows_max);
        return Err(Problem::conflict("too-many-users", detail));
    }
    if USERS.find(node, &name).await?.is_some() {
        return Err(Problem::conflict("user-exists", "a user has this name already"));
    }
    let requirements = vec![USERS.unchanged(&name, None)?];
    let mut operations = vec![USERS.put(&name, &user)?];
    let has_password = password.is_some();
    if let Some(password) = password {
        password.check(&name)?;
        let phc = call.app.auth.passwords.hash(password).await?;
        operations.push(PASSWORDS.put(&name, &Password { phc })?);
    }
    let committed = commit(node, &call.principal.id, requirements, operations).await?;
    let shown = shown(&name, committed.transaction, &user, has_password);
    Ok(render::committed(render::json(StatusCode::CREATED, &shown)?, &committed))
}

/// `GET /v1/users`.
pub(crate) async fn list(call: Call) -> Handled {
    let node = &call.app.node;
    node.barrier().await?;
    let (rows, passwords) = (USERS.all(node).await?, PASSWORDS.ids(node).await?);
    let users = rows.iter().map(|r| shown(&r.id, r.revision, &r.row, passwords.contains(&r.id))).collect();
    render::json(StatusCode::OK, &Listed { users })
}

/// `GET /v1/users/{user}`.
pub(crate) async fn show(call: Call) -> Handled {
    let node = &call.app.node;
    node.barrier().await?;
    let Stored { id, revision, row } = USERS.get(node, call.captured()).await?;
    let password = PASSWORDS.find(node, &id).await?.is_some();
    let mut response = render::json(StatusCode::OK, &shown(&id, revision, &row, password))?;
    response.headers_mut().insert(hyper::header::ETAG, render::etag(revision)?);
    Ok(response)
}

/// `PUT /v1/users/{user}`: what may be changed of a user, all of it. Takes effect on sessions and keys at once.
pub(crate) async fn change(call: Call) -> Handled {
    let (call, wanted) = access::body::<Changed>(call).await?;
    let access = checked(wanted.role, wanted.prefixes, wanted.grants)?;
    let node = &call.app.node;
    node.barrier().await?;
    let before = USERS.get(node, call.captured()).await?;
    let based_on = access::based_on(&call.head.headers, before.revision)?;
    let mut requirements = vec![USERS.unchanged(&before.id, Some(based_on))?];
    let mut user = User { access, disabled: wanted.disabled, ..before.row.clone() };
    if user.disabled && !before.row.disabled {
        // So that none of them revives with the user.
        user.end_sessions();
    }
    if user.disabled || !access::is_admin(&user.access) {
        requirements.extend(needed(node, &before).await?);
    }
    let password = PASSWORDS.find(node, &before.id).await?.is_some();
    let committed = commit(node, &call.principal.id, requirements, vec![USERS.put(&before.id, &user)?]).await?;
    let shown = shown(&before.id, committed.transaction, &user, password);
    Ok(render::committed(render::json(StatusCode::OK, &shown)?, &committed))
}

/// `DELETE /v1/users/{user}`: with password, API keys and certificates, in one transaction.
pub(crate) async fn delete(call: Call) -> Handled {
    let node = &call.app.node;
    node.barrier().await?;
    let user = USERS.get(node, call.captured()).await?;
    let mut requirements = vec![USERS.unchanged(&user.id, Some(user.revision))?];
    requirements.extend(needed(node, &user).await?);
    let mut operations = vec![USERS.delete(&user.id)?];
    let password = PASSWORDS.find(node, &user.id).await?;
    if password.is_some() {
        operations.push(PASSWORDS.delete(&user.id)?);
    }
    for key in access::keys_of(node, &user.id).await? {
        operations.push(API_KEYS.delete(&key.id)?);
    }
    for certificate in CERTIFICATES.all(node).await?.iter().filter(|c| c.row.user == user.id) {
        operations.push(CERTIFICATES.delete(&certificate.id)?);
    }
    let committed = commit(node, &call.principal.id, requirements, operations).await?;
    forget_password(node, &call.principal.id, password).await;
    Ok(render::committed(render::empty(StatusCode::NO_CONTENT), &committed))
}

/// `PUT /v1/users/{user}/password`: an administrator sets one, for whoever forgot it. Ends all sessions of the user.
pub(crate) async fn set_password(call: Call) -> Handled {
    let (call, NewPassword { password }) = access::body::<NewPassword>(call).await?;
    call.app.node.barrier().await?;
    let user = USERS.get(&call.app.node, call.captured()).await?;
    replace_password(&call, user, password).await
}

/// `DELETE /v1/users/{user}/sessions`: ends all of them at once.
pub(crate) async fn end_sessions(call: Call) -> Handled {
    let node = &call.app.node;
    node.barrier().await?;
    let Stored { id, revision, row: mut user } = USERS.get(node, call.captured()).await?;
    user.end_sessions();
    let requirements = vec![USERS.unchanged(&id, Some(revision))?];
    let committed = commit(node, &call.principal.id, requirements, vec![USERS.put(&id, &user)?]).await?;
    Ok(render::committed(render::empty(StatusCode::NO_CONTENT), &committed))
}

/// Sets a password, ends all sessions, and destroys what was kept of the password before.
pub(super) async fn replace_password(call: &Call, user: Stored<User>, password: Secret) -> Handled {
    let Stored { id, revision, row: mut user } = user;
    password.check(&id)?;
    let node = &call.app.node;
    let before = PASSWORDS.find(node, &id).await?;
    let phc = call.app.auth.passwords.hash(password).await?;
    user.end_sessions();
    let requirements = vec![USERS.unchanged(&id, Some(revision))?];
    let operations = vec![USERS.put(&id, &user)?, PASSWORDS.put(&id, &Password { phc })?];
    let committed = commit(node, &call.principal.id, requirements, operations).await?;
    forget_password(node, &call.principal.id, before).await;
    Ok(render::committed(render::empty(StatusCode::NO_CONTENT), &committed))
}

/// Destroys the hash of a password that counts no more: a transaction may name a key once, so this is another one. The
/// change itself is done; that this failed is worth a line.
async fn forget_password(node: &Node, author: &str, before: Option<Stored<Password>>) {
    let Some(Stored { id, revision, .. }) = before else { return };
    let erased = match PASSWORDS.erase(&id, revision) {
        Ok(operation) => commit(node, author, Vec::<Requirement>::new(), vec![operation]).await.map(drop),
        Err(problem) => Err(problem),
    };
    if let Err(problem) = erased {
        tracing::warn!(revision, ?problem, "the hash of a replaced password was not erased");
    }
}

/// Conditions for taking the rights of a user away.
async fn needed(node: &Node, user: &Stored<User>) -> Result<Vec<Requirement>, Problem> {
    if !user.row.disabled && access::is_admin(&user.row.access) {
        return somebody_left(node, Gone::User(&user.id)).await;
    }
    Ok(Vec::new())
}

fn shown<'a>(name: &'a str, revision: u64, user: &'a User, password: bool) -> Shown<'a> {
    let User { access: Access { role, prefixes, grants }, created_ms, disabled, .. } = user;
    Shown { name, revision, role: *role, prefixes, grants, password, disabled: *disabled, created_ms: *created_ms }
}
