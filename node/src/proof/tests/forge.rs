//! Edits of proof files that leave the rest of the file as it was.

use crate::canonical::{decode_base64, push_base64};
use crate::note::{Note, assemble};
use crate::proof::map::key_hash;

pub(super) fn base64(bytes: &[u8]) -> String {
    let mut out = Vec::new();
    push_base64(&mut out, bytes);
    String::from_utf8(out).unwrap()
}

/// The JSON of the extra line.
pub(super) fn extra(file: &str) -> String {
    let line = file.lines().nth(1).unwrap().strip_prefix("extra ").unwrap();
    String::from_utf8(decode_base64(line).unwrap()).unwrap()
}

pub(super) fn edit_extra(file: &str, edit: impl FnOnce(&str) -> String) -> String {
    let before = extra(file);
    let after = edit(&before);
    assert_ne!(before, after, "the edit changes nothing");
    file.replace(&base64(before.as_bytes()), &base64(after.as_bytes()))
}

/// Renames the key that a map proof is about.
pub(super) fn with_key(extra: &str, from: &str, to: &str) -> String {
    let named = extra.replacen(&format!("\"key\":\"{from}\""), &format!("\"key\":\"{to}\""), 1);
    named.replacen(&base64(&key_hash(from)), &base64(&key_hash(to)), 1)
}

/// Replaces the leaf of the map proof; `alone`: without put and opening.
pub(super) fn with_leaf(extra: &str, leaf: &str, alone: bool) -> String {
    let (from, to) = (extra.find("\"leaf\":").unwrap(), extra.find("},\"put\":").unwrap());
    let rest = if alone { "},\"put\":null,\"opening\":null}" } else { &extra[to..] };
    format!("{}\"leaf\":{leaf}{rest}", &extra[..from])
}

/// Edits the bytes, key id included, of a signature line of the checkpoint.
pub(super) fn edit_signature(file: &str, line: usize, edit: impl FnOnce(&mut Vec<u8>)) -> String {
    let (head, note) = file.split_once("\n\n").unwrap();
    let text = Note::parse(note).unwrap().text();
    let mut lines: Vec<String> = note[text.len() + 1..].lines().map(|l| format!("{l}\n")).collect();
    let (start, signature) = lines[line].trim_end().rsplit_once(' ').unwrap();
    let mut bytes = decode_base64(signature).unwrap();
    edit(&mut bytes);
    lines[line] = format!("{start} {}\n", base64(&bytes));
    format!("{head}\n\n{}", assemble(text, &lines))
}

pub(super) fn crlf_note(file: &str) -> String {
    let (head, note) = file.split_once("\n\n").unwrap();
    format!("{head}\n\n{}", note.replacen('\n', "\r\n", 1))
}

/// Sets a bit of the extra line's base64 that carries nothing; the JSON gets the length that has such bits.
pub(super) fn with_spare_bits(file: &str) -> String {
    let line = file.lines().nth(1).unwrap();
    let body = line.trim_end_matches('=');
    assert_ne!(body, line, "the vector needs an extra line with padding");
    let last = body.chars().last().unwrap();
    let next = char::from(u8::try_from(u32::from(last)).unwrap() + 1);
    let changed = format!("{}{next}{}", &body[..body.len() - 1], &line[body.len()..]);
    file.replace(line, &changed)
}

pub(super) fn swap_fields(file: &str) -> String {
    edit_extra(file, |e| {
        let at = e.find(",\"openings\":").unwrap();
        format!("{{{},{}}}", &e[at + 1..e.len() - 1], &e[1..at])
    })
}
