//! Where events go: to systemd's journal with fields of their own, or to standard error as text.

use std::os::linux::fs::MetadataExt as _;
use std::sync::OnceLock;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt, reload};

use crate::config::Level;
use crate::metrics::CountLines;

/// Before each field in the journal: `request_id` becomes `SAMOVAR_REQUEST_ID`.
const FIELD_PREFIX: &str = "SAMOVAR";

/// The level in force, once events go anywhere.
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Sends events to the journal when standard error goes there and it takes fields, else to standard error. A second call
/// changes nothing.
pub(super) fn start(level: Level) {
    let (filter, handle) = reload::Layer::new(filter(level));
    let sink = match journald() {
        Some(layer) => layer.boxed(),
        None => fmt::layer().with_writer(std::io::stderr).with_ansi(false).boxed(),
    };
    if tracing_subscriber::registry().with(filter).with(sink).with(CountLines).try_init().is_ok() {
        let _ = FILTER.set(handle);
    }
}

/// Changes the least level that is written.
pub(super) fn set_level(level: Level) {
    if let Some(Err(error)) = FILTER.get().map(|handle| handle.reload(filter(level))) {
        tracing::error!(%error, "the level of the journal could not be changed");
    }
}

/// The journal's own protocol, if it is what stands behind standard error ($JOURNAL_STREAM, systemd.exec(5)).
fn journald() -> Option<tracing_journald::Layer> {
    let named = std::env::var("JOURNAL_STREAM").ok()?;
    let standard_error = std::fs::metadata("/proc/self/fd/2").ok()?;
    if named != format!("{}:{}", standard_error.st_dev(), standard_error.st_ino()) {
        return None;
    }
    let layer = tracing_journald::layer().ok()?;
    Some(layer.with_field_prefix(Some(FIELD_PREFIX.to_owned())).with_syslog_identifier("samovar".to_owned()))
}

fn filter(level: Level) -> Targets {
    let least = level.as_str().parse().unwrap_or(LevelFilter::INFO);
    let all = Targets::new().with_default(least);
    if level >= Level::Debug {
        return all;
    }
    // openraft tells every step of an election at `info`.
    all.with_target("openraft", LevelFilter::ERROR).with_target("sled", least.min(LevelFilter::WARN))
}
