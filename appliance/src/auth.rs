//! Credentials → [`Principal`]. API keys are rows of the system state; only a hash of each secret is kept.
//!
//! A token is `samovar_ID_SECRET`: the id names the row `~api-keys/ID`, the secret is 32 random bytes. A change of the
//! system state anywhere is seen here by `Head::system_revision`, so a revoked key stops working on every node as soon as
//! that node has applied the revocation.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::header::{AUTHORIZATION, HeaderMap};
use samovar_node::command::{Key, Requirement};
use samovar_node::view::{Consistency, Found, Head};
use samovar_node::{Node, Operation, Write, rt};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::api::problem::Problem;

mod rights;

pub(crate) use rights::{ROLES, Right, Role};

/// What every token begins with.
const TOKEN_PREFIX: &str = "samovar_";
/// Where API keys lie in the system state.
pub(crate) const API_KEYS: &str = "~api-keys/";
/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;
/// Characters of a secret: base64url of its bytes.
const SECRET_CHARS: usize = 43;
/// Random bytes of an id, written in hex.
const ID_BYTES: usize = 8;
/// Most API keys of a ledger.
pub(crate) const API_KEYS_MAX: usize = 1000;
/// Most prefixes of an API key.
pub(crate) const PREFIXES_MAX: usize = 32;
/// Failures that one address may cause at once; then one per second. Tokens that were seen to be good do not count.
const FAILURES_MAX: f64 = 30.0;
/// Addresses whose failures are remembered.
const FAILING_ADDRESSES_MAX: usize = 4096;

/// Who makes a request, and what it may do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Principal {
    /// Id, as entries name their author.
    pub(crate) id: Arc<str>,
    /// Role; none for requests without credentials.
    pub(crate) role: Option<Role>,
    /// Key prefixes that it is limited to; empty: not limited.
    pub(crate) prefixes: Vec<String>,
}

impl Principal {
    /// Somebody without credentials.
    pub(crate) fn anonymous() -> Arc<Self> {
        Arc::new(Self { id: Arc::from("anonymous"), role: None, prefixes: Vec::new() })
    }

    /// Whether the key lies within its prefixes.
    pub(crate) fn covers(&self, key: &str) -> bool {
        self.prefixes.is_empty() || self.prefixes.iter().any(|p| key.starts_with(p))
    }

    /// Whether it is limited to prefixes.
    pub(crate) fn is_limited(&self) -> bool {
        !self.prefixes.is_empty()
    }

    /// Whether it has the right, or why not.
    pub(crate) fn require(&self, right: Right) -> Result<(), Problem> {
        let Some(role) = self.role else {
            return Err(Problem::unauthenticated("this route needs a token: Authorization: Bearer TOKEN"));
        };
        if !role.has(right) {
            return Err(Problem::forbidden(format!("role {} may not {}", role.as_str(), right.describe())));
        }
        if right.is_whole_log() && self.is_limited() {
            return Err(Problem::forbidden(
                "this route shows the whole log; a key limited to prefixes may not read it",
            ));
        }
        Ok(())
    }
}

/// An API key as it is stored, a JSON value under its reserved key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ApiKey {
    /// What it is for, in words.
    pub(crate) name: String,
    /// Role.
    pub(crate) role: Role,
    /// Key prefixes; empty: all keys.
    pub(crate) prefixes: Vec<String>,
    /// SHA-256 of the secret's text, hex.
    pub(crate) hash: String,
    /// When it was made, milliseconds since 1970.
    pub(crate) created_ms: u64,
    /// When it ends to work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_ms: Option<u64>,
    /// Whether it was revoked.
    #[serde(default)]
    pub(crate) revoked: bool,
}

/// A new API key: the row and the token, which is shown once.
pub(crate) struct Issued {
    /// Id.
    pub(crate) id: String,
    /// The row.
    pub(crate) row: ApiKey,
    /// The token.
    pub(crate) token: String,
}

impl ApiKey {
    /// Makes a key with a fresh secret.
    pub(crate) fn issue(
        name: String,
        role: Role,
        prefixes: Vec<String>,
        expires_ms: Option<u64>,
        created_ms: u64,
    ) -> Issued {
        let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
        rt::fill_random(&mut id);
        rt::fill_random(&mut secret);
        let (id, secret) = (hex(&id), URL_SAFE_NO_PAD.encode(secret));
        let hash = hash_of(&secret);
        let row = Self { name, role, prefixes, hash, created_ms, expires_ms, revoked: false };
        Issued { token: format!("{TOKEN_PREFIX}{id}_{secret}"), id, row }
    }

    /// The write that stores the row; `revision`: what it replaces.
    pub(crate) fn store(&self, id: &str, revision: Option<u64>, author: &str) -> Result<Write, Problem> {
        let key = row_key(id)?;
        let value = serde_json::to_vec(self).map_err(|e| Problem::internal(&e))?.into();
        Ok(Write {
            author: author.to_owned(),
            requirements: vec![Requirement { key: key.clone(), revision }],
            operations: vec![Operation::Put { key, value, media_type: "application/json".into(), blob: false }],
            idempotency: None,
        })
    }

    /// Whether it works at a time.
    pub(crate) fn is_live(&self, now_ms: u64) -> bool {
        !self.revoked && self.expires_ms.is_none_or(|end| now_ms < end)
    }
}

/// The reserved key of an API key's row.
pub(crate) fn row_key(id: &str) -> Result<Key, Problem> {
    let well_formed = id.len() == 2 * ID_BYTES && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !well_formed {
        return Err(Problem::missing("no-such-api-key", "no API key has this id"));
    }
    Key::reserved(&format!("{API_KEYS}{id}")).map_err(Problem::key)
}

/// What the cache knows of one id. Absent rows are not kept: an attacker could fill the memory with them.
#[derive(Clone)]
struct Known {
    system_revision: u64,
    hash: [u8; 32],
    row: Arc<ApiKey>,
    principal: Arc<Principal>,
}

/// Checks credentials.
pub(crate) struct Auth {
    node: Node,
    head: watch::Receiver<Head>,
    /// Bounded by the number of API keys. Locked for a look-up, never over an await.
    known: Mutex<HashMap<String, Known>>,
    /// Bounded by `FAILING_ADDRESSES_MAX`. Locked like `known`.
    failures: Mutex<HashMap<IpAddr, Bucket>>,
}

struct Bucket {
    left: f64,
    at: Instant,
}

impl Auth {
    /// Reads API keys from the node.
    pub(crate) fn new(node: Node) -> Self {
        let head = node.head();
        Self { node, head, known: Mutex::default(), failures: Mutex::default() }
    }

    /// Who makes the request with these headers.
    pub(crate) async fn authenticate(&self, headers: &HeaderMap, peer: IpAddr) -> Result<Arc<Principal>, Problem> {
        let Some((id, secret)) = credentials(headers)? else { return Ok(Principal::anonymous()) };
        let digest = ring::digest::digest(&ring::digest::SHA256, secret.as_bytes());
        let head = *self.head.borrow();
        let cached = lock(&self.known).get(id).cloned();
        let known = match cached {
            Some(known) if known.system_revision == head.system_revision => Some(known),
            Some(_) => self.load(id, head).await?,
            None => {
                self.may_fail(peer)?;
                self.load(id, head).await?
            }
        };
        let now_ms = self.node.now_ms();
        match known {
            Some(known) if matches(&known.hash, digest.as_ref()) && known.row.is_live(now_ms) => Ok(known.principal),
            _ => {
                self.failed(peer)?;
                Err(Problem::unauthenticated("the token is unknown, expired or revoked"))
            }
        }
    }

    /// Whether a principal of an earlier request is still one, for answers that last.
    pub(crate) async fn still_valid(&self, headers: &HeaderMap, peer: IpAddr, principal: &Principal) -> bool {
        matches!(self.authenticate(headers, peer).await, Ok(now) if *now == *principal)
    }

    async fn load(&self, id: &str, head: Head) -> Result<Option<Known>, Problem> {
        let Ok(key) = row_key(id) else { return Ok(None) };
        let reading = self.node.get(&key, Consistency::Stale, None).await?;
        let Found::Value(value) = reading.found else {
            lock(&self.known).remove(id);
            return Ok(None);
        };
        let row: ApiKey = serde_json::from_slice(&value.content).map_err(|e| Problem::internal(&e))?;
        let Some(hash) = unhex(&row.hash) else { return Err(Problem::internal(&"an API key's hash is no SHA-256")) };
        let principal = Arc::new(Principal {
            id: Arc::from(format!("api-key/{id}")),
            role: Some(row.role),
            prefixes: row.prefixes.clone(),
        });
        let known = Known { system_revision: head.system_revision, hash, row: Arc::new(row), principal };
        lock(&self.known).insert(id.to_owned(), known.clone());
        Ok(Some(known))
    }

    /// Refuses to look when the address failed too often.
    fn may_fail(&self, peer: IpAddr) -> Result<(), Problem> {
        let failures = lock(&self.failures);
        match failures.get(&peer) {
            Some(bucket) if bucket.now() < 1.0 => Err(too_many()),
            None if failures.len() >= FAILING_ADDRESSES_MAX => Err(too_many()),
            _ => Ok(()),
        }
    }

    fn failed(&self, peer: IpAddr) -> Result<(), Problem> {
        let mut failures = lock(&self.failures);
        if failures.len() >= FAILING_ADDRESSES_MAX {
            failures.retain(|_, bucket| bucket.now() < FAILURES_MAX);
        }
        if failures.len() >= FAILING_ADDRESSES_MAX && !failures.contains_key(&peer) {
            return Err(too_many());
        }
        let bucket = failures.entry(peer).or_insert(Bucket { left: FAILURES_MAX, at: Instant::now() });
        let left = bucket.now();
        *bucket = Bucket { left: (left - 1.0).max(0.0), at: Instant::now() };
        if left < 1.0 { Err(too_many()) } else { Ok(()) }
    }
}

impl Bucket {
    /// What is left now: one comes back every second.
    fn now(&self) -> f64 {
        (self.left + self.at.elapsed().min(Duration::from_secs(3600)).as_secs_f64()).min(FAILURES_MAX)
    }
}

fn too_many() -> Problem {
    Problem::too_many("too many requests with wrong tokens came from this address", 1)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Id and secret of the bearer token; none without an `Authorization` header.
fn credentials(headers: &HeaderMap) -> Result<Option<(&str, &str)>, Problem> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::invalid("more than one Authorization header"));
    }
    let malformed = || Problem::unauthenticated("Authorization must be `Bearer TOKEN`, with a token of this ledger");
    let text = value.to_str().map_err(|_| malformed())?;
    let (scheme, token) = text.split_once(' ').ok_or_else(malformed)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(malformed());
    }
    let (id, secret) =
        token.trim().strip_prefix(TOKEN_PREFIX).and_then(|rest| rest.split_once('_')).ok_or_else(malformed)?;
    if secret.len() == SECRET_CHARS { Ok(Some((id, secret))) } else { Err(malformed()) }
}

/// Equal without telling by the time it takes where they differ.
fn matches(a: &[u8; 32], b: &[u8]) -> bool {
    b.len() == a.len() && a.iter().zip(b).fold(0u8, |all, (x, y)| std::hint::black_box(all | (x ^ y))) == 0
}

fn hash_of(secret: &str) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, secret.as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut all, b| {
        use std::fmt::Write as _;
        let _ = write!(all, "{b:02x}");
        all
    })
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let bytes = text.as_bytes();
    let mut out = [0; 32];
    if bytes.len() != 64 || !bytes.is_ascii() {
        return None;
    }
    for (slot, pair) in out.iter_mut().zip(bytes.chunks(2)) {
        *slot = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().expect(value));
        headers
    }

    #[test]
    fn an_issued_token_opens_only_its_own_row() {
        let a = ApiKey::issue("a".into(), Role::Writer, Vec::new(), None, 0);
        let b = ApiKey::issue("b".into(), Role::Writer, Vec::new(), None, 0);
        let bearer = headers(&format!("bearer {}", a.token));
        let (id, secret) = credentials(&bearer).expect("well-formed").expect("present");
        assert_eq!(id, a.id);
        let digest = ring::digest::digest(&ring::digest::SHA256, secret.as_bytes());
        assert!(matches(&unhex(&a.row.hash).expect("hex"), digest.as_ref()), "its own hash matches");
        assert!(!matches(&unhex(&b.row.hash).expect("hex"), digest.as_ref()), "another's does not");
        let stored = serde_json::to_string(&a.row).expect("JSON");
        assert!(!stored.contains(secret), "the secret is not stored");
        assert!(row_key(id).expect("a row key").is_reserved());
    }

    #[test]
    fn malformed_credentials_are_refused() {
        let secret = "A".repeat(SECRET_CHARS);
        for bad in [
            "Bearer".to_owned(),
            "Bearer ".into(),
            format!("Basic samovar_0011223344556677_{secret}"),
            format!("Bearer tea_0011223344556677_{secret}"),
            format!("Bearer samovar_0011223344556677_{secret}A"),
            "Bearer samovar_0011223344556677".into(),
        ] {
            let problem = credentials(&headers(&bad)).expect_err(&bad);
            assert_eq!(problem.status().as_u16(), 401, "{bad:?}");
        }
        let mut twice = headers("Bearer a");
        twice.append(AUTHORIZATION, "Bearer b".parse().expect("value"));
        assert_eq!(credentials(&twice).expect_err("two").status().as_u16(), 400);
        assert!(credentials(&HeaderMap::new()).expect("none is no error").is_none());
        for id in ["", "../x", "00112233445566", "001122334455667G", "001122334455667A"] {
            assert!(row_key(id).is_err(), "{id:?} is no id");
        }
    }

    #[test]
    fn a_key_lives_until_it_expires_or_is_revoked() {
        let mut row = ApiKey::issue("a".into(), Role::Reader, Vec::new(), Some(1000), 0).row;
        assert!(row.is_live(999), "before its end");
        assert!(!row.is_live(1000), "at its end");
        row.expires_ms = None;
        assert!(row.is_live(u64::MAX), "without an end");
        row.revoked = true;
        assert!(!row.is_live(0), "revoked");
    }

    #[test]
    fn prefixes_limit() {
        let limited = Principal { id: "x".into(), role: Some(Role::Admin), prefixes: vec!["a/".into(), "b/".into()] };
        assert!(limited.covers("a/1") && limited.covers("b/"), "within");
        assert!(!limited.covers("a") && !limited.covers("c/a/"), "outside");
        assert_eq!(limited.require(Right::ReadLog).expect_err("whole log").status().as_u16(), 403);
        assert!(limited.require(Right::ReadKeys).is_ok());
    }
}
