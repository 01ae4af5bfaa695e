//! `/v1/cluster`: who belongs to the cluster and how each of them is, and the taking in and out of nodes. A change is a row
//! (`~nodes/`), and so an entry, made through any node; whoever leads makes the members so.

use std::time::Duration;

use hyper::StatusCode;
use samovar_node::{Node, rt};
use serde::{Deserialize, Serialize};

use super::access::{self, NAME_BYTES_MAX};
use super::problem::Problem;
use super::{App, Call, Handled, render};
use crate::auth::{JOIN_TOKENS, JoinToken, JoinTokenText, NODES, NodeRow, Stored, commit, node_named};
use crate::config::is_host_and_port;
use crate::serve::is_node_name;
use crate::tls::{REQUEST_BYTES_MAX, Subject, is_dns_name, pin_of};

mod finalize;
mod join;
mod permit;
mod view;

pub(crate) use finalize::{finalize, show as format};
pub(crate) use join::join;
pub(crate) use permit::{acquire, drain, release, resume, show as permits};
pub(crate) use view::{cluster, figures, node, nodes};

/// How long a join token lasts unless it is said: an hour.
const TOKEN_LIFE_S: u64 = 3600;
/// Between which lives one may choose, in seconds.
const TOKEN_LIFE_S_MIN: u64 = 1;
const TOKEN_LIFE_S_MAX: u64 = 86_400;
/// How long a change of the members is waited for before the answer says that it is under way.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);
const SETTLED_POLL: Duration = Duration::from_millis(50);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewToken {
    #[serde(default)]
    expires_s: Option<u64>,
    #[serde(default)]
    voter: Option<bool>,
    #[serde(default)]
    replaces: Option<String>,
}

#[derive(Serialize)]
struct ShownToken<'a> {
    id: &'a str,
    created_ms: u64,
    expires_ms: u64,
    voter: bool,
    replaces: Option<&'a str>,
    used_by: Option<u64>,
}

#[derive(Serialize)]
struct IssuedToken<'a> {
    #[serde(flatten)]
    shown: ShownToken<'a>,
    token: String,
}

#[derive(Serialize)]
struct Tokens<'a> {
    join_tokens: Vec<ShownToken<'a>>,
}

#[derive(Serialize)]
struct Changed<'a> {
    name: &'a str,
    node: u64,
    /// What became of it, or is becoming.
    state: &'static str,
}

/// `GET /v1/cluster/ca`.
pub(crate) async fn authority(call: Call) -> Handled {
    let app = call.app;
    let roots = rt::blocking(move || app.certificates.roots_pem()).await.map_err(|e| Problem::internal(&e))?;
    Ok(render::text(roots.map_err(|e| Problem::internal(&format!("{e:#}")))?))
}

/// `POST /v1/cluster/join-tokens`.
pub(crate) async fn create_token(call: Call) -> Handled {
    let (call, NewToken { expires_s, voter, replaces }) = access::body(call).await?;
    let life_s = expires_s.unwrap_or(TOKEN_LIFE_S);
    if !(TOKEN_LIFE_S_MIN..=TOKEN_LIFE_S_MAX).contains(&life_s) {
        let detail = format!("`expires_s` must lie between {TOKEN_LIFE_S_MIN} and {TOKEN_LIFE_S_MAX}");
        return Err(Problem::unprocessable(detail));
    }
    let (app, node) = (&call.app, &call.app.node);
    node.barrier().await?;
    if let Some(name) = &replaces {
        node_named(node, name).await?;
    }
    reachable(app).await?;
    let now_ms = node.now_ms();
    let pin = app.certificates.roots_pem().ok().and_then(|roots| pin_of(&roots));
    let token = JoinTokenText::draw(pin.ok_or_else(|| Problem::internal(&"ca.pem holds no certificate"))?);
    let rows = JOIN_TOKENS.all(node).await?;
    let (over, left): (Vec<_>, Vec<_>) =
        rows.iter().partition(|s| s.row.used_by.is_some() || s.row.expires_ms <= now_ms);
    if left.len() >= JOIN_TOKENS.rows_max {
        let detail = "there are too many join tokens that nobody used: revoke some, or wait until they end";
        return Err(Problem::conflict("too-many-join-tokens", detail));
    }
    let row = JoinToken {
        hash: token.hash(),
        created_ms: now_ms,
        expires_ms: now_ms.saturating_add(life_s * 1000),
        voter: voter.unwrap_or(true),
        replaces,
        used_by: None,
    };
    let mut requirements = vec![JOIN_TOKENS.unchanged(&token.id, None)?];
    let mut operations = vec![JOIN_TOKENS.put(&token.id, &row)?];
    // Those that are over stay for a while, so that who shows one is told why it is refused.
    for old in over.iter().take(rows.len().saturating_sub(JOIN_TOKENS.rows_max / 2)) {
        requirements.push(JOIN_TOKENS.unchanged(&old.id, Some(old.revision))?);
        operations.push(JOIN_TOKENS.delete(&old.id)?);
    }
    let committed = commit(node, &call.principal.id, requirements, operations).await?;
    let issued = IssuedToken { shown: shown(&token.id, &row), token: token.text() };
    Ok(render::committed(render::json(StatusCode::CREATED, &issued)?, &committed))
}

/// Sees to it that peers can reach this node and that the ledger says where.
async fn reachable(app: &App) -> Result<(), Problem> {
    app.peers.open().map_err(|e| Problem::conflict("peers-port", format!("{e:#}")))?;
    app.peers.announce(&app.node).await
}

/// `GET /v1/cluster/join-tokens`.
pub(crate) async fn list_tokens(call: Call) -> Handled {
    call.app.node.barrier().await?;
    let rows = JOIN_TOKENS.all(&call.app.node).await?;
    render::json(StatusCode::OK, &Tokens { join_tokens: rows.iter().map(|s| shown(&s.id, &s.row)).collect() })
}

/// `DELETE /v1/cluster/join-tokens/{id}`.
pub(crate) async fn delete_token(call: Call) -> Handled {
    let node = &call.app.node;
    node.barrier().await?;
    let before = JOIN_TOKENS.get(node, call.captured()).await?;
    let unchanged = JOIN_TOKENS.unchanged(&before.id, Some(before.revision))?;
    let committed = commit(node, &call.principal.id, vec![unchanged], vec![JOIN_TOKENS.delete(&before.id)?]).await?;
    Ok(render::committed(render::empty(StatusCode::NO_CONTENT), &committed))
}

fn shown<'a>(id: &'a str, row: &'a JoinToken) -> ShownToken<'a> {
    let JoinToken { created_ms, expires_ms, voter, used_by, .. } = *row;
    ShownToken { id, created_ms, expires_ms, voter, replaces: row.replaces.as_deref(), used_by }
}

/// `DELETE /v1/cluster/nodes/{name}`.
pub(crate) async fn remove(call: Call) -> Handled {
    let (app, node) = (&call.app, &call.app.node);
    node.barrier().await?;
    if node.members().len() == 1 && call.captured() == node.status().name {
        // One that never had a peer has no row.
        app.peers.may_go(node, node.id())?;
    }
    let before = node_named(node, call.captured()).await?;
    app.peers.may_go(node, before.node())?;
    let row = NodeRow { removed_ms: Some(node.now_ms()), ..before.row.clone() };
    let unchanged = NODES.unchanged(&before.id, Some(before.revision))?;
    let committed = commit(node, &call.principal.id, vec![unchanged], vec![NODES.put(&before.id, &row)?]).await?;
    let id = before.node();
    // One that takes itself out may hear of it from its peers alone.
    let told = || id == node.id() && app.peers.is_refused();
    let gone = settled(|| told() || !node.members().iter().any(|member| member.node == id)).await;
    let changed = Changed { name: &row.name, node: id, state: if gone { "removed" } else { "removing" } };
    Ok(render::committed(render::json(StatusCode::OK, &changed)?, &committed))
}

/// `POST /v1/cluster/nodes/{name}/promote`.
pub(crate) async fn promote(call: Call) -> Handled {
    let node = &call.app.node;
    node.barrier().await?;
    let before = node_named(node, call.captured()).await?;
    let row = NodeRow { voter: true, ..before.row.clone() };
    let unchanged = NODES.unchanged(&before.id, Some(before.revision))?;
    let committed = commit(node, &call.principal.id, vec![unchanged], vec![NODES.put(&before.id, &row)?]).await?;
    let id = before.node();
    let votes = settled(|| node.members().iter().any(|member| member.node == id && member.voter)).await;
    let changed = Changed { name: &row.name, node: id, state: if votes { "voter" } else { "catching up" } };
    Ok(render::committed(render::json(StatusCode::OK, &changed)?, &committed))
}

/// Waits until something holds, but not for ever; whether it does.
async fn settled(holds: impl Fn() -> bool) -> bool {
    let deadline = rt::instant() + SETTLED_WITHIN;
    while !holds() {
        if rt::instant() > deadline {
            return false;
        }
        rt::sleep(SETTLED_POLL).await;
    }
    true
}
