//! CSV rows: RFC 4180 with any one-byte delimiter, LF or CRLF. A quote inside an unquoted field is taken as it stands;
//! text after a closing quote is refused.

use super::{Shape, push_key_part, trim_line_end};

/// Follows quotes through the lines of a row, to know whether the row goes on after a line end.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quoting {
    #[default]
    FieldStart,
    Unquoted,
    Quoted,
    QuoteInQuoted,
}

impl Quoting {
    /// Takes the next bytes of the row; whether a quote is open after them.
    pub(super) fn open_after(&mut self, bytes: &[u8], delimiter: u8) -> bool {
        let mut state = *self;
        for &b in bytes {
            state = match (state, b) {
                (Self::Quoted, b'"') => Self::QuoteInQuoted,
                (Self::Quoted, _) | (Self::FieldStart | Self::QuoteInQuoted, b'"') => Self::Quoted,
                (_, b) if b == delimiter => Self::FieldStart,
                _ => Self::Unquoted,
            };
        }
        *self = state;
        state == Self::Quoted
    }
}

/// The columns of a file, from its header.
pub(super) struct Columns {
    /// Each name as the start of a JSON member: `"name":`.
    members: Vec<String>,
    /// Indices of the fields that make the key.
    key: Vec<usize>,
    /// Reused between rows.
    fields: Fields,
}

impl Columns {
    pub(super) fn parse(header: &[u8], shape: &Shape) -> Result<Self, String> {
        let mut fields = Fields::default();
        fields.split(trim_line_end(header), shape.delimiter)?;
        let mut names: Vec<String> = Vec::new();
        for i in 0..fields.len() {
            let name = fields.text(i)?.to_owned();
            if names.contains(&name) {
                return Err(format!("column {name:?} occurs twice"));
            }
            names.push(name);
        }
        let index = |field: &String| {
            let found = names.iter().position(|n| n == field);
            found.ok_or_else(|| format!("there is no column {field:?}; there are: {}", names.join(", ")))
        };
        let key = shape.key_fields.iter().map(index).collect::<Result<_, _>>()?;
        let members = names.iter().map(|n| format!("{}:", serde_json::Value::from(n.as_str()))).collect();
        Ok(Self { members, key, fields })
    }

    /// Key and JSON object of a row.
    pub(super) fn row(&mut self, raw: &[u8], shape: &Shape) -> Result<(String, Vec<u8>), String> {
        self.fields.split(trim_line_end(raw), shape.delimiter)?;
        if self.fields.len() != self.members.len() {
            return Err(format!("{} fields, the header has {}", self.fields.len(), self.members.len()));
        }
        let mut key = shape.prefix.clone();
        for (n, &i) in self.key.iter().enumerate() {
            push_key_part(&mut key, n == 0, &shape.key_fields[n], self.fields.text(i)?)?;
        }
        let mut value = Vec::with_capacity(raw.len() + self.members.len() * 16);
        for (i, member) in self.members.iter().enumerate() {
            value.push(if i == 0 { b'{' } else { b',' });
            value.extend_from_slice(member.as_bytes());
            let text = self.fields.text(i)?;
            if shape.typed && is_json_scalar(text) {
                value.extend_from_slice(text.as_bytes());
            } else {
                serde_json::to_writer(&mut value, text).map_err(|e| e.to_string())?;
            }
        }
        value.push(b'}');
        Ok((key, value))
    }
}

/// Whether the text is a JSON number or boolean as it stands, within a double; `007`, `+1`, `1e999` and `NaN` are not.
fn is_json_scalar(text: &str) -> bool {
    let starts = text.bytes().next().is_some_and(|b| b == b'-' || b.is_ascii_digit());
    let ends = text.bytes().last().is_some_and(|b| b.is_ascii_digit());
    matches!(text, "true" | "false") || (starts && ends && serde_json::from_str::<serde_json::Number>(text).is_ok())
}

/// The fields of one row, unquoted, in one buffer.
#[derive(Default)]
struct Fields {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Fields {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn text(&self, i: usize) -> Result<&str, String> {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        std::str::from_utf8(&self.bytes[start..self.ends[i]]).map_err(|_| format!("field {} is not UTF-8", i + 1))
    }

    fn split(&mut self, mut row: &[u8], delimiter: u8) -> Result<(), String> {
        self.bytes.clear();
        self.ends.clear();
        loop {
            row = match row.strip_prefix(b"\"") {
                Some(rest) => self.quoted(rest)?,
                None => {
                    let end = row.iter().position(|&b| b == delimiter).unwrap_or(row.len());
                    self.bytes.extend_from_slice(&row[..end]);
                    &row[end..]
                }
            };
            self.ends.push(self.bytes.len());
            match row.split_first() {
                None => return Ok(()),
                Some((&b, rest)) if b == delimiter => row = rest,
                Some(_) => return Err(format!("field {}: text after the closing quote", self.len())),
            }
        }
    }

    /// Takes a field after its opening quote; returns what follows its closing quote.
    fn quoted<'a>(&mut self, mut rest: &'a [u8]) -> Result<&'a [u8], String> {
        loop {
            let Some(quote) = rest.iter().position(|&b| b == b'"') else {
                return Err(format!("field {}: the quote is not closed", self.len() + 1));
            };
            self.bytes.extend_from_slice(&rest[..quote]);
            rest = &rest[quote + 1..];
            match rest.strip_prefix(b"\"") {
                Some(more) => {
                    self.bytes.push(b'"');
                    rest = more;
                }
                None => return Ok(rest),
            }
        }
    }
}
