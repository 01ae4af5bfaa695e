//! Signed notes, verifier keys and cosignatures (C2SP signed-note, tlog-cosignature), Ed25519 only.
//!
//! Signatures of unknown keys are passed over, as the format demands, so a second signature type can come later without a
//! flag day; a signature of a known key that does not verify refuses the whole note. Pure: the time of a cosignature is
//! handed in.

use std::fmt;

use ring::digest::{SHA256, digest};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use crate::canonical::{decode_base64, push_base64};

/// Most signature lines of a note; the format asks for at least 16.
pub const SIGNATURES_MAX: usize = 64;
/// Largest note in bytes: room for [`SIGNATURES_MAX`] ML-DSA-44 signatures.
pub const NOTE_BYTES_MAX: usize = 512 * 1024;
/// Longest key name in bytes: what an ML-DSA-44 cosignature can carry.
pub const NAME_BYTES_MAX: usize = 255;
/// Latest time of a cosignature, in seconds.
const TIME_S_MAX: u64 = i64::MAX as u64;

/// Type of signature, with the byte that names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Scheme {
    /// Ed25519 over the text of the note: how a log signs its checkpoints.
    Ed25519 = 0x01,
    /// Timestamped Ed25519 cosignature of a checkpoint.
    Cosignature = 0x04,
}

/// Why a key, a note or a signature is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// The text is not a verifier key.
    #[error("not a verifier key: {0}")]
    Key(&'static str),
    /// The verifier key is of a type that this version cannot check.
    #[error("signature type 0x{0:02x} is not supported, use an Ed25519 key (0x01 for a log, 0x04 for a cosigner)")]
    UnknownScheme(u8),
    /// The private key is not one.
    #[error("not an Ed25519 private key: {0}")]
    PrivateKey(String),
    /// The text is not a signed note.
    #[error("not a signed note: {0}")]
    Note(&'static str),
    /// A signature of a known key is wrong: the text was changed, or somebody else signed it.
    #[error("the signature of {0} does not verify: the text was changed, or another key signed it")]
    Signature(String),
}

/// A public key with its name: `NAME+HEX+BASE64`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VerifierKey {
    name: String,
    id: [u8; 4],
    scheme: Scheme,
    public: [u8; 32],
}

impl VerifierKey {
    /// Names a public key.
    ///
    /// # Errors
    /// When the name is empty, too long, or has a space, a plus or a control character.
    pub fn new(name: &str, scheme: Scheme, public: [u8; 32]) -> Result<Self, NoteError> {
        if !is_name(name) || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(NoteError::Key("a name has 1 to 255 bytes, no space, plus or control character"));
        }
        let hashed = digest(&SHA256, &[name.as_bytes(), &[b'\n', scheme as u8], &public].concat());
        let mut id = [0; 4];
        id.copy_from_slice(&hashed.as_ref()[..4]);
        Ok(Self { name: name.to_owned(), id, scheme, public })
    }

    /// Reads a verifier key.
    ///
    /// # Errors
    /// When it is malformed, its id is not that of its name and key, or it is of another type.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::Key("it has three parts, NAME+ID+KEY"));
        };
        let bytes = decode_base64(key).ok_or(NoteError::Key("its last part is not canonical base64"))?;
        let (&scheme, public) = bytes.split_first().ok_or(NoteError::Key("its last part is empty"))?;
        let scheme = match scheme {
            0x01 => Scheme::Ed25519,
            0x04 => Scheme::Cosignature,
            other => return Err(NoteError::UnknownScheme(other)),
        };
        let public = public.try_into().map_err(|_| NoteError::Key("an Ed25519 key has 32 bytes"))?;
        let key = Self::new(name, scheme, public)?;
        if id != key.id_hex() {
            return Err(NoteError::Key("its id is not that of its name and key: was it copied in full?"));
        }
        Ok(key)
    }

    /// Name of the key; for a log, the origin of its checkpoints.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it signs.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The Ed25519 public key.
    #[must_use]
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    fn id_hex(&self) -> String {
        format!("{:08x}", u32::from_be_bytes(self.id))
    }

    fn is_of(&self, signature: &Signature<'_>) -> bool {
        self.name == signature.name && self.id == signature.id
    }

    /// Checks a signature of this key; for a cosignature gives its time, seconds since 1970.
    fn verify(&self, text: &str, signature: &[u8]) -> Option<Option<u64>> {
        match self.scheme {
            Scheme::Ed25519 => self.is_signed(text.as_bytes(), signature).then_some(None),
            Scheme::Cosignature => {
                let (time, signature) = signature.split_first_chunk()?;
                let time_s = Some(u64::from_be_bytes(*time)).filter(|t| *t <= TIME_S_MAX)?;
                self.is_signed(cosigned_message(text, time_s).as_bytes(), signature).then_some(Some(time_s))
            }
        }
    }

    fn is_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let verify = || UnparsedPublicKey::new(&ED25519, &self.public).verify(message, signature).is_ok();
        // Every node of a simulated world checks the same ones on one thread.
        #[cfg(test)]
        return found_good::remembered([self.public.as_slice(), signature, message].concat(), verify);
        #[cfg(not(test))]
        verify()
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = base64_text(&[&[self.scheme as u8], self.public.as_slice()].concat());
        write!(f, "{}+{}+{key}", self.name, self.id_hex())
    }
}

/// Whether the format allows the name. Keys that we use are held to more; the lines of others are not.
fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(|c| c.is_whitespace() || c == '+')
}

fn base64_text(bytes: &[u8]) -> String {
    let mut out = Vec::new();
    push_base64(&mut out, bytes);
    String::from_utf8(out).unwrap_or_default()
}

/// What an Ed25519 cosigner signs.
fn cosigned_message(text: &str, time_s: u64) -> String {
    format!("cosignature/v1\ntime {time_s}\n{text}")
}

/// A private key with its name.
pub struct Signer {
    key: VerifierKey,
    pair: Ed25519KeyPair,
}

impl Signer {
    /// From the 32 bytes of the private key (RFC 8032).
    ///
    /// # Errors
    /// When the name is not one.
    pub fn from_seed(name: &str, scheme: Scheme, seed: &[u8; 32]) -> Result<Self, NoteError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|e| NoteError::PrivateKey(e.to_string()))?;
        Self::new(name, scheme, pair)
    }

    /// From a PKCS#8 document, version 1 or 2.
    ///
    /// # Errors
    /// When the name or the document is not one.
    pub fn from_pkcs8(name: &str, scheme: Scheme, document: &[u8]) -> Result<Self, NoteError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(document);
        Self::new(name, scheme, pair.map_err(|e| NoteError::PrivateKey(e.to_string()))?)
    }

    fn new(name: &str, scheme: Scheme, pair: Ed25519KeyPair) -> Result<Self, NoteError> {
        let mut public = [0; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        Ok(Self { key: VerifierKey::new(name, scheme, public)?, pair })
    }

    /// The public side.
    #[must_use]
    pub fn verifier_key(&self) -> &VerifierKey {
        &self.key
    }

    /// The signature line for a note's text, which ends in a newline. `time_s`, seconds since 1970, goes into a
    /// cosignature and is not used otherwise.
    #[must_use]
    pub fn sign(&self, text: &str, time_s: u64) -> String {
        let mut bytes = self.key.id.to_vec();
        match self.key.scheme {
            Scheme::Ed25519 => bytes.extend_from_slice(self.pair.sign(text.as_bytes()).as_ref()),
            Scheme::Cosignature => {
                let time_s = time_s.min(TIME_S_MAX);
                bytes.extend_from_slice(&time_s.to_be_bytes());
                bytes.extend_from_slice(self.pair.sign(cosigned_message(text, time_s).as_bytes()).as_ref());
            }
        }
        format!("— {} {}\n", self.key.name, base64_text(&bytes))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("key", &self.key).finish_non_exhaustive()
    }
}

/// A signed note: the text, an empty line, signature lines as [`Signer::sign`] gives them.
#[must_use]
pub fn assemble(text: &str, signature_lines: &[String]) -> String {
    format!("{text}\n{}", signature_lines.concat())
}

/// A signature line that was read, not yet checked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Signature<'a> {
    name: &'a str,
    id: [u8; 4],
    bytes: Vec<u8>,
}

/// A well-formed note. Its text means nothing until [`Note::verify`] has found a trusted signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note<'a> {
    text: &'a str,
    signatures: Vec<Signature<'a>>,
}

/// A signature of a known key that verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed {
    /// For a cosignature its time, seconds since 1970.
    pub time_s: Option<u64>,
}

impl<'a> Note<'a> {
    /// Reads a note.
    ///
    /// # Errors
    /// When it is malformed, or beyond [`NOTE_BYTES_MAX`] or [`SIGNATURES_MAX`].
    pub fn parse(note: &'a str) -> Result<Self, NoteError> {
        if note.len() > NOTE_BYTES_MAX {
            return Err(NoteError::Note("it is larger than 512 KiB"));
        }
        if note.bytes().any(|b| b < 0x20 && b != b'\n') {
            return Err(NoteError::Note("it has a control character (a carriage return?)"));
        }
        let end = note.rfind("\n\n").ok_or(NoteError::Note("no empty line stands between text and signatures"))?;
        let (text, signatures) = (&note[..=end], &note[end + 2..]);
        let lines = signatures.strip_suffix('\n').ok_or(NoteError::Note("the last line does not end in a newline"))?;
        let signatures =
            lines.split('\n').take(SIGNATURES_MAX + 1).map(Signature::parse).collect::<Result<Vec<_>, _>>()?;
        if signatures.len() > SIGNATURES_MAX {
            return Err(NoteError::Note("it has more than 64 signatures"));
        }
        Ok(Self { text, signatures })
    }

    /// What was signed, with the newline at its end. Not to be trusted before [`Note::verify`].
    #[must_use]
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// Whether a line claims to be a signature under this name, of whichever key.
    pub(crate) fn is_signed_by_name(&self, name: &str) -> bool {
        self.signatures.iter().any(|s| s.name == name)
    }

    /// Checks every signature of `key`; `None` when there is none.
    ///
    /// # Errors
    /// When a signature under the key's name and id does not verify.
    pub fn verify(&self, key: &VerifierKey) -> Result<Option<Signed>, NoteError> {
        let mut signed = None;
        for signature in self.signatures.iter().filter(|s| key.is_of(s)) {
            let time_s = key.verify(self.text, &signature.bytes);
            let time_s = time_s.ok_or_else(|| NoteError::Signature(key.name.clone()))?;
            signed = Some(Signed { time_s: time_s.max(signed.and_then(|s: Signed| s.time_s)) });
        }
        Ok(signed)
    }
}

impl<'a> Signature<'a> {
    fn parse(line: &'a str) -> Result<Self, NoteError> {
        let parts = line.strip_prefix("— ").and_then(|rest| rest.split_once(' '));
        let (name, signature) = parts.ok_or(NoteError::Note("a signature line is not \"— NAME BASE64\""))?;
        if !is_name(name) {
            return Err(NoteError::Note("a signature line has no proper key name"));
        }
        let bytes = decode_base64(signature).ok_or(NoteError::Note("a signature is not canonical base64"))?;
        match bytes.split_first_chunk() {
            Some((id, bytes)) if !bytes.is_empty() => Ok(Self { name, id: *id, bytes: bytes.to_vec() }),
            _ => Err(NoteError::Note("a signature has less than 5 bytes")),
        }
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod found_good {
    use std::cell::RefCell;
    use std::collections::HashSet;

    /// So many are remembered at most.
    const KEPT_MAX: usize = 4096;

    thread_local! {
        static GOOD: RefCell<HashSet<Vec<u8>>> = RefCell::default();
    }

    /// Whether a signature holds, checked once for each that does.
    pub(super) fn remembered(signed: Vec<u8>, verify: impl FnOnce() -> bool) -> bool {
        GOOD.with_borrow_mut(|good| {
            if good.contains(&signed) {
                return true;
            }
            let holds = verify();
            if holds {
                if good.len() >= KEPT_MAX {
                    good.clear();
                }
                good.insert(signed);
            }
            holds
        })
    }
}
