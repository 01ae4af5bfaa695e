//! Canonical JSON: of all texts that mean the same, the one that this project writes and reads.
//!
//! Fields stand in the order of the format, without white space; numbers are decimal integers up to [`NUMBER_MAX`];
//! strings escape `"`, `\` and the characters below U+0020, and nothing else, in the shortest form JSON has. The reader
//! asks for the bytes that the writer would write, so unknown, missing, repeated or reordered fields and every second
//! spelling are refused where they stand, and reading then writing gives the same bytes.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Largest number: what every JSON reader holds exactly (RFC 7493, I-JSON).
pub(crate) const NUMBER_MAX: u64 = (1 << 53) - 1;
/// Digits of [`NUMBER_MAX`].
pub(crate) const NUMBER_DIGITS_MAX: usize = 16;
/// Characters of the base64 of 32 bytes.
pub(crate) const HASH_CHARS: usize = 44;

/// Where a text leaves the format, and what should stand there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: expected {wanted}")]
pub struct Malformed {
    /// Offset in bytes.
    pub at: usize,
    /// What the format asks for at that place.
    pub wanted: Cow<'static, str>,
}

impl Malformed {
    pub(crate) fn new(at: usize, wanted: impl Into<Cow<'static, str>>) -> Self {
        Self { at, wanted: wanted.into() }
    }
}

/// Decodes base64 as RFC 4648, section 4, has it: padded, and with no bits set that are not used.
pub(crate) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// Decodes the base64 of exactly 32 bytes.
pub(crate) fn decode_hash(text: &str) -> Option<[u8; 32]> {
    if text.len() != HASH_CHARS {
        return None;
    }
    let mut bytes = [0; 33];
    (STANDARD.decode_slice(text, &mut bytes).ok()? == 32).then_some(())?;
    bytes.first_chunk().copied()
}

pub(crate) fn push_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, b'=');
    let written = STANDARD.encode_slice(bytes, &mut out[start..]);
    debug_assert_eq!(written.ok(), Some(out.len() - start), "room for the padded form was made");
}

pub(crate) fn push_base64_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    push_base64(out, bytes);
    out.push(b'"');
}

pub(crate) fn push_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

pub(crate) fn push_number_or_null(out: &mut Vec<u8>, number: Option<u64>) {
    match number {
        Some(n) => push_number(out, n),
        None => out.extend_from_slice(b"null"),
    }
}

/// The character that stands after the backslash, for bytes that have a short escape.
fn short_escape(byte: u8) -> Option<u8> {
    Some(match byte {
        b'"' | b'\\' => byte,
        0x08 => b'b',
        b'\t' => b't',
        b'\n' => b'n',
        0x0c => b'f',
        b'\r' => b'r',
        _ => return None,
    })
}

fn is_plain(byte: u8) -> bool {
    byte >= 0x20 && byte != b'"' && byte != b'\\'
}

pub(crate) fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(special) = rest.iter().position(|&b| !is_plain(b)) {
        out.extend_from_slice(&rest[..special]);
        let byte = rest[special];
        match short_escape(byte) {
            Some(c) => out.extend_from_slice(&[b'\\', c]),
            None => {
                out.extend_from_slice(b"\\u00");
                out.extend([byte >> 4, byte & 15].map(|n| if n < 10 { b'0' + n } else { b'a' + n - 10 }));
            }
        }
        rest = &rest[special + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// Bytes that [`push_string`] writes for a text.
pub(crate) fn string_bytes(text: &str) -> usize {
    let more = |b: u8| if is_plain(b) { 0 } else { 1 + 4 * usize::from(short_escape(b).is_none()) };
    2 + text.len() + text.bytes().map(more).sum::<usize>()
}

/// Reads a canonical text from front to back.
pub(crate) struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the start of a text that must be UTF-8.
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(bytes).map_err(|e| Malformed::new(e.valid_up_to(), "UTF-8"))?;
        Ok(Self { text, at: 0 })
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    fn rest(&self) -> &'a [u8] {
        &self.text.as_bytes()[self.at..]
    }

    pub(crate) fn accept(&mut self, literal: &str) -> bool {
        let found = self.rest().starts_with(literal.as_bytes());
        if found {
            self.at += literal.len();
        }
        found
    }

    pub(crate) fn expect(&mut self, literal: &'static str) -> Result<(), Malformed> {
        if self.accept(literal) { Ok(()) } else { Err(Malformed::new(self.at, literal)) }
    }

    pub(crate) fn number(&mut self) -> Result<u64, Malformed> {
        let digits = self.rest().iter().take(NUMBER_DIGITS_MAX + 1).take_while(|b| b.is_ascii_digit()).count();
        let read = self.rest()[..digits].iter().fold(0_u64, |n, d| n * 10 + u64::from(d - b'0'));
        let canonical = digits == 1 || (digits > 1 && self.rest()[0] != b'0');
        if !canonical || digits > NUMBER_DIGITS_MAX || read > NUMBER_MAX {
            return Err(Malformed::new(self.at, "an integer from 0 to 2^53 - 1 without leading zeros"));
        }
        self.at += digits;
        Ok(read)
    }

    pub(crate) fn number_or_null(&mut self) -> Result<Option<u64>, Malformed> {
        if self.accept("null") { Ok(None) } else { self.number().map(Some) }
    }

    /// A string; borrowed unless it has escapes.
    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>, Malformed> {
        self.expect("\"")?;
        let mut owned = String::new();
        loop {
            let start = self.at;
            let plain = self.rest().iter().position(|&b| !is_plain(b));
            let Some(plain) = plain else { return Err(Malformed::new(self.text.len(), "the end of a string")) };
            self.at += plain;
            let piece = &self.text[start..self.at];
            match self.rest()[0] {
                b'"' => {
                    self.at += 1;
                    if owned.is_empty() {
                        return Ok(Cow::Borrowed(piece));
                    }
                    owned.push_str(piece);
                    return Ok(Cow::Owned(owned));
                }
                b'\\' => {
                    owned.push_str(piece);
                    owned.push(self.escape()?);
                }
                _ => return Err(Malformed::new(self.at, "no bare control character in a string")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Malformed> {
        let fault = Malformed::new(self.at, "an escape in its shortest form, and only where one is needed");
        let rest = self.rest();
        let (byte, length) = match rest.get(1) {
            Some(b'u') => {
                let digits = rest.get(2..6).and_then(|d| std::str::from_utf8(d).ok()).ok_or_else(|| fault.clone())?;
                let byte = u8::from_str_radix(digits, 16).map_err(|_| fault.clone())?;
                (byte, 6)
            }
            Some(&c) => {
                let byte = (0..=b'\\').find(|&b| short_escape(b) == Some(c)).ok_or_else(|| fault.clone())?;
                (byte, 2)
            }
            None => return Err(fault),
        };
        let mut rewritten = Vec::with_capacity(8);
        push_string(&mut rewritten, char::from(byte).encode_utf8(&mut [0; 4]));
        if rewritten.get(1..rewritten.len() - 1) != rest.get(..length) {
            return Err(fault);
        }
        self.at += length;
        Ok(char::from(byte))
    }

    /// A string without control characters of `1..=bytes_max` bytes; `what` names it in the refusal.
    pub(crate) fn name(&mut self, what: &'static str, bytes_max: usize) -> Result<Cow<'a, str>, Malformed> {
        let at = self.at;
        let text = self.string()?;
        if text.is_empty() || text.len() > bytes_max || text.chars().any(char::is_control) {
            let wanted = format!("{what} of 1 to {bytes_max} bytes without control characters");
            return Err(Malformed::new(at, wanted));
        }
        Ok(text)
    }

    /// The base64 of 32 bytes, in quotes.
    pub(crate) fn hash(&mut self) -> Result<[u8; 32], Malformed> {
        let fault = Malformed::new(self.at, "canonical base64 of 32 bytes in quotes");
        let quoted = self.text.get(self.at..self.at + HASH_CHARS + 2);
        let inner = quoted.and_then(|q| q.strip_prefix('"')?.strip_suffix('"'));
        let hash = inner.and_then(decode_hash).ok_or(fault)?;
        self.at += HASH_CHARS + 2;
        Ok(hash)
    }

    /// The base64 of any number of bytes, in quotes.
    pub(crate) fn bytes(&mut self) -> Result<Vec<u8>, Malformed> {
        let at = self.at;
        let text = self.string()?;
        let fault = || Malformed::new(at, "canonical base64 in quotes");
        if let Cow::Owned(_) = text {
            return Err(fault());
        }
        decode_base64(&text).ok_or_else(fault)
    }

    /// The items of an array with at most `count_max` of them.
    pub(crate) fn array<T>(
        &mut self,
        count_max: usize,
        mut item: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        self.expect("[")?;
        let mut items = Vec::new();
        if self.accept("]") {
            return Ok(items);
        }
        loop {
            if items.len() == count_max {
                return Err(Malformed::new(self.at, format!("at most {count_max} items")));
            }
            items.push(item(self)?);
            if self.accept("]") {
                return Ok(items);
            }
            self.expect(",")?;
        }
    }

    pub(crate) fn end(&self) -> Result<(), Malformed> {
        if self.at == self.text.len() { Ok(()) } else { Err(Malformed::new(self.at, "the end of the text")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_string(text: &str) -> Result<String, Malformed> {
        let mut r = Reader::new(text.as_bytes())?;
        let s = r.string()?.into_owned();
        r.end()?;
        Ok(s)
    }

    #[test]
    fn strings_are_written_as_serde_json_writes_them() {
        let all: String = (0..0x500).filter_map(char::from_u32).chain("日本🫖\u{10ffff}".chars()).collect();
        for text in [all.as_str(), "", "plain", "\"", "\\", "a\u{1f}b\u{7f}"] {
            let mut out = Vec::new();
            push_string(&mut out, text);
            assert_eq!(String::from_utf8(out.clone()).unwrap(), serde_json::to_string(text).unwrap());
            assert_eq!(string_bytes(text), out.len(), "announced length of {text:?}");
            assert_eq!(read_string(std::str::from_utf8(&out).unwrap()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn second_spellings_are_refused() {
        for text in [
            r#""\/""#,
            r#""\u0041""#,
            r#""\u000A""#,
            r#""\u000a""#,
            r#""\u001F""#,
            r#""\u+01f""#,
            r#""\u0022""#,
            r#""\u00e9""#,
            r#""\ud83e\uded6""#,
            r#""\x""#,
            r#""\"#,
            r#""\u00"#,
            r#"""#,
            "\"\n\"",
            " \"\"",
            "\"\" ",
            "",
        ] {
            assert!(read_string(text).is_err(), "{text:?} is not canonical, yet it was read");
        }
        assert_eq!(read_string(r#""\u001f""#).as_deref(), Ok("\u{1f}"));
    }

    #[test]
    fn numbers_have_one_spelling() {
        for text in
            ["", "-1", "-0", "+1", "00", "01", "9007199254740992", "18446744073709551615", "99999999999999999999"]
        {
            assert!(Reader::new(text.as_bytes()).unwrap().number().is_err(), "{text:?} was read as a number");
        }
        for n in [0, 1, 9, 10, 12_345, NUMBER_MAX] {
            let mut out = Vec::new();
            push_number(&mut out, n);
            assert_eq!(out, n.to_string().into_bytes());
            assert_eq!(Reader::new(&out).unwrap().number(), Ok(n));
        }
    }

    #[test]
    fn base64_has_one_spelling() {
        let mut out = Vec::new();
        push_base64(&mut out, &[7; 32]);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(decode_hash(&text), Some([7; 32]));
        assert_eq!(decode_hash(&text.replace("Bwc=", "Bwd=")), None, "unused bits are set");
        for bad in ["AA", "AA=", "AB==", "A===", "AA==\n", "AA== ", "AA-_", "=AA="] {
            assert_eq!(decode_base64(bad), None, "{bad:?} is not canonical base64");
        }
    }
}
