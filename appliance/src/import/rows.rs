//! Rows of a CSV or JSON-lines file, each with its place in the file, its key and its value as JSON. Reading can begin
//! at the start of any row, which is what makes an import resumable.

use std::io::{self, BufRead, Read};

use samovar_node::Key;
use samovar_node::command::VALUE_BYTES_MAX;

mod csv;
mod json;

use csv::Columns;

/// Longest row, in bytes as it stands in the file. A longer one stops the import even when bad rows are skipped: it is
/// more likely a quote that was never closed, and would not fit in a value anyway.
pub(crate) const ROW_BYTES_MAX: usize = 8 << 20;

/// How rows are written in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RowFormat {
    /// Comma-separated values (RFC 4180) under a header line.
    Csv,
    /// One JSON object a line.
    Jsonl,
}

/// What makes a key and a value of a row.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// How rows are written.
    pub(crate) format: RowFormat,
    /// Put before every key.
    pub(crate) prefix: String,
    /// Fields that make the key, joined by `/`.
    pub(crate) key_fields: Vec<String>,
    /// Between two fields of CSV.
    pub(crate) delimiter: u8,
    /// Whether CSV fields that look like JSON numbers or booleans become such.
    pub(crate) typed: bool,
}

/// A row of the file.
#[derive(Debug)]
pub(crate) struct Row {
    /// Number of its first line, from 1.
    pub(crate) line: u64,
    /// Key and value, or what is wrong with it.
    pub(crate) content: Result<(Key, Vec<u8>), Bad>,
}

/// A row that cannot be imported.
#[derive(Debug)]
pub(crate) struct Bad {
    /// What is wrong, for the user.
    pub(crate) reason: String,
    /// The row as it stands in the file, with its line end.
    pub(crate) raw: Vec<u8>,
}

/// Why no further row can be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A row is beyond [`ROW_BYTES_MAX`].
    #[error("line {line}: a row begins here that has no end within {} MiB{hint}", ROW_BYTES_MAX >> 20)]
    Endless {
        /// Number of its first line.
        line: u64,
        /// What to look for.
        hint: &'static str,
    },
    /// The header does not fit what was asked.
    #[error("line 1: {0}")]
    Header(String),
}

/// A position at the start of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Place {
    /// Offset in bytes.
    pub(crate) offset: u64,
    /// Line number, from 1.
    pub(crate) line: u64,
}

impl Place {
    /// The beginning of a file.
    pub(crate) const START: Self = Self { offset: 0, line: 1 };
}

/// Reads rows in order.
pub(crate) struct Rows<R> {
    input: R,
    place: Place,
    shape: Shape,
    /// For CSV.
    columns: Option<Columns>,
    header: Vec<u8>,
}

impl<R: BufRead> Rows<R> {
    /// A reader at the beginning of a file; for CSV it reads the header line at once.
    ///
    /// # Errors
    /// When the file cannot be read, or its header lacks a key field or names a column twice.
    pub(crate) fn new(mut input: R, shape: Shape) -> Result<Self, Stop> {
        let bom = input.fill_buf()?.starts_with(b"\xef\xbb\xbf");
        if bom {
            input.consume(3);
        }
        let place = Place { offset: if bom { 3 } else { 0 }, ..Place::START };
        let mut rows = Self { input, place, shape, columns: None, header: Vec::new() };
        if rows.shape.format == RowFormat::Csv {
            let mut header = Vec::new();
            if rows.read_raw(&mut header)?.is_none() {
                return Err(Stop::Header("the file is empty; CSV begins with a header line".into()));
            }
            rows.columns = Some(Columns::parse(&header, &rows.shape).map_err(Stop::Header)?);
            rows.header = header;
        }
        Ok(rows)
    }

    /// The header line of CSV as it stands in the file; empty for JSON lines.
    pub(crate) fn header(&self) -> &[u8] {
        &self.header
    }

    /// Where the next row begins.
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// The next row, blank lines skipped; `None` at the end.
    ///
    /// # Errors
    /// See [`Stop`]. A row that is merely bad is no error.
    pub(crate) fn next(&mut self) -> Result<Option<Row>, Stop> {
        let mut raw = Vec::new();
        let Some(line) = self.read_raw(&mut raw)? else { return Ok(None) };
        let parsed = match &mut self.columns {
            Some(columns) => columns.row(&raw, &self.shape),
            None => json::row(&raw, &self.shape),
        };
        let content = parsed.and_then(|(key, value)| {
            let key = Key::client(&key)?;
            if value.len() > VALUE_BYTES_MAX {
                return Err(format!("the value has {} bytes, the limit is {VALUE_BYTES_MAX}", value.len()));
            }
            Ok((key, value))
        });
        let content = content.map_err(|reason| Bad { reason, raw });
        Ok(Some(Row { line, content }))
    }

    /// Reads the bytes of one row with its line end; returns the number of its first line.
    fn read_raw(&mut self, raw: &mut Vec<u8>) -> Result<Option<u64>, Stop> {
        let csv = self.shape.format == RowFormat::Csv;
        loop {
            let line = self.place.line;
            raw.clear();
            let mut quoting = csv::Quoting::default();
            loop {
                let from = raw.len();
                let room = (ROW_BYTES_MAX + 1 - from) as u64;
                let n = (&mut self.input).take(room).read_until(b'\n', raw)?;
                self.place.offset += n as u64;
                self.place.line += u64::from(raw.last() == Some(&b'\n') && n > 0);
                if raw.len() > ROW_BYTES_MAX {
                    let hint = if csv { "; is there a quote that is not closed?" } else { "; is it JSON lines?" };
                    return Err(Stop::Endless { line, hint });
                }
                if n == 0 || !csv || !quoting.open_after(&raw[from..], self.shape.delimiter) {
                    break;
                }
            }
            if raw.is_empty() {
                return Ok(None);
            }
            if !raw.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(line));
            }
        }
    }
}

impl<R: BufRead + io::Seek> Rows<R> {
    /// Goes on at a place that [`Rows::place`] gave earlier for the same file and shape.
    ///
    /// # Errors
    /// As the file says.
    pub(crate) fn resume_at(&mut self, place: Place) -> io::Result<()> {
        self.input.seek(io::SeekFrom::Start(place.offset))?;
        self.place = place;
        Ok(())
    }
}

/// The bytes without the line end.
fn trim_line_end(raw: &[u8]) -> &[u8] {
    let raw = raw.strip_suffix(b"\n").unwrap_or(raw);
    raw.strip_suffix(b"\r").unwrap_or(raw)
}

/// Adds one part of the key, `/` between two parts.
fn push_key_part(key: &mut String, first: bool, field: &str, part: &str) -> Result<(), String> {
    if part.is_empty() {
        return Err(format!("key field {field:?} is empty"));
    }
    if !first {
        key.push('/');
    }
    key.push_str(part);
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
