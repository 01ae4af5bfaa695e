//! The newest records of the daemon's unit. Of each only fields that are on the list, and of those only values of the
//! right kind: a message may quote what a client sent, so it is left out, and the place in the source stands for it.

use std::path::Path;
use std::process::Command;

use serde_json::{Map, Value};

use crate::api::ROUTES;

/// Records, newest last.
const RECORDS: &str = "2000";

/// What a value must be.
#[derive(Clone, Copy)]
enum Kind {
    /// Digits only.
    Number,
    /// A method of the route table.
    Method,
    /// A place in the source of the daemon.
    Place,
    /// A route, its variables in braces, as the route table has it.
    Route,
    /// One of [`RESULTS`].
    Result,
}

const FIELDS: [(&str, Kind); 17] = [
    ("__REALTIME_TIMESTAMP", Kind::Number),
    ("PRIORITY", Kind::Number),
    ("_PID", Kind::Number),
    ("CODE_FILE", Kind::Place),
    ("CODE_LINE", Kind::Number),
    ("TARGET", Kind::Place),
    ("SAMOVAR_METHOD", Kind::Method),
    ("SAMOVAR_ROUTE", Kind::Route),
    ("SAMOVAR_STATUS", Kind::Number),
    ("SAMOVAR_REQUEST_BYTES", Kind::Number),
    ("SAMOVAR_ANSWER_BYTES", Kind::Number),
    ("SAMOVAR_MICROS", Kind::Number),
    // Of systemd about the unit.
    ("EXIT_STATUS", Kind::Number),
    ("EXIT_CODE", Kind::Result),
    ("UNIT_RESULT", Kind::Result),
    ("JOB_RESULT", Kind::Result),
    ("N_RESTARTS", Kind::Number),
];

/// How the names of modules and source files begin.
const PLACES: [&str; 5] = ["samovar", "appliance/src/", "node/src/", "openraft", "sled"];
/// Results of a unit, a job or a process, as systemd names them.
const RESULTS: [&str; 14] = [
    "done",
    "canceled",
    "timeout",
    "failed",
    "dependency",
    "skipped",
    "exited",
    "killed",
    "dumped",
    "success",
    "exit-code",
    "signal",
    "core-dump",
    "watchdog",
];

/// JSON lines of the newest records.
///
/// # Errors
/// In words, when there is no journal to be read.
pub(super) fn excerpt(root: &Path) -> Result<String, String> {
    let mut command = Command::new("journalctl");
    command.args(["--unit", "samovar.service", "--output", "json", "--no-pager", "--quiet", "--lines", RECORDS]);
    if root != Path::new("/") {
        command.arg("--root").arg(root);
    }
    let said = command.output().map_err(|e| format!("journalctl: {e}"))?;
    if !said.status.success() {
        return Err(format!("journalctl ended with {}", said.status));
    }
    let lines = said.stdout.split(|b| *b == b'\n');
    let records = lines.filter_map(|line| serde_json::from_slice::<Map<String, Value>>(line).ok());
    let text: String = records.map(|record| format!("{}\n", listed(&record))).collect();
    if text.is_empty() { Err("the journal has no record of the unit".into()) } else { Ok(text) }
}

fn listed(record: &Map<String, Value>) -> Value {
    let kept = FIELDS.iter().filter_map(|(name, kind)| {
        let value = record.get(*name)?.as_str()?;
        kind.fits(value).then(|| ((*name).to_owned(), Value::from(value)))
    });
    Value::Object(kept.collect())
}

impl Kind {
    fn fits(self, value: &str) -> bool {
        let all = |length: usize, good: fn(&u8) -> bool| {
            (1..=length).contains(&value.len()) && value.as_bytes().iter().all(good)
        };
        match self {
            Self::Number => all(20, u8::is_ascii_digit),
            Self::Method => value == "HEAD" || ROUTES.iter().any(|route| route.method.as_str() == value),
            Self::Place => {
                let ours = PLACES.iter().any(|start| value.starts_with(start));
                ours && all(96, |b| b.is_ascii_lowercase() || matches!(b, b'_' | b':' | b'/' | b'.' | b'-'))
            }
            Self::Result => RESULTS.contains(&value),
            Self::Route => ROUTES.iter().any(|route| route.pattern == value),
        }
    }
}
