//! What the commands print: plain tables for people, JSON for programs. No colour, so a pipe and a terminal see the
//! same bytes.

use std::io::{self, Write};

use serde_json::Value;

/// How a command prints its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// Tables and sentences.
    #[default]
    Text,
    /// One JSON value; lists that can be long are one JSON value a line.
    Json,
}

/// Columns of text, aligned to the left, two spaces apart.
#[derive(Debug)]
pub(crate) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; a missing cell is shown as `-`.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.into_iter().map(|c| if c.is_empty() { "-".into() } else { printable(&c) }).collect());
    }

    /// The rows without the header, to go on after an earlier table.
    pub(crate) fn render_rows(&self) -> String {
        self.render().split_once('\n').map(|(_, rows)| rows.to_owned()).unwrap_or_default()
    }

    /// The table as text, one line a row, no trailing spaces.
    pub(crate) fn render(&self) -> String {
        let mut widths: Vec<usize> = self.header.iter().map(|h| h.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let header: Vec<String> = self.header.iter().map(|h| (*h).to_owned()).collect();
        let mut text = String::new();
        for row in std::iter::once(&header).chain(&self.rows) {
            let mut line = String::new();
            for (width, cell) in widths.iter().zip(row) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// The text with control characters replaced, so that stored data cannot steer a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Prints text as it is; the caller ends its lines.
///
/// # Errors
/// As standard output says; a broken pipe is one too, and [`crate::cli::exit_code`] forgives it.
pub(crate) fn text(text: &str) -> io::Result<()> {
    bytes(text.as_bytes())
}

/// Prints bytes as they are.
///
/// # Errors
/// The same as [`text`].
pub(crate) fn bytes(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Tells something beside the result, on standard error; nobody listening there is no reason to fail.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints one JSON value on one line.
///
/// # Errors
/// The same as [`text`].
pub(crate) fn json(value: &Value) -> io::Result<()> {
    text(&format!("{value}\n"))
}

/// A size in bytes for people: `512 B`, `1.5 KiB`, `3.0 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A span of time for people, its two largest units: `40ms`, `12s`, `6m12s`, `3h05m`, `2d04h`.
pub(crate) fn span(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms}ms"),
        1..=59 => format!("{s}s"),
        60..=3599 => format!("{}m{:02}s", s / 60, s % 60),
        3600..=86_399 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// A time, given in milliseconds since 1970, as RFC 3339 in UTC.
pub(crate) fn time(ms: u64) -> String {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        .ok()
        .and_then(|t| t.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| format!("{ms} ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_aligns_and_defuses() {
        let mut t = Table::new(&["KEY", "REVISION", "TYPE"]);
        t.row(vec!["a".into(), "12".into(), String::new()]);
        t.row(vec!["größer".into(), "3".into(), "x\u{1b}[31m".into()]);
        assert_eq!(
            t.render(),
            "KEY     REVISION  TYPE\na       12        -\ngrößer  3         x\u{fffd}[31m\n",
            "columns as wide as their widest cell, empty cells as -, no escape sequences"
        );
    }

    #[test]
    fn figures_for_people() {
        let sizes = [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 20, "1.0 MiB"), (u64::MAX, "16383.9 PiB")];
        for (bytes, shown) in sizes {
            assert_eq!(size(bytes), shown, "{bytes} bytes");
        }
        let spans = [(40, "40ms"), (12_000, "12s"), (372_000, "6m12s"), (11_100_000, "3h05m"), (187_200_000, "2d04h")];
        for (ms, shown) in spans {
            assert_eq!(span(ms), shown, "{ms} ms");
        }
        assert_eq!(time(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(time(u64::MAX), format!("{} ms", u64::MAX), "a time beyond the calendar is shown as a number");
    }
}
