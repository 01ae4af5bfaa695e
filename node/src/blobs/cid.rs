//! Content identifiers of blobs: CIDv1, multicodec `raw`, multihash `sha2-256`, in multibase `b` (base32 of RFC 4648, lower
//! case, without padding). Formats: github.com/multiformats/cid, …/multicodec, …/multihash, …/multibase.

use std::fmt;
use std::str::FromStr;

/// CID version 1, codec raw (0x55), hash sha2-256 (0x12) of 32 bytes (0x20).
const PREFIX: [u8; 4] = [0x01, 0x55, 0x12, 0x20];
const HASH_BYTES: usize = 32;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Characters of the text: `b`, and 36 bytes five bits at a time.
pub const CID_CHARS: usize = 1 + ((PREFIX.len() + HASH_BYTES) * 8).div_ceil(5);

/// Name of a blob: the SHA-256 of its bytes. As text, `bafkrei…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cid([u8; HASH_BYTES]);

impl Cid {
    /// The CID of bytes with this SHA-256.
    #[must_use]
    pub fn of_hash(hash: [u8; HASH_BYTES]) -> Self {
        Self(hash)
    }

    /// SHA-256 of the bytes.
    #[must_use]
    pub fn hash(&self) -> [u8; HASH_BYTES] {
        self.0
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(CID_CHARS);
        text.push('b');
        let (mut bits, mut held) = (0u32, 0);
        for byte in PREFIX.iter().chain(&self.0) {
            bits = bits << 8 | u32::from(*byte);
            held += 8;
            while held >= 5 {
                held -= 5;
                text.push(char::from(ALPHABET[(bits >> held & 31) as usize]));
            }
        }
        if held > 0 {
            text.push(char::from(ALPHABET[(bits << (5 - held) & 31) as usize]));
        }
        f.write_str(&text)
    }
}

impl FromStr for Cid {
    type Err = String;

    /// Strict: one text for one CID.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is not the CID of a blob: one begins with bafkrei and has {CID_CHARS} characters (version 1, raw, \
                 sha2-256, in lower-case base32)"
            )
        };
        let digits = text.strip_prefix('b').filter(|_| text.len() == CID_CHARS).ok_or_else(wrong)?;
        let mut bytes = Vec::with_capacity(PREFIX.len() + HASH_BYTES);
        let (mut bits, mut held) = (0u32, 0);
        for digit in digits.bytes() {
            let value = ALPHABET.iter().position(|c| *c == digit).and_then(|v| u32::try_from(v).ok());
            bits = (bits << 5 | value.ok_or_else(wrong)?) & 0xffff;
            held += 5;
            if held >= 8 {
                held -= 8;
                bytes.push((bits >> held & 0xff) as u8);
            }
        }
        let hash = bytes.strip_prefix(&PREFIX).and_then(|hash| hash.try_into().ok()).ok_or_else(wrong)?;
        let cid = Self(hash);
        // The last character has bits to spare, which must be zero.
        if cid.to_string() == text { Ok(cid) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use ring::digest::{SHA256, digest};

    use super::*;

    fn of(bytes: &[u8]) -> Cid {
        Cid::of_hash(digest(&SHA256, bytes).as_ref().try_into().unwrap())
    }

    #[test]
    fn cids_are_those_that_others_compute() {
        // By the Python package multiformats 0.3.1; `tests/foreign` compares more.
        assert_eq!(of(b"").to_string(), "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku");
        assert_eq!(of(b"hello world").to_string(), "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e");
    }

    #[test]
    fn texts_read_back_and_no_other_text_does() {
        for n in 0..200u32 {
            let cid = of(&n.to_le_bytes());
            let text = cid.to_string();
            assert_eq!(text.parse::<Cid>(), Ok(cid));
            assert_eq!(text.len(), CID_CHARS);
            for bad in [text.to_uppercase(), format!("{text}a"), text[1..].to_owned(), format!("z{}", &text[1..])] {
                assert!(bad.parse::<Cid>().is_err(), "{bad} was taken");
            }
            let last = if text.ends_with('b') { "c" } else { "b" };
            let spare = format!("{}{last}", &text[..CID_CHARS - 1]);
            assert!(spare.parse::<Cid>().is_err(), "{spare} has spare bits that are not zero");
        }
    }
}
