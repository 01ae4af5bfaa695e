//! Proof files: receipts and latest-or-absent proofs, made, read and verified. Pure, and never panics on any bytes.
//!
//! Both are C2SP tlog-proofs. A **receipt** proves that an entry is in the log, and opens its commitments. A
//! **latest-or-absent proof** is one of the block entry that ends the checkpoint's tree; the state root in it proves what
//! the map holds under a key at that moment. What the format has no place for, the leaf itself, lies in the `extra` line
//! as canonical JSON (`docs/reference/formats.md`).

use std::fmt::Write;

use crate::canonical::{decode_base64, decode_hash, push_base64};
use crate::checkpoint::parse_decimal;
use crate::merkle::Hash;

mod extra;
mod follow;
mod map;
mod verify;

pub use extra::{Erasure, Opening, Source};
pub use follow::Followed;
pub use map::{MapLeaf, MapProof};
pub use verify::{Contents, Cosigned, Found, Latest, Receipt, Refused, Value, Verified, Verifier};

/// First line of a tlog-proof.
const MAGIC: &str = "c2sp.org/tlog-proof@v1";
/// Longest inclusion path: one hash per level of a tree of 2^63 leaves.
const PATH_MAX: usize = 63;
/// Largest proof file in bytes: 128 puts with the erase of each, whose lines may double in JSON, and base64 around.
pub const FILE_BYTES_MAX: usize = 32 << 20;

/// Where an entry lies, and the signed head that says so.
#[derive(Debug, Clone, Copy)]
pub struct Inclusion<'a> {
    /// Index of the entry.
    pub index: u64,
    /// Its inclusion proof in the checkpoint's tree.
    pub path: &'a [Hash],
    /// The checkpoint with its signatures, a signed note.
    pub checkpoint: &'a str,
}

/// The receipt of the entry `line`: `openings` has one item per put of the entry, in order.
#[must_use]
pub fn receipt(inclusion: &Inclusion<'_>, line: &str, openings: &[Opening]) -> String {
    write_file(inclusion, &extra::write_receipt(line, openings))
}

/// The latest-or-absent proof of `key` as of the block entry `block`, which must be the last one of the checkpoint's tree.
/// For a key with a value, `put` says which entry wrote it and `opening`, a salt and a value, opens its commitment.
#[must_use]
pub fn latest(
    inclusion: &Inclusion<'_>,
    block: &str,
    key: &str,
    map: &MapProof,
    put: Option<&Source>,
    opening: Option<(&[u8; 32], &[u8])>,
) -> String {
    write_file(inclusion, &extra::write_latest(block, key, map, put, opening))
}

fn write_file(inclusion: &Inclusion<'_>, extra: &[u8]) -> String {
    let base64 = |bytes: &[u8]| {
        let mut text = Vec::new();
        push_base64(&mut text, bytes);
        String::from_utf8(text).unwrap_or_default()
    };
    let mut file = format!("{MAGIC}\nextra {}\nindex {}\n", base64(extra), inclusion.index);
    for hash in inclusion.path {
        let _ = writeln!(file, "{}", base64(hash));
    }
    file.push('\n');
    file.push_str(inclusion.checkpoint);
    file
}

/// The parts of a tlog-proof.
struct ProofFile<'a> {
    extra: Vec<u8>,
    index: u64,
    path: Vec<Hash>,
    note: &'a str,
}

impl<'a> ProofFile<'a> {
    fn parse(file: &'a [u8]) -> Result<Self, &'static str> {
        if file.len() > FILE_BYTES_MAX {
            return Err("the file is larger than 32 MiB");
        }
        let file = std::str::from_utf8(file).map_err(|_| "the file is not UTF-8")?;
        let rest = file.strip_prefix(MAGIC).and_then(|rest| rest.strip_prefix('\n'));
        let rest = rest.ok_or("the first line is not c2sp.org/tlog-proof@v1")?;
        let (head, note) = rest.split_once("\n\n").ok_or("no empty line stands before the checkpoint")?;
        let mut lines = head.split('\n');
        let extra =
            lines.next().and_then(|line| line.strip_prefix("extra ")).ok_or("the second line is not \"extra …\"")?;
        let extra = decode_base64(extra).ok_or("the extra line is not canonical base64")?;
        let index = lines.next().and_then(|line| line.strip_prefix("index ")).and_then(parse_decimal);
        let index = index.ok_or("the third line is not \"index N\"")?;
        let path = lines.take(PATH_MAX + 1).map(decode_hash).collect::<Option<Vec<_>>>();
        let path = path.ok_or("a line of the path is not canonical base64 of 32 bytes")?;
        if path.len() > PATH_MAX {
            return Err("the path has more than 63 hashes");
        }
        Ok(Self { extra, index, path, note })
    }
}

#[cfg(test)]
mod tests;
