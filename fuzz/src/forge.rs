//! Proof files as somebody would forge them who has honest ones and no key: one table, for the test vectors and for the
//! files of a running daemon.
//!
//! It edits text and knows nothing of the code that verifies.

#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "an honest file that cannot be edited ends the test"
)]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};

/// A forged file.
#[derive(Debug, Clone)]
pub struct Forgery {
    /// Name of the row.
    pub name: &'static str,
    /// The file.
    pub file: String,
    /// A part of the reason for which it must be refused.
    pub reason: &'static str,
    /// What is false in it.
    pub why: &'static str,
}

/// Honest files of one log, in which every forgery begins. All but `older_checkpoint` and `older_absent` stand under the
/// same checkpoint.
#[derive(Debug, Clone)]
pub struct Honest {
    /// Receipt of an entry that puts two keys.
    pub receipt: String,
    /// Receipt of the entry after that one.
    pub neighbour: String,
    /// An earlier checkpoint that covers the entry of `receipt`.
    pub older_checkpoint: String,
    /// Proof of the key `present`, which has a value that `receipt` did not put.
    pub proof: String,
    /// Its key.
    pub present: String,
    /// Another key that has a value.
    pub other: String,
    /// Proof that the key `absent` does not exist, whose way ends in another key's leaf.
    pub absent_proof: String,
    /// Its key.
    pub absent: String,
    /// A key that does not exist and whose way ends at nothing.
    pub empty: String,
    /// Proof of a key whose value was erased.
    pub erased: String,
    /// Proof of an earlier checkpoint that some key, since put, does not exist.
    pub older_absent: String,
    /// Receipt of the block entry that `older_absent` is about.
    pub older_block: String,
}

/// Every forgery.
#[must_use]
pub fn table(honest: &Honest) -> Vec<Forgery> {
    [signatures(honest), paths(honest), receipts(honest), proofs(honest), older(honest), malformed(honest)].concat()
}

fn row(name: &'static str, file: String, reason: &'static str, why: &'static str) -> Forgery {
    Forgery { name, file, reason, why }
}

/// What keys would have to sign.
fn signatures(honest: &Honest) -> Vec<Forgery> {
    let file = &honest.receipt;
    let large_s = |line| {
        edit_signature(file, line, |bytes| {
            let at = bytes.len() - 64;
            with_large_s(&mut bytes[at..]);
        })
    };
    let size = size(file);
    let grown = file.replace(&format!("\n{size}\n"), &format!("\n{}\n", size + 1));
    let later = edit_signature(file, 1, |bytes| bytes[11] ^= 1);
    let (wrong, order) = ("does not verify", "S is not below the order of the group");
    vec![
        row("bad-large-s", large_s(0), wrong, order),
        row("bad-cosignature-large-s", large_s(1), wrong, order),
        row("bad-cosignature-time", later, wrong, "the time of a cosignature was changed"),
        row("bad-size", grown, wrong, "the size in the checkpoint was changed"),
    ]
}

/// Ways through the tree that lead elsewhere.
fn paths(honest: &Honest) -> Vec<Forgery> {
    let file = &honest.receipt;
    let (path, neighbour) = (path(file), path(&honest.neighbour));
    let with_path = |lines: &[&str]| file.replace(&path.join("\n"), &lines.join("\n"));
    let swapped: Vec<&str> = [path[1], path[0]].iter().chain(&path[2..]).copied().collect();
    let padded: Vec<&str> = path.iter().chain(&path[..1]).copied().collect();
    let index = index(file);
    let moved = file.replace(&format!("index {index}\n"), &format!("index {}\n", index + 1));
    let older = format!("{}\n\n{}", head(file), honest.older_checkpoint);
    let elsewhere = "does not lead to the root";
    vec![
        row(
            "bad-path-truncated",
            with_path(&path[..path.len() - 1]),
            elsewhere,
            "the last hash of the path is missing",
        ),
        row("bad-path-head-missing", with_path(&path[1..]), elsewhere, "the first hash of the path is missing"),
        row("bad-path-padded", with_path(&padded), elsewhere, "a hash too many"),
        row("bad-path-swapped", with_path(&swapped), elsewhere, "two hashes are exchanged"),
        row("bad-path-neighbour", with_path(&neighbour), elsewhere, "the path of the neighbour"),
        row("bad-index", moved, elsewhere, "the index of the neighbour"),
        row("bad-older-checkpoint", older, elsewhere, "a path to one head, another head"),
    ]
}

/// Entries and openings that are not those of the log.
fn receipts(honest: &Honest) -> Vec<Forgery> {
    let file = &honest.receipt;
    let leaf = edit_extra(file, |e| {
        let (from, to) = author(e);
        format!("{}imposter{}", &e[..from], &e[to..])
    });
    let json = extra(file);
    let list = between(&json, ",\"openings\":[", "]}");
    let (first, second) = list.split_once("},{").map(|(a, b)| (format!("{a}}}"), format!("{{{b}"))).expect("two puts");
    let with = |openings: String| edit_extra(file, |e| e.replace(list, &openings));
    let value = edit_extra(file, |e| e.replacen(between(list, "\"value\":\"", "\""), "Rmlyc3Q=", 1));
    vec![
        row("bad-leaf", leaf, "does not lead to the root", "the entry names another author"),
        row(
            "bad-openings-swapped",
            with(format!("{second},{first}")),
            "committed to",
            "the openings of two puts are exchanged",
        ),
        row("bad-openings-missing", with(second.clone()), "2 puts", "an opening too few"),
        row("bad-openings-more", with(format!("{second},{first},null")), "2 puts", "an opening too many"),
        row("bad-value", value, "committed to", "another value"),
    ]
}

/// What the state map does not say.
fn proofs(honest: &Honest) -> Vec<Forgery> {
    let Honest { proof, present, absent_proof, absent, empty, .. } = honest;
    let wrong = "does not lead to the state root";
    let own_leaf = edit_extra(proof, |e| {
        let (key, value) = (base64(&sha256(present.as_bytes())), base64(&value_hash(e)));
        with_leaf(e, &format!("{{\"key\":\"{key}\",\"value\":\"{value}\"}}"), true)
    });
    let claimed = edit_extra(absent_proof, |e| {
        let commitment = base64(&[0; 32]);
        with_leaf(e, &format!("{{\"revision\":2,\"commitment\":\"{commitment}\",\"erased\":null}}"), false)
    });
    let shown = edit_extra(absent_proof, |e| {
        let from = extra(proof);
        format!("{}{}", &e[..at(e, ",\"put\":")], &from[at(&from, ",\"put\":")..])
    });
    let held = edit_extra(&honest.erased, |e| {
        let by = between(e, "\"erased\":", "}");
        e.replacen(&format!("\"erased\":{by}"), "\"erased\":null", 1)
    });
    let put = edit_extra(proof, |e| {
        let (from, to) = (at(e, ",\"put\":{"), at(e, "},\"opening\":"));
        let line = extra(&honest.receipt);
        let line = between(&line, "{\"entry\":", ",\"openings\":").to_owned();
        let path = path(&honest.receipt).join("\",\"");
        format!("{},\"put\":{{\"entry\":{line},\"path\":[\"{path}\"]{}", &e[..from], &e[to..])
    });
    let value = edit_extra(proof, |e| {
        let opening = &e[at(e, ",\"opening\":")..];
        e.replacen(between(opening, "\"value\":\"", "\""), "dGhpcmQh", 1)
    });
    let renamed = edit_extra(proof, |e| with_key(e, present, &honest.other));
    let misnamed = edit_extra(absent_proof, |e| e.replacen(absent.as_str(), empty, 1));
    let elsewhere = edit_extra(absent_proof, |e| with_key(e, absent, empty));
    let hidden = edit_extra(proof, |e| with_leaf(e, "null", true));
    vec![
        row("bad-proof-other-key", renamed, wrong, "one key's proof under another's name"),
        row("bad-absent-for-present", hidden, wrong, "a key that has a value, called absent"),
        row("bad-absent-own-leaf", own_leaf, "the key's own", "its own leaf as that of a neighbour"),
        row("bad-absent-misnamed", misnamed, "SHA-256 of the key", "a key's name that is not that of its way"),
        row("bad-neighbour-elsewhere", elsewhere, "on the way", "the neighbour of another key"),
        row("bad-present-for-absent", claimed, wrong, "an absent key, said to have a value"),
        row("bad-absent-with-value", shown, "absent", "an absent key, with another key's value beside"),
        row("bad-erased-as-held", held, wrong, "an erased value, said to be held"),
        row("bad-put", put, "does not lead to the root", "the entry of an older value as that of the newest"),
        row("bad-proof-value", value, "committed to", "another value"),
    ]
}

/// The past as the present.
fn older(honest: &Honest) -> Vec<Forgery> {
    let checkpoint = note(&honest.older_block);
    let mixed = format!("{}\n\n{checkpoint}", head(&honest.older_absent));
    let kept: String = honest.older_absent.lines().take(3).map(|line| format!("{line}\n")).collect();
    // All but its place at the end of the tree is right.
    let stale = format!("{kept}{}\n\n{checkpoint}", path(&honest.older_block).join("\n"));
    vec![
        row("bad-older-block", mixed, "does not lead to the root", "an older proof under the newest checkpoint"),
        row("bad-older-root", stale, "not the last", "an older block, truly in the log, as the newest"),
    ]
}

/// Second spellings, and what is no proof file at all.
fn malformed(honest: &Honest) -> Vec<Forgery> {
    let receipt = &honest.receipt;
    let (spelling, no_note) = ("not a proof file", "not a signed note");
    let extra_line = receipt.lines().nth(1).expect("a proof file has an extra line");
    let index = index(receipt);
    let zero = receipt.replace(&format!("index {index}\n"), &format!("index 0{index}\n"));
    let begin = |text: &str| edit_extra(receipt, |e| e.replacen("{\"entry\"", text, 1));
    let escaped = edit_extra(receipt, |e| {
        let (from, _) = author(e);
        format!("{}\\u{:04x}{}", &e[..from], e.as_bytes()[from], &e[from + 1..])
    });
    let salt = edit_extra(receipt, |e| e.replacen("\"salt\":\"", "\"salt\":\"A", 1));
    let entry_twice = edit_extra(receipt, |e| e.replacen("\\\"author\\\"", "\\\"time\\\":0,\\\"author\\\"", 1));
    let proof_twice = edit_extra(&honest.proof, |e| e.replacen("\"put\":", "\"put\":null,\"put\":", 1));
    vec![
        row("bad-trailing-bytes", format!("{receipt}more\n"), no_note, "text behind the last line"),
        row("bad-truncated", receipt[..receipt.len() - 1].into(), no_note, "the last newline is missing"),
        row("bad-crlf", receipt.replace('\n', "\r\n"), spelling, "lines end in CRLF"),
        row("bad-crlf-note", crlf_note(receipt), no_note, "lines of the checkpoint end in CRLF"),
        row("bad-magic", receipt.replacen("@v1", "@v2", 1), spelling, "another version"),
        row("bad-no-extra", receipt.replace(&format!("{extra_line}\n"), ""), spelling, "no extra line"),
        row("bad-index-zero", zero, spelling, "a leading zero"),
        row("bad-json-duplicate", begin("{\"entry\":\"\",\"entry\""), spelling, "a field twice"),
        row("bad-json-unknown", begin("{\"more\":1,\"entry\""), spelling, "an unknown field"),
        row("bad-json-space", begin("{ \"entry\""), spelling, "white space"),
        row("bad-json-escape", escaped, spelling, "an escape that is not needed"),
        row("bad-json-order", swap_fields(receipt), spelling, "fields in another order"),
        row("bad-json-salt", salt, spelling, "a salt of 33 bytes"),
        row("bad-entry-duplicate", entry_twice, "does not lead", "an entry with a field twice"),
        row("bad-proof-json-duplicate", proof_twice, spelling, "a field twice"),
        row("bad-nothing", String::new(), spelling, "an empty file"),
    ]
}

/// A signature line that no verifier knows, as the format allows beside those it knows.
pub const UNKNOWN_SIGNATURE: &str = "— ml-dsa.example/w2 AAAABgABAgMEBQYHCAkKCwwNDg8=\n";

/// Bytes as base64 of the standard alphabet, padded.
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest(&SHA256, bytes).as_ref().to_vec()
}

/// What stands before the checkpoint, without the empty line between.
fn head(file: &str) -> &str {
    file.split_once("\n\n").expect("a proof file has an empty line before its checkpoint").0
}

/// The checkpoint of a proof file with its signatures.
#[must_use]
pub fn note(file: &str) -> &str {
    file.split_once("\n\n").expect("a proof file has an empty line before its checkpoint").1
}

/// The lines of the inclusion path.
fn path(file: &str) -> Vec<&str> {
    head(file).lines().skip(3).collect()
}

/// Index of the entry.
#[must_use]
pub fn index(file: &str) -> u64 {
    let line = file.lines().nth(2).and_then(|line| line.strip_prefix("index "));
    line.and_then(|index| index.parse().ok()).expect("the third line of a proof file is its index")
}

/// Entries that the checkpoint covers.
#[must_use]
pub fn size(file: &str) -> u64 {
    note(file).lines().nth(1).and_then(|size| size.parse().ok()).expect("the second line of a checkpoint is its size")
}

/// The JSON of the extra line.
#[must_use]
pub fn extra(file: &str) -> String {
    let line = file.lines().nth(1).and_then(|line| line.strip_prefix("extra ")).expect("a line with extra");
    String::from_utf8(STANDARD.decode(line).expect("base64")).expect("JSON")
}

/// The file with another JSON in the extra line.
#[must_use]
pub fn edit_extra(file: &str, edit: impl FnOnce(&str) -> String) -> String {
    let before = extra(file);
    let after = edit(&before);
    assert_ne!(before, after, "the edit changes nothing");
    file.replace(&base64(before.as_bytes()), &base64(after.as_bytes()))
}

fn at(text: &str, what: &str) -> usize {
    text.find(what).unwrap_or_else(|| panic!("no {what} in {text}"))
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let rest = &text[at(text, from) + from.len()..];
    &rest[..at(rest, to)]
}

/// Where the author of the entry stands in the JSON of a receipt.
fn author(extra: &str) -> (usize, usize) {
    let field = "\\\"author\\\":\\\"";
    let from = at(extra, field) + field.len();
    (from, from + at(&extra[from..], "\\\""))
}

/// Renames the key that a map proof is about.
fn with_key(extra: &str, from: &str, to: &str) -> String {
    let named = extra.replacen(&format!("\"key\":\"{from}\""), &format!("\"key\":\"{to}\""), 1);
    named.replacen(&base64(&sha256(from.as_bytes())), &base64(&sha256(to.as_bytes())), 1)
}

/// Replaces the leaf of the map proof; `alone`: without put and opening.
fn with_leaf(extra: &str, leaf: &str, alone: bool) -> String {
    let (from, to) = (at(extra, "\"leaf\":"), at(extra, "},\"put\":"));
    let rest = if alone { "},\"put\":null,\"opening\":null}" } else { &extra[to..] };
    format!("{}\"leaf\":{leaf}{rest}", &extra[..from])
}

/// Hash of the map value that a map proof shows: 0x01 ‖ revision ‖ commitment.
fn value_hash(extra: &str) -> Vec<u8> {
    let revision: u64 = between(extra, "\"leaf\":{\"revision\":", ",").parse().expect("a revision");
    let commitment = STANDARD.decode(between(extra, ",\"commitment\":\"", "\"")).expect("a commitment");
    sha256(&[&[1], revision.to_be_bytes().as_slice(), &commitment].concat())
}

/// Edits the bytes, key id included, of a signature line of the checkpoint.
fn edit_signature(file: &str, line: usize, edit: impl FnOnce(&mut Vec<u8>)) -> String {
    let (text, signatures) = file.rsplit_once("\n\n").expect("signatures stand behind an empty line");
    let signed = signatures.lines().nth(line).expect("so many signatures");
    let (name, signature) = signed.rsplit_once(' ').expect("a signature has a name before it");
    let mut bytes = STANDARD.decode(signature).expect("base64");
    edit(&mut bytes);
    format!("{text}\n\n{}", signatures.replacen(signed, &format!("{name} {}", base64(&bytes)), 1))
}

/// Adds the order of the group to S, which gives a second signature to verifiers that do not look at S < L (RFC 8032, 5.1.7).
pub fn with_large_s(signature: &mut [u8]) {
    let order: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut carry = 0;
    for (byte, more) in signature[32..].iter_mut().zip(order) {
        let sum = u16::from(*byte) + u16::from(more) + carry;
        (*byte, carry) = (sum.to_le_bytes()[0], sum >> 8);
    }
    assert_eq!(carry, 0, "S and the order fit into 32 bytes");
}

fn crlf_note(file: &str) -> String {
    format!("{}\n\n{}", head(file), note(file).replacen('\n', "\r\n", 1))
}

fn swap_fields(file: &str) -> String {
    edit_extra(file, |e| {
        let at = at(e, ",\"openings\":");
        format!("{{{},{}}}", &e[at + 1..e.len() - 1], &e[1..at])
    })
}
