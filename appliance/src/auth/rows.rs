//! What is kept of users, API keys, certificates and session keys: the rows of the system state, and nothing that would
//! let whoever reads them come in.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use samovar_node::rt;
use serde::{Deserialize, Serialize};

use super::rights::{Grant, Role};
use super::table::Table;
use crate::update::Event;

/// What every token begins with.
pub(super) const TOKEN_PREFIX: &str = "samovar_";
/// Random bytes of an API key's secret.
pub(super) const SECRET_BYTES: usize = 32;
/// Characters of a secret: base64url of its bytes.
pub(super) const SECRET_CHARS: usize = 43;
/// Random bytes of an id, written in hex.
const ID_BYTES: usize = 8;
/// Most prefixes of a principal.
pub(crate) const PREFIXES_MAX: usize = 32;
/// Longest name of a user, in bytes.
pub(crate) const USER_BYTES_MAX: usize = 64;
/// Most API keys of one user, and most certificates: all of them go with their user in one transaction.
pub(crate) const OWNED_MAX: usize = 50;
/// Sessions of a user that can be ended one by one before all of them are.
const ENDED_MAX: usize = 32;

/// API keys by id.
pub(crate) static API_KEYS: Table<ApiKey> =
    Table::new("~api-keys/", ("no-such-api-key", "no API key has this id"), is_short_id, 1000);
/// Users by name.
pub(crate) static USERS: Table<User> =
    Table::new("~users/", ("no-such-user", "no user has this name"), is_user_name, 1000);
/// Passwords by the name of the user. In rows of their own, so that an old one can be erased by itself.
pub(crate) static PASSWORDS: Table<Password> =
    Table::new("~passwords/", ("no-such-user", "no user with a password has this name"), is_user_name, 1000);
/// Registered keys of client certificates, by the SHA-256 of the public key (`SubjectPublicKeyInfo`) in hex.
pub(crate) static CERTIFICATES: Table<Certificate> =
    Table::new("~certificates/", ("no-such-certificate", "no certificate with this key is registered"), is_hash, 1000);
/// Public keys that session tokens are checked against, by id.
pub(crate) static SESSION_KEYS: Table<SessionKey> =
    Table::new("~session-keys/", ("no-such-session-key", "no session key has this id"), is_short_id, 64);

/// The newest certificates: of the `node` and of the `ca`, as `rotate` made them, and the one for the names of the `site`.
pub(crate) static TLS: Table<TlsCertificate> =
    Table::new("~tls/", ("no-such-certificate", "no certificate has this name"), is_tls_name, 3);

/// Under which key-encryption key each node's secret files lie, by the node's name.
pub(crate) static SEALS: Table<SealRow> =
    Table::new("~seals/", ("no-such-seal", "no node of this name has sealed files"), is_user_name, 64);

/// The last step of an update of each box that is an entry, by the node's name.
pub(crate) static UPDATES: Table<Event> =
    Table::new("~updates/", ("no-such-update", "no box of this name was updated"), is_user_name, 64);

/// What a principal may do, as users and API keys have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Access {
    /// Role.
    pub(crate) role: Role,
    /// Key prefixes; empty: all keys.
    #[serde(default)]
    pub(crate) prefixes: Vec<String>,
    /// Rights beside the role's.
    #[serde(default)]
    pub(crate) grants: Vec<Grant>,
}

/// An API key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ApiKey {
    /// What it is for, in words.
    pub(crate) name: String,
    /// Whom it acts for.
    #[serde(flatten)]
    pub(crate) holder: Holder,
    /// SHA-256 of the secret's text, hex.
    pub(crate) hash: String,
    /// When it was made, milliseconds since 1970.
    pub(crate) created_ms: u64,
    /// When it ends to work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_ms: Option<u64>,
    /// Whether it is refused for now.
    #[serde(default)]
    pub(crate) disabled: bool,
}

/// Whom an API key acts for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Holder {
    /// A user: it may do what the user may, as long as the user may.
    User {
        /// The user's name.
        user: String,
    },
    /// Nobody: it may do what it says itself.
    Nobody(Access),
}

/// A user: a person, or a service account, which has no password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    /// What the user may do.
    #[serde(flatten)]
    pub(crate) access: Access,
    /// When the user was made, milliseconds since 1970.
    pub(crate) created_ms: u64,
    /// Whether everything of the user is refused for now.
    #[serde(default)]
    pub(crate) disabled: bool,
    /// Random; only session tokens that carry it are good. Drawn anew to end all sessions.
    pub(crate) epoch: String,
    /// Sessions of this epoch that were ended before their time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) ended: Vec<Ended>,
}

/// A session that was ended before its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Its id.
    pub(crate) id: String,
    /// When its token ends by itself and need not be remembered any more.
    pub(crate) expires_ms: u64,
}

/// A password.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Password {
    /// argon2id with its salt and cost, as a PHC string.
    pub(crate) phc: String,
}

/// A registered key of client certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Certificate {
    /// What it is, in words.
    pub(crate) name: String,
    /// Whose it is.
    pub(crate) user: String,
    /// When it was registered, milliseconds since 1970.
    pub(crate) created_ms: u64,
    /// When it ends to work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_ms: Option<u64>,
}

/// The public half of a key that signs session tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionKey {
    /// Ed25519 public key, hex.
    pub(crate) public: String,
    /// Node that has the private half.
    pub(crate) node: String,
    /// When it was made, milliseconds since 1970.
    pub(crate) created_ms: u64,
    /// Set once it was replaced: until when its tokens are good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) honoured_until_ms: Option<u64>,
}

/// A certificate that a rotation made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TlsCertificate {
    /// SHA-256 of the certificate in DER, hex.
    pub(crate) sha256: String,
    /// Its end, seconds since 1970.
    pub(crate) not_after_s: u64,
    /// Node that has the private key.
    pub(crate) node: String,
    /// Whether the CA before it is trusted still.
    pub(crate) rolling_over: bool,
}

/// The key-encryption key of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SealRow {
    /// Its id, a part of a hash; `None`: the files lie in the clear again.
    pub(crate) kek: Option<String>,
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
    pub(crate) fn issue(name: String, holder: Holder, expires_ms: Option<u64>, created_ms: u64) -> Issued {
        let mut secret = [0; SECRET_BYTES];
        rt::fill_random(&mut secret);
        let (id, secret) = (fresh_id(), URL_SAFE_NO_PAD.encode(secret));
        let hash = hex(sha256(secret.as_bytes()).as_ref());
        let row = Self { name, holder, hash, created_ms, expires_ms, disabled: false };
        Issued { token: format!("{TOKEN_PREFIX}{id}_{secret}"), id, row }
    }

    /// Whether it works at a time.
    pub(crate) fn is_live(&self, now_ms: u64) -> bool {
        !self.disabled && self.expires_ms.is_none_or(|end| now_ms < end)
    }
}

impl User {
    /// A new user.
    pub(crate) fn new(access: Access, created_ms: u64) -> Self {
        Self { access, created_ms, disabled: false, epoch: fresh_id(), ended: Vec::new() }
    }

    /// Ends all sessions.
    pub(crate) fn end_sessions(&mut self) {
        self.epoch = fresh_id();
        self.ended.clear();
    }

    /// Ends one session; all of them when too many were ended one by one.
    pub(crate) fn end_session(&mut self, id: &str, expires_ms: u64, now_ms: u64) {
        self.ended.retain(|e| e.expires_ms > now_ms);
        if self.ended.len() >= ENDED_MAX {
            return self.end_sessions();
        }
        self.ended.push(Ended { id: id.to_owned(), expires_ms });
    }
}

/// A random id of 16 hex digits.
pub(super) fn fresh_id() -> String {
    let mut id = [0; ID_BYTES];
    rt::fill_random(&mut id);
    hex(&id)
}

pub(super) fn is_short_id(text: &str) -> bool {
    text.len() == 2 * ID_BYTES && is_hex(text)
}

fn is_tls_name(text: &str) -> bool {
    matches!(text, "node" | "ca" | "site")
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// 1 to 64 of `a-z 0-9 . _ -`, beginning with a letter or digit: it stands in paths, in keys and in every entry that the
/// user makes, for ever.
pub(crate) fn is_user_name(text: &str) -> bool {
    (1..=USER_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
        && text.as_bytes()[0].is_ascii_alphanumeric()
}

pub(super) fn sha256(bytes: &[u8]) -> ring::digest::Digest {
    ring::digest::digest(&ring::digest::SHA256, bytes)
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut all, b| {
        use std::fmt::Write as _;
        let _ = write!(all, "{b:02x}");
        all
    })
}

/// 32 bytes from lower-case hex.
pub(crate) fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if !is_hash(text) {
        return None;
    }
    for (slot, pair) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        *slot = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

/// Equal without telling by the time it takes where they differ.
pub(super) fn same(a: &[u8; 32], b: &[u8]) -> bool {
    b.len() == a.len() && a.iter().zip(b).fold(0u8, |all, (x, y)| std::hint::black_box(all | (x ^ y))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(role: Role) -> Access {
        Access { role, prefixes: Vec::new(), grants: Vec::new() }
    }

    #[test]
    fn an_api_key_lives_until_it_expires_or_is_disabled() {
        let mut row = ApiKey::issue("a".into(), Holder::Nobody(access(Role::Reader)), Some(1000), 0).row;
        assert!(row.is_live(999), "before its end");
        assert!(!row.is_live(1000), "at its end");
        row.expires_ms = None;
        assert!(row.is_live(u64::MAX), "without an end");
        row.disabled = true;
        assert!(!row.is_live(0), "disabled");
    }

    #[test]
    fn the_secret_is_not_stored() {
        let issued = ApiKey::issue("a".into(), Holder::Nobody(access(Role::Writer)), None, 0);
        let secret = issued.token.rsplit_once('_').expect("a secret").1;
        let stored = serde_json::to_string(&issued.row).expect("JSON");
        assert!(!stored.contains(secret), "{stored} holds the secret");
        assert!(API_KEYS.key(&issued.id).expect("a key").is_reserved());
        for id in ["", "../x", "00112233445566", "001122334455667G", "001122334455667A"] {
            assert!(API_KEYS.key(id).is_err(), "{id:?} is no id");
        }
    }

    /// Rows are replicated and hashed: their form is a format.
    #[test]
    fn rows_have_golden_bytes() {
        let access = Access { role: Role::Writer, prefixes: vec!["a/".into()], grants: vec![Grant::Erase] };
        let holder = Holder::User { user: "bot".into() };
        let mut key = ApiKey::issue("ci".into(), holder, Some(9), 7).row;
        key.hash = "h".into();
        let mut user = User { epoch: "e".into(), ..User::new(access.clone(), 7) };
        user.end_session("s", 9, 8);
        let own = ApiKey { holder: Holder::Nobody(access), expires_ms: None, ..key.clone() };
        assert_eq!(
            json(&key),
            r#"{"name":"ci","user":"bot","hash":"h","created_ms":7,"expires_ms":9,"disabled":false}"#
        );
        assert_eq!(
            json(&own),
            r#"{"name":"ci","role":"writer","prefixes":["a/"],"grants":["erase"],"hash":"h","created_ms":7,"disabled":false}"#
        );
        assert_eq!(
            json(&user),
            r#"{"role":"writer","prefixes":["a/"],"grants":["erase"],"created_ms":7,"disabled":false,"epoch":"e","ended":[{"id":"s","expires_ms":9}]}"#
        );
        let back: ApiKey = serde_json::from_str(&json(&own)).expect("reads what it wrote");
        assert_eq!(back, own);
    }

    fn json(row: &impl Serialize) -> String {
        serde_json::to_string(row).expect("JSON")
    }

    #[test]
    fn user_names() {
        let long = "a".repeat(USER_BYTES_MAX);
        for good in ["a", "alice", "7up", "a.b-c_d", &long] {
            assert!(is_user_name(good), "{good:?} is a name");
        }
        for bad in ["", "A", "-a", ".a", "a b", "a/b", "é", "a@b", &format!("{long}a")] {
            assert!(!is_user_name(bad), "{bad:?} is no name");
        }
    }

    #[test]
    fn sessions_end_one_by_one_and_then_all() {
        let mut user = User::new(access(Role::Reader), 0);
        let epoch = user.epoch.clone();
        user.end_session("old", 5, 0);
        for n in 0..ENDED_MAX {
            user.end_session(&n.to_string(), 100, 10);
        }
        assert_eq!(user.ended.len(), ENDED_MAX, "those that are over by themselves are forgotten");
        assert_eq!(user.epoch, epoch);
        user.end_session("one more", 100, 10);
        assert!(user.ended.is_empty() && user.epoch != epoch, "then all end");
    }
}
