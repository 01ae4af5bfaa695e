//! `samovar doctor`: what this ledger can bear right now, and what is wrong with it.
//!
//! Facts are gathered once ([`facts`]), by asking the daemon over its Unix socket and by reading files; nothing is opened
//! that a daemon would notice. Each row of [`CHECKS`] is a function from facts to yes, no, or "cannot be seen", which is
//! never yes. A new check is a function and a row.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::output::{self, Format, Table};

mod certificates;
mod cluster;
mod daemon;
mod facts;
mod files;
mod machine;
mod process;
mod sealing;
mod site;
mod unit;

pub(crate) use facts::Facts;
pub(crate) use unit::Unit;

/// Say what this ledger can bear right now, and what is wrong with it
///
/// Answers yes, no or unknown to each question, with the reason and what to do. Works while the daemon runs and while it
/// does not; changes nothing. Ends with 1 if any answer is no, except the one about losing a node.
#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {
    /// Data directory [default: the configured one]
    #[arg(long, value_name = "DIR", env = "SAMOVAR_DATA", hide_env_values = true)]
    pub(crate) data: Option<PathBuf>,
    /// Configuration file [default: that of the running daemon, else as for `serve`]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where the system's own files lie (units, journal), for a disk of another machine
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(crate) root: PathBuf,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Finding {
    Yes { why: String },
    No { why: String, next: String },
}

/// Why a check could not look, and what would let it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unseen {
    why: String,
    next: String,
}

/// A fact, or why it could not be gathered.
type Fact<T> = Result<T, Unseen>;
/// An answer; the error is "unknown", so that a check which cannot look can only say so.
type Look = Result<Finding, Unseen>;
/// From facts to an answer.
type Looker = fn(&Facts) -> Look;

fn yes(why: impl Into<String>) -> Look {
    Ok(Finding::Yes { why: why.into() })
}

fn no(why: impl Into<String>, next: impl Into<String>) -> Look {
    Ok(Finding::No { why: why.into(), next: next.into() })
}

fn unseen<T>(why: impl Into<String>, next: impl Into<String>) -> Result<T, Unseen> {
    Err(Unseen { why: why.into(), next: next.into() })
}

/// A fact that a check needs.
fn need<T>(fact: &Fact<T>) -> Result<&T, Unseen> {
    fact.as_ref().map_err(Clone::clone)
}

/// A row of the table.
struct Check {
    name: &'static str,
    question: &'static str,
    look: Looker,
}

const fn check(name: &'static str, question: &'static str, look: Looker) -> Check {
    Check { name, question, look }
}

/// Whose `no` is how a ledger of one node is, not something to mend: it does not count for the exit code.
const NOT_COUNTED: &str = "lose-node";

const CHECKS: &[Check] = &[
    check(NOT_COUNTED, "Can I lose a node right now?", site::lose_node),
    check("reboot", "Can I reboot right now?", site::reboot),
    check("roll-back", "Can I roll back to the version before right now?", site::roll_back),
    check("restore", "Can I restore right now?", site::restore),
    check("daemon", "Does the daemon run and answer?", daemon::runs),
    check("lock", "Is the data directory free of other programs?", daemon::lock),
    check("port", "Is the API's port ours?", daemon::port),
    check("version", "Does the installed version run?", daemon::version),
    check("configuration", "Is the configuration good?", daemon::configuration),
    check("in-force", "Is the configuration in force?", daemon::in_force),
    check("ledger", "Is the ledger well?", daemon::ledger),
    check("quorum", "Do enough voters answer?", cluster::quorum),
    check("peers", "Are the other nodes there and up to date?", cluster::peers),
    check("checkpoint", "Does the newest checkpoint keep up?", daemon::checkpoint),
    check("copies", "Are store and archive whole?", daemon::copies),
    check("connections", "Is there room for connections?", daemon::connections),
    check("directory", "Is the data directory complete?", files::complete),
    check("rights", "Are secrets and settings closed to others?", files::rights),
    check("sealed", "Are the secret files sealed as they should be?", sealing::sealed),
    check("owner", "Do the files belong to one user?", files::owner),
    check("disk", "Is there room on the disk?", machine::disk),
    check("inodes", "Is there room for more files?", machine::inodes),
    check("file-system", "Does the file system keep what was synced?", machine::file_system),
    check("memory", "Is there memory enough?", machine::memory),
    check("clock", "Is the clock synchronised and believed?", machine::clock),
    check("journal", "Does the journal survive a reboot?", machine::journal),
    check("certificate", "Does the node's certificate hold?", certificates::node),
    check("names", "Does it hold for every name of this node?", certificates::names),
    check("authority", "Does the CA's certificate hold?", certificates::authority),
    check("tls-key", "Does the TLS key fit the certificate?", certificates::key),
    check("site-certificate", "Does the certificate for the site's names hold, and renew?", certificates::site),
    check("unit", "Is the unit as strong as it was shipped?", unit::check),
];

/// One answer, as it is shown.
struct Row {
    check: &'static Check,
    look: Look,
}

impl Row {
    fn answer(&self) -> &'static str {
        match self.look {
            Ok(Finding::Yes { .. }) => "yes",
            Ok(Finding::No { .. }) => "no",
            Err(_) => "unknown",
        }
    }

    fn why(&self) -> &str {
        match &self.look {
            Ok(Finding::Yes { why } | Finding::No { why, .. }) | Err(Unseen { why, .. }) => why,
        }
    }

    fn next(&self) -> Option<&str> {
        match &self.look {
            Ok(Finding::Yes { .. }) => None,
            Ok(Finding::No { next, .. }) | Err(Unseen { next, .. }) => Some(next),
        }
    }

    fn counts(&self) -> bool {
        self.answer() == "no" && self.check.name != NOT_COUNTED
    }
}

/// All answers.
pub(crate) struct Report {
    data: PathBuf,
    rows: Vec<Row>,
}

impl Report {
    /// Looks at the facts.
    pub(crate) fn of(facts: &Facts) -> Self {
        let rows = CHECKS.iter().map(|check| Row { check, look: (check.look)(facts) }).collect();
        Self { data: facts.data.clone(), rows }
    }

    /// Names of the checks that count and say no.
    pub(crate) fn faults(&self) -> Vec<&'static str> {
        self.rows.iter().filter(|row| row.counts()).map(|row| row.check.name).collect()
    }

    /// As JSON.
    pub(crate) fn json(&self) -> Value {
        let checks: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "name": row.check.name, "question": row.check.question, "answer": row.answer(), "why": row.why(),
                    "next": row.next(),
                })
            })
            .collect();
        json!({ "data": self.data, "version": env!("CARGO_PKG_VERSION"), "faults": self.faults(), "checks": checks })
    }

    /// As text: the answers, and then what to do about those that are not yes.
    pub(crate) fn text(&self) -> String {
        let mut table = Table::new(&["CHECK", "ANSWER", "WHY"]);
        for row in &self.rows {
            table.row(vec![row.check.name.into(), row.answer().into(), row.why().into()]);
        }
        let mut text = table.render();
        for row in &self.rows {
            if let Some(next) = row.next() {
                let question = row.check.question;
                text.push_str(&format!("{question} {}. {}\n", row.answer(), output::printable(next)));
            }
        }
        text
    }
}

/// Looks, prints, and fails if something is wrong.
pub(crate) async fn run(doctor: &Doctor, format: Format) -> anyhow::Result<()> {
    let report = Report::of(&Facts::gather(doctor).await);
    match format {
        Format::Text => output::text(&report.text())?,
        Format::Json => output::json(&report.json())?,
    }
    let faults = report.faults();
    anyhow::ensure!(faults.is_empty(), "{} of {} checks say no: {}", faults.len(), CHECKS.len(), faults.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_checks_are_words_of_a_command_line_and_differ() {
        let mut names: Vec<&str> = CHECKS.iter().map(|c| c.name).collect();
        assert!(names.iter().all(|n| n.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')), "{names:?}");
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "two checks have one name: {names:?}");
    }

    #[test]
    fn what_cannot_be_seen_is_never_yes_and_one_node_is_no_fault() {
        let row = |name, look| Row { check: CHECKS.iter().find(|c| c.name == name).expect(name), look };
        let rows = vec![
            row(NOT_COUNTED, no("one voter", "none")),
            row("disk", unseen("no rights", "sudo samovar doctor")),
            row("clock", yes("synchronised")),
            row("memory", no("32 MiB", "more")),
        ];
        let report = Report { data: "d".into(), rows };
        assert_eq!(report.faults(), ["memory"], "only what is wrong counts");
        let answers: Vec<&str> = report.rows.iter().map(Row::answer).collect();
        assert_eq!(answers, ["no", "unknown", "yes", "no"]);
        let text = report.text();
        assert!(text.contains("disk       unknown  no rights\n"), "{text}");
        assert!(text.contains("Is there room on the disk? unknown. sudo samovar doctor\n"), "{text}");
    }
}
