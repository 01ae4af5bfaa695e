//! What the benchmark prints: tables, and what was wanted against what was got.

use std::fmt::Write as _;

/// The middle one; of an even number, the mean of the two in the middle.
pub(super) fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

pub(super) fn whole(figure: f64) -> String {
    format!("{figure:.0}")
}

/// A table in Markdown.
pub(super) struct Table {
    text: String,
}

impl Table {
    pub(super) fn new(columns: &[&str]) -> Self {
        let mut table = Self { text: String::new() };
        table.row(columns);
        table.row(&vec!["---"; columns.len()]);
        table
    }

    pub(super) fn row(&mut self, cells: &[impl AsRef<str>]) {
        for cell in cells {
            // Writing to a string does not fail.
            let _ = write!(self.text, "| {} ", cell.as_ref());
        }
        self.text.push_str("|\n");
    }
}

/// Everything that was found.
#[derive(Default)]
pub(super) struct Report {
    verdicts: Vec<Verdict>,
}

struct Verdict {
    what: String,
    got: f64,
    wanted: String,
    good: bool,
    /// Ratios and the binary decide how the run ends; what depends on the machine is only reported.
    decides: bool,
}

impl Report {
    #[allow(clippy::print_stdout, reason = "the report is what this program is for")]
    pub(super) fn table(&mut self, title: &str, table: Table) {
        println!("\n## {title}\n\n{}", table.text);
    }

    /// A ratio that must not be lower.
    pub(super) fn at_least(&mut self, what: &str, got: f64, least: f64) {
        self.push(what, got, format!("≥ {least:.2}"), got >= least, true);
    }

    /// A ratio that must not be higher.
    pub(super) fn at_most(&mut self, what: &str, got: f64, most: f64) {
        self.push(what, got, format!("≤ {most:.2}"), got <= most, true);
    }

    /// A figure of this machine that should not be lower.
    pub(super) fn hoped_at_least(&mut self, what: &str, got: f64, least: f64) {
        self.push(what, got, format!("≥ {least}"), got >= least, false);
    }

    /// A figure of this machine that should not be higher.
    pub(super) fn hoped_at_most(&mut self, what: &str, got: f64, most: f64) {
        self.push(what, got, format!("≤ {most}"), got <= most, false);
    }

    fn push(&mut self, what: &str, got: f64, wanted: String, good: bool, decides: bool) {
        self.verdicts.push(Verdict { what: what.to_owned(), got, wanted, good, decides });
    }

    /// Prints what was wanted and got; returns how many ratios fell short.
    pub(super) fn finish(mut self) -> usize {
        let mut table = Table::new(&["what", "got", "wanted", ""]);
        for v in &self.verdicts {
            let word = match (v.good, v.decides) {
                (true, _) => "",
                (false, true) => "**falls short**",
                (false, false) => "falls short, here and now",
            };
            table.row(&[v.what.as_str(), &format!("{:.2}", v.got), &v.wanted, word]);
        }
        let short = self.verdicts.iter().filter(|v| v.decides && !v.good).count();
        self.table("Wanted and got", table);
        short
    }
}

#[cfg(test)]
mod tests {
    use super::{Report, median};

    #[test]
    fn medians() {
        assert!((median([3.0, 1.0, 2.0].into_iter()) - 2.0).abs() < 1e-9);
        assert!((median([4.0, 1.0, 2.0, 3.0].into_iter()) - 2.5).abs() < 1e-9);
    }

    #[test]
    fn only_ratios_decide_and_what_is_no_number_falls_short() {
        let mut report = Report::default();
        report.at_least("reached", 3.0, 3.0);
        report.at_most("missed", 1.5, 1.0);
        report.at_least("nothing measured", f64::NAN, 1.0);
        report.hoped_at_most("slow machine", 9.0, 1.0);
        assert_eq!(report.finish(), 2);
    }
}
