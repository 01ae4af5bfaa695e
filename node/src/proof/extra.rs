//! The `extra` line of proof files: canonical JSON, written and read in one order of fields.

use std::borrow::Cow;

use bytes::Bytes;

use super::PATH_MAX;
use super::map::{MapLeaf, MapProof, key_hash};
use crate::canonical::{Malformed, Reader, push_base64_string, push_number, push_number_or_null, push_string};
use crate::command::OPERATIONS_MAX;
use crate::entry::MapValue;
use crate::merkle::Hash;
use crate::state_root::proof::SIBLINGS_MAX;

/// What a receipt says of one put's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// The value, and the salt that opens its commitment.
    Value {
        /// 32 random bytes.
        salt: [u8; 32],
        /// The value.
        value: Bytes,
    },
    /// The value was destroyed.
    Erased(Erasure),
    /// The file does not carry the value, and claims nothing about it. So it is, too, where the erase lies beyond the
    /// checkpoint and cannot be proved yet.
    Withheld,
}

/// Proof that an entry erased a value: the entry lies in the tree of the same checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasure {
    /// Index of the entry.
    pub index: u64,
    /// The entry and its way.
    pub source: Source,
}

/// An entry and its inclusion proof in the checkpoint's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The line of the entry.
    pub line: String,
    /// Its inclusion proof.
    pub path: Vec<Hash>,
}

/// What the `extra` line of a proof file holds.
pub(super) enum Extra {
    Receipt { line: String, openings: Vec<Opening> },
    Latest { block: String, key: String, map: MapProof, put: Option<Source>, opening: Option<([u8; 32], Vec<u8>)> },
}

pub(super) fn write_receipt(line: &str, openings: &[Opening]) -> Vec<u8> {
    let mut out = br#"{"entry":"#.to_vec();
    push_string(&mut out, line);
    out.extend_from_slice(br#","openings":["#);
    for (n, opening) in openings.iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        write_opening(&mut out, opening);
    }
    out.extend_from_slice(b"]}");
    out
}

fn write_opening(out: &mut Vec<u8>, opening: &Opening) {
    match opening {
        Opening::Value { salt, value } => write_value(out, salt, value),
        Opening::Erased(erasure) => {
            out.extend_from_slice(br#"{"erased":"#);
            push_number(out, erasure.index);
            out.push(b',');
            write_source(out, &erasure.source);
        }
        Opening::Withheld => out.extend_from_slice(b"null"),
    }
}

fn write_value(out: &mut Vec<u8>, salt: &[u8; 32], value: &[u8]) {
    out.extend_from_slice(br#"{"salt":"#);
    push_base64_string(out, salt);
    out.extend_from_slice(br#","value":"#);
    push_base64_string(out, value);
    out.push(b'}');
}

/// Writes the fields of a source and the closing brace.
fn write_source(out: &mut Vec<u8>, source: &Source) {
    out.extend_from_slice(br#""entry":"#);
    push_string(out, &source.line);
    out.extend_from_slice(br#","path":"#);
    write_hashes(out, &source.path);
    out.push(b'}');
}

fn write_hashes(out: &mut Vec<u8>, hashes: &[Hash]) {
    out.push(b'[');
    for (n, hash) in hashes.iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        push_base64_string(out, hash);
    }
    out.push(b']');
}

pub(super) fn write_latest(
    block: &str,
    key: &str,
    map: &MapProof,
    put: Option<&Source>,
    opening: Option<(&[u8; 32], &[u8])>,
) -> Vec<u8> {
    let mut out = br#"{"block":"#.to_vec();
    push_string(&mut out, block);
    out.extend_from_slice(br#","key":"#);
    push_string(&mut out, key);
    out.extend_from_slice(br#","map":{"key":"#);
    push_base64_string(&mut out, &key_hash(key));
    out.extend_from_slice(br#","siblings":"#);
    write_hashes(&mut out, &map.siblings);
    out.extend_from_slice(br#","leaf":"#);
    write_leaf(&mut out, &map.leaf);
    out.extend_from_slice(br#"},"put":"#);
    match put {
        Some(source) => {
            out.push(b'{');
            write_source(&mut out, source);
        }
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(br#","opening":"#);
    match opening {
        Some((salt, value)) => write_value(&mut out, salt, value),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
    out
}

fn write_leaf(out: &mut Vec<u8>, leaf: &MapLeaf) {
    match leaf {
        MapLeaf::Empty => out.extend_from_slice(b"null"),
        MapLeaf::Neighbour { key_hash, value_hash } => {
            out.extend_from_slice(br#"{"key":"#);
            push_base64_string(out, key_hash);
            out.extend_from_slice(br#","value":"#);
            push_base64_string(out, value_hash);
            out.push(b'}');
        }
        MapLeaf::Own(value) => {
            out.extend_from_slice(br#"{"revision":"#);
            push_number(out, value.revision);
            out.extend_from_slice(br#","commitment":"#);
            push_base64_string(out, &value.commitment);
            out.extend_from_slice(br#","erased":"#);
            push_number_or_null(out, value.erased_by);
            out.push(b'}');
        }
    }
}

impl Extra {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes)?;
        let extra = if r.accept(r#"{"entry":"#) {
            let line = read_text(&mut r)?;
            r.expect(r#","openings":"#)?;
            Self::Receipt { line, openings: r.array(OPERATIONS_MAX, read_opening)? }
        } else {
            r.expect(r#"{"block":"#)
                .map_err(|e| Malformed::new(e.at, r#"{"entry":… of a receipt or {"block":… of a proof"#))?;
            read_latest(&mut r)?
        };
        r.expect("}")?;
        r.end()?;
        Ok(extra)
    }
}

fn read_text(r: &mut Reader<'_>) -> Result<String, Malformed> {
    r.string().map(Cow::into_owned)
}

fn read_latest(r: &mut Reader<'_>) -> Result<Extra, Malformed> {
    let block = read_text(r)?;
    r.expect(r#","key":"#)?;
    let key = read_text(r)?;
    r.expect(r#","map":{"key":"#)?;
    // Absence holds for many keys at once: without this a damaged name would pass as the absence of another key.
    let at = r.at();
    if r.hash()? != key_hash(&key) {
        return Err(Malformed::new(at, "the SHA-256 of the key"));
    }
    r.expect(r#","siblings":"#)?;
    let siblings = r.array(SIBLINGS_MAX, Reader::hash)?;
    r.expect(r#","leaf":"#)?;
    let leaf = read_leaf(r)?;
    r.expect(r#"},"put":"#)?;
    let put = match r.accept("null") {
        true => None,
        false => {
            r.expect("{")?;
            Some(read_source(r)?)
        }
    };
    r.expect(r#","opening":"#)?;
    let opening = if r.accept("null") { None } else { Some(read_value(r)?) };
    Ok(Extra::Latest { block, key, map: MapProof { siblings, leaf }, put, opening })
}

fn read_leaf(r: &mut Reader<'_>) -> Result<MapLeaf, Malformed> {
    if r.accept("null") {
        return Ok(MapLeaf::Empty);
    }
    if r.accept(r#"{"key":"#) {
        let key_hash = r.hash()?;
        r.expect(r#","value":"#)?;
        let value_hash = r.hash()?;
        r.expect("}")?;
        return Ok(MapLeaf::Neighbour { key_hash, value_hash });
    }
    r.expect(r#"{"revision":"#)?;
    let revision = r.number()?;
    r.expect(r#","commitment":"#)?;
    let commitment = r.hash()?;
    r.expect(r#","erased":"#)?;
    let erased_by = r.number_or_null()?;
    r.expect("}")?;
    Ok(MapLeaf::Own(MapValue { revision, commitment, erased_by }))
}

fn read_opening(r: &mut Reader<'_>) -> Result<Opening, Malformed> {
    if r.accept("null") {
        return Ok(Opening::Withheld);
    }
    if !r.accept(r#"{"erased":"#) {
        let (salt, value) = read_value(r)?;
        return Ok(Opening::Value { salt, value: value.into() });
    }
    let index = r.number()?;
    r.expect(",")?;
    Ok(Opening::Erased(Erasure { index, source: read_source(r)? }))
}

fn read_value(r: &mut Reader<'_>) -> Result<([u8; 32], Vec<u8>), Malformed> {
    r.expect(r#"{"salt":"#)?;
    let salt = r.hash()?;
    r.expect(r#","value":"#)?;
    let value = r.bytes()?;
    r.expect("}")?;
    Ok((salt, value))
}

fn read_source(r: &mut Reader<'_>) -> Result<Source, Malformed> {
    r.expect(r#""entry":"#)?;
    let line = read_text(r)?;
    r.expect(r#","path":"#)?;
    let path = r.array(PATH_MAX, Reader::hash)?;
    r.expect("}")?;
    Ok(Source { line, path })
}
