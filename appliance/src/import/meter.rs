//! Shows how an import goes: a bar on a terminal, a line every few seconds elsewhere, on standard error.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::output;

/// Time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Most bad rows that are shown, of the whole import; all of them are in the file of bad rows.
const REASONS_MAX: u64 = 100;

/// The display of one import.
pub(crate) struct Meter {
    bar: Option<ProgressBar>,
    name: String,
    size: Option<u64>,
    began: Instant,
    next_line: Instant,
    rows: u64,
    rows_resumed: u64,
    reasons: u64,
    quiet: bool,
}

impl Meter {
    /// A display for a file of `size` bytes (`None`: a pipe), of which an earlier run did `rows` rows up to `offset`.
    pub(crate) fn new(name: &str, size: Option<u64>, (offset, rows): (u64, u64), quiet: bool) -> Self {
        let now = Instant::now();
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| bar(name, size, offset));
        Self {
            bar,
            name: name.to_owned(),
            size,
            began: now,
            next_line: now + LINE_EVERY,
            rows,
            rows_resumed: rows,
            reasons: 0,
            quiet,
        }
    }

    /// Shows that everything before `offset`, `rows` rows, is done.
    pub(crate) fn reached(&mut self, offset: u64, rows: u64) {
        self.rows = rows;
        let rate = self.rows_per_second();
        if let Some(bar) = &self.bar {
            bar.set_position(offset);
            bar.set_message(format!("{rows} rows, {rate} rows/s"));
        } else if !self.quiet && Instant::now() >= self.next_line {
            self.next_line = Instant::now() + LINE_EVERY;
            let percent =
                self.size.filter(|s| *s > 0).map(|s| format!(", {} %", u128::from(offset) * 100 / u128::from(s)));
            output::note(&format!("{}: {rows} rows, {rate} rows/s{}", self.name, percent.unwrap_or_default()));
        }
    }

    /// Shows why a row was skipped.
    pub(crate) fn rejected(&mut self, line: u64, reason: &str) {
        self.reasons += 1;
        if self.reasons > REASONS_MAX {
            return;
        }
        let more = if self.reasons == REASONS_MAX { " (further bad rows are not shown)" } else { "" };
        let text = format!("{}:{line}: skipped: {}{more}", self.name, output::printable(reason));
        match &self.bar {
            Some(bar) => bar.suspend(|| output::note(&text)),
            None => output::note(&text),
        }
    }

    /// Ends the display.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// How long this run has taken.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Rows of this run by its time.
    pub(crate) fn rows_per_second(&self) -> u64 {
        let ms = self.elapsed().as_millis().max(1);
        u64::try_from(u128::from(self.rows - self.rows_resumed) * 1000 / ms).unwrap_or(u64::MAX)
    }
}

fn bar(name: &str, size: Option<u64>, offset: u64) -> ProgressBar {
    let (bar, template) = match size {
        Some(size) => (ProgressBar::new(size), "{prefix} {wide_bar} {percent}% {msg}, {eta} left"),
        None => (ProgressBar::new_spinner(), "{prefix} {spinner} {bytes} {msg}"),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = bar.with_style(style).with_prefix(name.to_owned()).with_position(offset);
    // What an earlier run did says nothing of this one's speed.
    bar.reset_eta();
    bar
}
