//! Credentials → [`Principal`]. Four ways in (API key, session, client certificate, the node's Unix socket), one answer to
//! who asks and what it may do; the tables of rights and of routes decide the rest.
//!
//! Users, keys and certificates are rows of the system state. A change of it anywhere is seen here by
//! `Head::system_revision`, so that what is revoked stops working on every node as soon as that node has applied the
//! revocation. docs/design/access.md says why things are as they are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::header::HeaderMap;
use samovar_node::Node;
use samovar_node::command::Committed;
use samovar_node::view::Head;
use tokio::sync::watch;

use crate::api::problem::Problem;
use crate::http::Peer;
use crate::metrics::Metrics;
use crate::secrets::Secrets;
use crate::tls::ClientKeys;

mod credential;
mod failures;
mod lockout;
mod members;
mod password;
mod principal;
mod rights;
mod rows;
mod session;
mod signing;
mod table;

pub(crate) use lockout::Lockout;
pub(crate) use members::{
    COMMANDS, FORMATS, JOIN_TOKENS, JoinToken, JoinTokenText, NODES, NodeRow, PERMIT, PERMITS, PermitRow, TAKEN,
    node_named, without_others,
};
pub(crate) use password::{BYTES_MAX as PASSWORD_BYTES_MAX, CHARS_MIN as PASSWORD_CHARS_MIN, Passwords, Secret};
pub(crate) use principal::{Principal, Way};
pub(crate) use rights::{Grant, ROLES, Right, Role};
pub(crate) use rows::{
    API_KEYS, Access, ApiKey, CERTIFICATES, Certificate, Holder, Issued, OWNED_MAX, PASSWORDS, PREFIXES_MAX, Password,
    SEALS, SealRow, TLS, TlsCertificate, UPDATES, USER_BYTES_MAX, USERS, User, hex, is_user_name, unhex,
};
pub(crate) use session::{Claims, LIFE_MS_MAX};
pub(crate) use signing::Old;
pub(crate) use table::{Stored, commit};

use credential::Credential;
use failures::Failures;
use rows::{SESSION_KEYS, fresh_id, same, sha256};
use session::Token;
use signing::Signing;

/// Checked credentials that are remembered; beyond, all are checked again when they are next used.
const KNOWN_MAX: usize = 4096;

/// A credential that was checked. Wrong ones are not kept: an attacker could fill the memory with them.
#[derive(Clone)]
struct Known {
    /// As of which state of the system it was checked.
    system_revision: u64,
    /// When it ends by itself, milliseconds since 1970.
    expires_ms: Option<u64>,
    principal: Arc<Principal>,
}

/// Checks credentials, passwords among them.
pub(crate) struct Auth {
    node: Node,
    head: watch::Receiver<Head>,
    origin: String,
    /// What TLS knows of client certificates.
    pub(crate) clients: Arc<ClientKeys>,
    /// Argon2.
    pub(crate) passwords: Passwords,
    /// Who is to wait before the next login.
    pub(crate) lockout: Lockout,
    signing: Signing,
    /// By [`Credential::digest`]. Bounded by [`KNOWN_MAX`]. Locked for a look-up, never over an await.
    known: Mutex<HashMap<[u8; 32], Known>>,
    failures: Failures,
}

impl Auth {
    /// Reads the system state of the node; `secrets` holds this node's session key.
    pub(crate) fn new(node: Node, secrets: &Secrets, clients: Arc<ClientKeys>, metrics: &Metrics) -> Self {
        Self {
            head: node.head(),
            origin: node.log_info().origin,
            clients,
            passwords: Passwords::new(metrics.password_hashes.clone()),
            lockout: Lockout::default(),
            signing: Signing::of(secrets),
            known: Mutex::default(),
            failures: Failures::default(),
            node,
        }
    }

    /// Who makes the request with these headers on this connection.
    pub(crate) async fn authenticate(&self, headers: &HeaderMap, peer: &Peer) -> Result<Arc<Principal>, Problem> {
        let credential = match Credential::of(headers, peer)? {
            None => return Ok(Arc::new(Principal::anonymous())),
            Some(Credential::Local(user)) => return Ok(Arc::new(Principal::local(user))),
            Some(credential) => credential,
        };
        let digest = credential.digest();
        let head = *self.head.borrow();
        let cached = self.lock().get(&digest).cloned();
        let known = match cached {
            Some(known) if known.system_revision == head.system_revision => Some(known),
            Some(_) => self.load(&credential, digest, head).await?,
            None => {
                self.failures.may_fail(peer.address)?;
                self.load_newest(&credential, digest, head).await?
            }
        };
        match known {
            Some(known) if known.expires_ms.is_none_or(|end| self.now_ms() < end) => Ok(known.principal),
            _ => {
                self.failures.failed(peer.address)?;
                Err(Problem::unauthenticated("the credentials are unknown, expired or revoked"))
            }
        }
    }

    /// Whether a principal of an earlier request is still the same, for answers that last.
    pub(crate) async fn still_valid(&self, headers: &HeaderMap, peer: &Peer, principal: &Principal) -> bool {
        matches!(self.authenticate(headers, peer).await, Ok(now) if *now == *principal)
    }

    /// The token of a new session, and its claims.
    pub(crate) async fn open_session(&self, user: &Stored<User>, life_ms: u64) -> Result<(String, Claims), Problem> {
        let issued_ms = self.now_ms();
        let claims = Claims {
            id: fresh_id(),
            user: user.id.clone(),
            epoch: user.row.epoch.clone(),
            issued_ms,
            expires_ms: issued_ms.saturating_add(life_ms),
        };
        let token = self.signing.token(&self.node, &self.origin, &claims).await?;
        Ok((token, claims))
    }

    /// Replaces the session keys; the id of this node's new one.
    pub(crate) async fn rotate_sessions(&self, author: &str, old: Old) -> Result<(String, Committed), Problem> {
        self.signing.rotate(&self.node, author, old).await
    }

    /// Keeps TLS informed whether any client certificate is registered, until the node stops.
    pub(crate) async fn follow_certificates(node: Node, clients: Arc<ClientKeys>) {
        let mut head = node.head();
        let mut seen = None;
        loop {
            let revision = head.borrow_and_update().system_revision;
            if seen.replace(revision) != Some(revision) {
                match CERTIFICATES.any(&node).await {
                    Ok(any) => clients.ask(any),
                    Err(_) => tracing::warn!("whether client certificates are registered is not known"),
                }
            }
            if head.changed().await.is_err() {
                return;
            }
        }
    }

    /// The time to go by: nothing expires on a clock that is not believed.
    fn now_ms(&self) -> u64 {
        self.node.now_ms()
    }

    /// The same, and once more when this node has caught up with what its peers acknowledged: the session, key or user may
    /// have been made on another one a moment ago.
    async fn load_newest(
        &self,
        credential: &Credential<'_>,
        digest: [u8; 32],
        head: Head,
    ) -> Result<Option<Known>, Problem> {
        let known = self.load(credential, digest, head).await?;
        if known.is_some() || self.node.members().len() == 1 || self.node.barrier().await.is_err() {
            return Ok(known);
        }
        let head = *self.head.borrow();
        self.load(credential, digest, head).await
    }

    /// Checks a credential against the system state and remembers it if it is good.
    async fn load(&self, credential: &Credential<'_>, digest: [u8; 32], head: Head) -> Result<Option<Known>, Problem> {
        let found = match credential {
            Credential::ApiKey { id, secret } => self.api_key(id, secret).await?,
            Credential::Session(token) => self.session(token).await?,
            Credential::Certificate(key) => self.certificate(key).await?,
            Credential::Local(_) => None,
        };
        let known = found.map(|(principal, expires_ms)| Known {
            system_revision: head.system_revision,
            expires_ms,
            principal: Arc::new(principal),
        });
        let mut all = self.lock();
        match &known {
            Some(known) => {
                if all.len() >= KNOWN_MAX && !all.contains_key(&digest) {
                    all.clear();
                }
                all.insert(digest, known.clone());
            }
            None => drop(all.remove(&digest)),
        }
        Ok(known)
    }

    async fn api_key(&self, id: &str, secret: &str) -> Result<Option<(Principal, Option<u64>)>, Problem> {
        let Some(Stored { row, .. }) = API_KEYS.find(&self.node, id).await? else { return Ok(None) };
        let Some(hash) = unhex(&row.hash) else { return Err(Problem::internal(&"an API key's hash is no SHA-256")) };
        if !same(&hash, sha256(secret.as_bytes()).as_ref()) || row.disabled {
            return Ok(None);
        }
        let id = format!("api-key/{id}");
        let principal = match row.holder {
            Holder::Nobody(access) => Some(principal(&id, access, None, Way::ApiKey)),
            Holder::User { user } => self.user(&id, &user, Way::ApiKey).await?,
        };
        Ok(principal.map(|p| (p, row.expires_ms)))
    }

    async fn session(&self, token: &str) -> Result<Option<(Principal, Option<u64>)>, Problem> {
        let Some(token) = Token::parse(token) else { return Ok(None) };
        let Some(Stored { row: key, .. }) = SESSION_KEYS.find(&self.node, token.key_id).await? else { return Ok(None) };
        let Some(claims) = token.verify(&self.origin, &key.public) else { return Ok(None) };
        let Some(Stored { row: user, .. }) = USERS.find(&self.node, &claims.user).await? else { return Ok(None) };
        let too_long = claims.expires_ms.saturating_sub(claims.issued_ms) > LIFE_MS_MAX;
        if too_long || user.epoch != claims.epoch || user.ended.iter().any(|e| e.id == claims.id) {
            return Ok(None);
        }
        let expires_ms = key.honoured_until_ms.map_or(claims.expires_ms, |until| until.min(claims.expires_ms));
        let way = Way::Session { id: claims.id, expires_ms };
        let principal = self.user(&format!("user/{}", claims.user), &claims.user, way).await?;
        Ok(principal.map(|p| (p, Some(expires_ms))))
    }

    async fn certificate(&self, key: &[u8; 32]) -> Result<Option<(Principal, Option<u64>)>, Problem> {
        if self.clients.is_node(key) {
            return Ok(None);
        }
        let Some(Stored { row, .. }) = CERTIFICATES.find(&self.node, &hex(key)).await? else { return Ok(None) };
        let principal = self.user(&format!("user/{}", row.user), &row.user, Way::Certificate).await?;
        Ok(principal.map(|p| (p, row.expires_ms)))
    }

    /// The principal of a user, unless there is none or it is disabled.
    async fn user(&self, id: &str, name: &str, way: Way) -> Result<Option<Principal>, Problem> {
        let found = USERS.find(&self.node, name).await?.filter(|user| !user.row.disabled);
        Ok(found.map(|user| principal(id, user.row.access, Some(Arc::from(name)), way)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The hash of a key, if the text is one: 64 digits of lower-case hex.
pub(crate) fn key_hash_of(text: &str) -> Option<[u8; 32]> {
    unhex(text)
}

fn principal(id: &str, access: Access, user: Option<Arc<str>>, way: Way) -> Principal {
    let Access { role, prefixes, grants } = access;
    Principal { id: Arc::from(id), role: Some(role), prefixes, grants, user, way }
}
