//! `/v1/certificates`: keys of TLS client certificates, each of one user. Each change is an entry.

use hyper::StatusCode;
use serde::{Deserialize, Serialize};

use super::access::{self, checked_end, checked_name};
use super::problem::Problem;
use super::{Call, Handled, render};
use crate::auth::{CERTIFICATES, Certificate, OWNED_MAX, USERS, commit};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewCertificate {
    name: String,
    user: String,
    /// SHA-256 of the `SubjectPublicKeyInfo` in DER, hex.
    key: String,
    #[serde(default, deserialize_with = "super::transactions::whole_or_null")]
    expires_ms: Option<u64>,
}

#[derive(Serialize)]
struct Shown<'a> {
    key: &'a str,
    revision: u64,
    #[serde(flatten)]
    row: &'a Certificate,
}

#[derive(Serialize)]
struct Listed<'a> {
    certificates: Vec<Shown<'a>>,
}

/// `POST /v1/certificates`.
pub(crate) async fn create(call: Call) -> Handled {
    let (call, NewCertificate { name, user, key, expires_ms }) = access::body::<NewCertificate>(call).await?;
    checked_name(&name)?;
    checked_end(&call.app.node, expires_ms)?;
    let Some(hash) = crate::auth::key_hash_of(&key) else {
        return Err(Problem::unprocessable("`key` must be the SHA-256 of the public key in DER, 64 digits of hex"));
    };
    if call.app.auth.clients.is_node(&hash) {
        return Err(Problem::conflict("key-of-a-node", "this is the key of a node, which is nobody's"));
    }
    let node = &call.app.node;
    node.barrier().await?;
    let owner = USERS.get(node, &user).await?;
    let rows = CERTIFICATES.all(node).await?;
    if rows.iter().any(|c| c.id == key) {
        return Err(Problem::conflict("certificate-exists", "this key is registered already"));
    }
    if rows.len() >= CERTIFICATES.rows_max || rows.iter().filter(|c| c.row.user == user).count() >= OWNED_MAX {
        let detail = format!("a user has at most {OWNED_MAX} certificates, the ledger {}", CERTIFICATES.rows_max);
        return Err(Problem::conflict("too-many-certificates", detail));
    }
    let row = Certificate { name, user, created_ms: node.now_ms(), expires_ms };
    let requirements = vec![CERTIFICATES.unchanged(&key, None)?, USERS.unchanged(&owner.id, Some(owner.revision))?];
    let committed = commit(node, &call.principal.id, requirements, vec![CERTIFICATES.put(&key, &row)?]).await?;
    // At once, and not only when the change has been noticed: the next handshake may follow on the answer.
    call.app.auth.clients.ask(true);
    let shown = Shown { key: &key, revision: committed.transaction, row: &row };
    Ok(render::committed(render::json(StatusCode::CREATED, &shown)?, &committed))
}

/// `GET /v1/certificates`.
pub(crate) async fn list(call: Call) -> Handled {
    call.app.node.barrier().await?;
    let rows = CERTIFICATES.all(&call.app.node).await?;
    let certificates = rows.iter().map(|r| Shown { key: &r.id, revision: r.revision, row: &r.row }).collect();
    render::json(StatusCode::OK, &Listed { certificates })
}

/// `DELETE /v1/certificates/{hash}`.
pub(crate) async fn delete(call: Call) -> Handled {
    let node = &call.app.node;
    node.barrier().await?;
    let row = CERTIFICATES.get(node, call.captured()).await?;
    let requirements = vec![CERTIFICATES.unchanged(&row.id, Some(row.revision))?];
    let committed = commit(node, &call.principal.id, requirements, vec![CERTIFICATES.delete(&row.id)?]).await?;
    Ok(render::committed(render::empty(StatusCode::NO_CONTENT), &committed))
}
