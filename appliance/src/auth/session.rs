//! Session tokens: what a login gives, good for a short time, checked without a look-up of their own.
//!
//! `samovar_session_KEYID.CLAIMS.SIGNATURE`: the id of a session key, base64url of [`Claims`] as JSON, and base64url of an
//! Ed25519 signature over [`signed_part`]. There is one algorithm and no field that could name another. Each node signs
//! with a key of its own, whose public half lies in the system state (`SESSION_KEYS`): every node can check every
//! token, and no secret is replicated, backed up or shown in a receipt.

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use samovar_node::rt;
use serde::{Deserialize, Serialize};

use super::rows::{hex, is_short_id, sha256, unhex};
use crate::secrets::{SESSION_KEY, Secrets};

/// What a session token begins with.
pub(super) const PREFIX: &str = "samovar_session_";
/// Longest token, in bytes.
pub(super) const TOKEN_BYTES_MAX: usize = 1024;
/// Longest life of a session that can be configured, in milliseconds.
pub(crate) const LIFE_MS_MAX: u64 = 24 * 3_600_000;
/// Keeps these signatures apart from all others.
const DOMAIN: &[u8] = b"samovar session v1\0";

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claims {
    /// Id of the session.
    pub(crate) id: String,
    /// Name of the user.
    pub(crate) user: String,
    /// The user's epoch as of the login.
    pub(crate) epoch: String,
    /// Time of the login, milliseconds since 1970.
    pub(crate) issued_ms: u64,
    /// End of the session.
    pub(crate) expires_ms: u64,
}

/// A token whose form was checked, not yet its signature.
pub(super) struct Token<'a> {
    /// Id of the key that is said to have signed it.
    pub(super) key_id: &'a str,
    payload: &'a str,
    signature: Vec<u8>,
}

impl<'a> Token<'a> {
    /// Takes a token apart; none if it cannot be one.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        if text.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let mut parts = text.strip_prefix(PREFIX)?.split('.');
        let (key_id, payload, signature) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || !is_short_id(key_id) {
            return None;
        }
        Some(Self { key_id, payload, signature: URL_SAFE_NO_PAD.decode(signature).ok()? })
    }

    /// What the token says, if this key of this ledger signed it.
    pub(super) fn verify(&self, origin: &str, public: &str) -> Option<Claims> {
        let message = signed_part(origin, self.key_id, self.payload);
        UnparsedPublicKey::new(&ED25519, unhex(public)?).verify(&message, &self.signature).ok()?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(self.payload).ok()?).ok()
    }
}

/// What the signature is over: the domain, the log's origin, and the token up to its signature. Neither origin nor key id
/// holds a zero byte.
fn signed_part(origin: &str, key_id: &str, payload: &str) -> Vec<u8> {
    [DOMAIN, origin.as_bytes(), b"\0", key_id.as_bytes(), b".", payload.as_bytes()].concat()
}

/// A private key that signs tokens.
pub(super) struct Signer {
    /// Its id: the beginning of the SHA-256 of its public half, in hex.
    pub(super) id: String,
    pair: Ed25519KeyPair,
}

impl Signer {
    fn of(seed: &[u8]) -> Result<Self> {
        let Ok(pair) = Ed25519KeyPair::from_seed_unchecked(seed) else { bail!("holds no key of 32 bytes") };
        let id = hex(&sha256(pair.public_key().as_ref()).as_ref()[..8]);
        Ok(Self { id, pair })
    }

    /// The public half, hex.
    pub(super) fn public(&self) -> String {
        hex(self.pair.public_key().as_ref())
    }

    /// The token for a session.
    pub(super) fn token(&self, origin: &str, claims: &Claims) -> Result<String, serde_json::Error> {
        let payload = URL_SAFE_NO_PAD.encode(serde_json::to_vec(claims)?);
        let signature = self.pair.sign(&signed_part(origin, &self.id, &payload));
        Ok(format!("{PREFIX}{}.{payload}.{}", self.id, URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }
}

/// Where a node keeps its private key: a secret file in its data directory.
pub(super) struct KeyFile(Secrets);

impl KeyFile {
    /// In a data directory.
    pub(super) fn of(secrets: &Secrets) -> Self {
        Self(secrets.clone())
    }

    /// The key, if there is one. A damaged file is as good as none: a new key costs nobody more than a login.
    pub(super) fn load(&self) -> Option<Signer> {
        let content = self.0.read(SESSION_KEY).transpose()?;
        let signer = content.and_then(|content| {
            let text = std::str::from_utf8(&content).unwrap_or_default();
            unhex(text.trim()).context("it holds no key").and_then(|seed| Signer::of(&seed))
        });
        signer.map_err(|error| tracing::warn!("{SESSION_KEY}: {error:#}; a new session key is made")).ok()
    }

    /// Makes a key that is not kept yet.
    pub(super) fn draw() -> Result<([u8; 32], Signer)> {
        let mut seed = [0; 32];
        rt::fill_random(&mut seed);
        Ok((seed, Signer::of(&seed)?))
    }

    /// Keeps a key in place of the one before. Crash order: a whole new file, then its name.
    pub(super) fn keep(&self, seed: &[u8; 32]) -> Result<()> {
        self.0.write(SESSION_KEY, format!("{}\n", hex(seed)).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: &str = "samovar/box-01/0011223344556677";

    fn claims() -> Claims {
        Claims {
            id: "0011223344556677".into(),
            user: "alice".into(),
            epoch: "8899aabbccddeeff".into(),
            issued_ms: 1,
            expires_ms: 2,
        }
    }

    fn signer(byte: u8) -> Signer {
        Signer::of(&[byte; 32]).expect("a key")
    }

    fn open(token: &str, origin: &str, key: &Signer) -> Option<Claims> {
        Token::parse(token)?.verify(origin, &key.public())
    }

    #[test]
    fn a_token_says_what_was_signed() {
        let key = signer(7);
        let token = key.token(ORIGIN, &claims()).expect("a token");
        assert_eq!(open(&token, ORIGIN, &key), Some(claims()));
        assert_eq!(Token::parse(&token).expect("well-formed").key_id, key.id);
        assert_eq!(open(&token, "samovar/box-01/7766554433221100", &key), None, "another ledger");
        assert_eq!(open(&token, ORIGIN, &signer(8)), None, "another key");
    }

    /// No byte of a token can be another one.
    #[test]
    fn a_token_cannot_be_changed() {
        let key = signer(7);
        let token = key.token(ORIGIN, &claims()).expect("a token");
        for at in 0..token.len() {
            for to in ['A', 'b', '0', '.', '_'] {
                let mut changed: Vec<char> = token.chars().collect();
                if changed[at] == to {
                    continue;
                }
                changed[at] = to;
                let changed: String = changed.into_iter().collect();
                // A changed key id is looked up before anything else, and is another key's.
                let same_key = Token::parse(&changed).is_some_and(|t| t.key_id == key.id);
                assert!(!same_key || open(&changed, ORIGIN, &key).is_none(), "byte {at} as {to:?} was taken");
            }
        }
    }

    #[test]
    fn what_was_not_signed_is_refused() {
        let key = signer(7);
        let payload = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims()).expect("JSON"));
        let none = URL_SAFE_NO_PAD.encode(br#"{"alg":"none","typ":"JWT"}"#);
        for forged in [
            format!("{PREFIX}{}.{payload}.", key.id),
            format!("{PREFIX}{}.{payload}", key.id),
            format!("{PREFIX}{}.{payload}.{}", key.id, URL_SAFE_NO_PAD.encode([0; 64])),
            format!("{PREFIX}{none}.{payload}."),
            format!("{none}.{payload}."),
            format!("{PREFIX}{}.{payload}.x.y", key.id),
            format!("{PREFIX}{}.{}.", key.id, "A".repeat(TOKEN_BYTES_MAX)),
            PREFIX.to_owned(),
        ] {
            assert_eq!(open(&forged, ORIGIN, &key), None, "{forged:.80}");
        }
    }

    /// Whatever is sent: only the token that was signed is taken.
    #[test]
    fn fuzz_session_token() {
        let key = signer(7);
        let (token, public) = (key.token(ORIGIN, &claims()).expect("a token"), key.public());
        let none = format!("{PREFIX}{}..", key.id);
        samovar_fuzz::decoder("session-token", &[token.clone().into_bytes(), none.into_bytes()], |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            if Token::parse(text).and_then(|t| t.verify(ORIGIN, &public)).is_some() {
                assert_eq!(text, token, "another text was taken for the token");
            }
        });
    }

    #[test]
    fn the_private_key_is_its_owners() {
        use std::os::unix::fs::PermissionsExt as _;
        let data = tempfile::tempdir().expect("a directory");
        let file = KeyFile::of(&Secrets::clear(data.path()));
        assert!(file.load().is_none(), "none yet");
        for _ in 0..2 {
            let (seed, signer) = KeyFile::draw().expect("a key");
            file.keep(&seed).expect("kept");
            assert_eq!(file.load().expect("a key").id, signer.id);
        }
        let mode = data.path().join(SESSION_KEY).metadata().expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::File::create(data.path().join(SESSION_KEY)).expect("emptied");
        assert!(file.load().is_none(), "a damaged file is as good as none");
    }
}
