//! Updates of the appliance, as the daemon has to do with them: it reads what the box says of itself, passes orders on to the
//! box's updater, which runs as root and checks everything itself, and writes each step of an update to the ledger.
//!
//! The updater's files lie in one directory, written by root alone: [`STATE_FILE`], the state as JSON; [`EVENTS_FILE`], one
//! step a line, numbered, never rewritten: the spool from which [`follow`] makes entries; a step is made an entry once,
//! whatever is cut off in between, since the row says which was the last. [`SOCKET_FILE`] takes one order a connection, a
//! line of JSON, and answers one.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use samovar_node::{Node, format, rt};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::auth::{UPDATES, commit};

/// Where the updater of the image keeps its files.
pub(crate) const DIRECTORY: &str = "/var/lib/samovar-update";
/// What was durable before an update ([`crate::confirm::Expectation`]).
pub(crate) const EXPECTATION_FILE: &str = "expectation";
const STATE_FILE: &str = "state";
const EVENTS_FILE: &str = "events";
const SOCKET_FILE: &str = "socket";

/// Author of the entries.
const AUTHOR: &str = "updater";
/// How often the spool is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Pause before entries are tried again: they need a quorum and room.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
/// Time for an order: the updater reads a bundle's signature before it answers.
const ORDER_TIMEOUT: Duration = Duration::from_secs(25);
/// Longest file and answer that is read, in bytes.
const BYTES_MAX: u64 = 1 << 20;
/// Longest line of the spool, in bytes.
const LINE_BYTES_MAX: usize = 16 << 10;
/// Steps that are told with the state.
const EVENTS_TOLD: usize = 20;

/// A step of an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// Its number on this box, from 1.
    pub(crate) sequence: u64,
    /// When it happened by the box's clock, seconds since 1970.
    pub(crate) time_s: u64,
    /// `installed`, `install-failed`, `trial`, `confirmed`, `given-up`, `fell-back`, `rollback`, `rebuilt`.
    pub(crate) step: String,
    /// Version that it is about.
    pub(crate) version: String,
    /// Slot that it is about.
    pub(crate) slot: String,
    /// Who asked for it; empty: the box itself.
    #[serde(default)]
    pub(crate) by: String,
    /// Why, in words.
    #[serde(default)]
    pub(crate) why: String,
}

/// What may be ordered.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "order", rename_all = "lowercase")]
pub(crate) enum Order<'a> {
    /// Check a bundle and write it to the spare slot.
    Install {
        /// Absolute path on the box, or an `http` or `https` URL.
        bundle: &'a str,
        /// Who asks.
        by: &'a str,
    },
    /// Let the spare slot be started next.
    Rollback {
        /// Who asks.
        by: &'a str,
    },
    /// Start the machine again.
    Restart {
        /// Who asks.
        by: &'a str,
    },
}

/// What the updater answered.
#[derive(Debug, Deserialize)]
pub(crate) struct Reply {
    /// Whether the order was taken.
    pub(crate) taken: bool,
    /// If not, why, and what to do.
    #[serde(default)]
    pub(crate) why: String,
}

/// Whether this machine is an appliance with an updater.
pub(crate) fn is_here(directory: &Path) -> bool {
    directory.join(STATE_FILE).exists()
}

/// How updates of this box stand, as the updater wrote it, with the newest steps.
pub(crate) fn state(directory: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(directory.join(STATE_FILE)).context("reading the updater's state")?;
    let mut state: Value = serde_json::from_str(&text).context("the updater's state")?;
    let events = events(directory, 0)?;
    state["events"] = serde_json::to_value(&events[events.len().saturating_sub(EVENTS_TOLD)..])?;
    Ok(state)
}

/// The newest format of commands that the version in the spare slot reads: the box goes back to it when the one that runs ends by
/// itself. `None` without a spare slot that was ever written. A slot of a version that does not say reads the first.
pub(crate) fn spare_format(directory: &Path) -> Option<u8> {
    #[derive(Deserialize)]
    struct Slot {
        version: String,
        data_format: Option<u8>,
    }
    #[derive(Deserialize)]
    struct State {
        slot: String,
        slots: HashMap<String, Slot>,
    }
    let text = std::fs::read(directory.join(STATE_FILE)).ok()?;
    // A state that cannot be read may hide a slot that reads nothing new.
    let Ok(State { slot, slots }) = serde_json::from_slice(&text) else { return Some(format::FIRST) };
    let spare = slots.into_iter().find(|(letter, kept)| *letter != slot && !kept.version.is_empty());
    spare.map(|(_, kept)| kept.data_format.unwrap_or(format::FIRST))
}

/// Passes an order on.
pub(crate) async fn order(directory: &Path, order: &Order<'_>) -> Result<Reply> {
    let line = serde_json::to_string(order)? + "\n";
    let exchange = async {
        let mut socket = UnixStream::connect(directory.join(SOCKET_FILE)).await.context("reaching the updater")?;
        socket.write_all(line.as_bytes()).await?;
        let mut answer = String::new();
        socket.take(BYTES_MAX).read_to_string(&mut answer).await?;
        serde_json::from_str(&answer).context("the updater's answer")
    };
    timeout(ORDER_TIMEOUT, exchange).await.context("the updater did not answer in time")?
}

/// Steps after one, oldest first.
fn events(directory: &Path, after: u64) -> Result<Vec<Event>> {
    let file = match std::fs::File::open(directory.join(EVENTS_FILE)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file.context("reading the updater's steps")?,
    };
    let mut events = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line.context("reading the updater's steps")?;
        if line.len() > LINE_BYTES_MAX {
            bail!("a step of {} bytes", line.len());
        }
        // The last line may have been cut off with the power; its step is written again.
        if let Ok(event) = serde_json::from_str::<Event>(&line)
            && event.sequence > after
        {
            events.push(event);
        }
    }
    Ok(events)
}

/// Makes an entry of every step, in order, each once.
pub(crate) async fn follow(node: Node, directory: std::path::PathBuf) {
    let spool = directory.join(EVENTS_FILE);
    let mut seen = None;
    loop {
        let now = std::fs::metadata(&spool).ok().map(|m| (m.len(), m.modified().ok()));
        let mut pause = LOOK_EVERY;
        if now.is_some() && now != seen {
            match record(&node, &directory).await {
                Ok(()) => seen = now,
                Err(error) => {
                    tracing::warn!("steps of an update wait for the ledger: {error:#}");
                    pause = RETRY_PAUSE;
                }
            }
        }
        rt::sleep(pause).await;
    }
}

async fn record(node: &Node, directory: &Path) -> Result<()> {
    let told = |problem| anyhow::anyhow!("{problem:?}");
    let name = node.status().name;
    node.barrier().await?;
    let mut row = UPDATES.find(node, &name).await.map_err(told)?;
    for event in events(directory, row.as_ref().map_or(0, |row| row.row.sequence))? {
        let unchanged = UPDATES.unchanged(&name, row.as_ref().map(|row| row.revision)).map_err(told)?;
        let put = UPDATES.put(&name, &event).map_err(told)?;
        commit(node, AUTHOR, vec![unchanged], vec![put]).await.map_err(told)?;
        tracing::info!(
            step = event.step,
            version = event.version,
            slot = event.slot,
            "a step of an update is on the ledger"
        );
        row = UPDATES.find(node, &name).await.map_err(told)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_the_spare_slot_reads_is_known_or_taken_for_the_least() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(spare_format(directory.path()), None, "no updater, no spare slot");
        for (state, reads) in [
            (r#"{"slot": "A", "slots": {"A": {"version": "1.0.0", "data_format": 6}}}"#, None),
            (
                r#"{"slot": "A", "slots": {"A": {"version": "1.0.0", "data_format": 6}, "B": {"version": "", "standing": "empty"}}}"#,
                None,
            ),
            (
                r#"{"slot": "A", "slots": {"A": {"version": "1.1.0", "data_format": 6}, "B": {"version": "1.0.0", "data_format": 7}}}"#,
                Some(7),
            ),
            (
                r#"{"slot": "B", "slots": {"A": {"version": "1.0.0"}, "B": {"version": "1.1.0", "data_format": 6}}}"#,
                Some(format::FIRST),
            ),
            ("{", Some(format::FIRST)),
        ] {
            let mut file = std::fs::File::create(directory.path().join(STATE_FILE)).expect("a file");
            file.write_all(state.as_bytes()).expect("a file");
            assert_eq!(spare_format(directory.path()), reads, "{state}");
        }
    }

    #[test]
    fn steps_are_read_in_order_and_a_torn_one_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(events(directory.path(), 0).expect("no spool yet"), []);
        let mut file = std::fs::File::create(directory.path().join(EVENTS_FILE)).expect("a file");
        for sequence in 1..4 {
            writeln!(file, r#"{{"sequence":{sequence},"time_s":9,"step":"trial","version":"1.2.3","slot":"B"}}"#)
                .expect("a line");
        }
        write!(file, r#"{{"sequence":4,"time_s":9,"st"#).expect("a torn line");
        let sequences = |after| -> Vec<u64> {
            events(directory.path(), after).expect("steps").iter().map(|e| e.sequence).collect()
        };
        assert_eq!(sequences(0), [1, 2, 3]);
        assert_eq!(sequences(2), [3]);
        assert_eq!(sequences(3), [0u64; 0]);
    }

    #[test]
    fn orders_have_their_names() {
        let order = Order::Install { bundle: "/b", by: "user/a" };
        assert_eq!(serde_json::to_string(&order).expect("JSON"), r#"{"order":"install","bundle":"/b","by":"user/a"}"#);
    }
}
