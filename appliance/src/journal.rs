//! Where events go: to systemd's journal with fields of their own, or to standard error as text; and which, as it is
//! configured or as an administrator changed it for a while.

use std::os::linux::fs::MetadataExt as _;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt, reload};

use crate::config::Level;
use crate::metrics::CountLines;

/// Before each field in the journal: `request_id` becomes `SAMOVAR_REQUEST_ID`.
const FIELD_PREFIX: &str = "SAMOVAR";
/// Longest text of [`Directives`], in bytes.
const DIRECTIVES_BYTES_MAX: usize = 512;

/// The filter in force, once events go anywhere.
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();
/// What decides about the filter. There is one journal per process; locked for a look, never over an await.
static STATE: Mutex<State> = Mutex::new(State { configured: Level::Info, change: None, changes: 0 });

struct State {
    configured: Level,
    change: Option<Change>,
    /// Changes so far, so that the end of one does not end a later one.
    changes: u64,
}

/// What an administrator changed, for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// As they were written.
    pub(crate) directives: String,
    /// When it ends, milliseconds since 1970.
    pub(crate) until_ms: u64,
    /// Who asked for it.
    pub(crate) by: String,
}

/// What is to be written: `debug`, `debug,h2=warn`, `samovar_node::raft=trace`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directives {
    text: String,
    level: Option<Level>,
    targets: Vec<(String, LevelFilter)>,
}

impl std::str::FromStr for Directives {
    type Err = String;

    /// A word alone is a level and nothing else: tracing's own parser takes a misspelt level for a target, which would
    /// silence all others.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > DIRECTIVES_BYTES_MAX {
            return Err(format!(
                "write 1 to {DIRECTIVES_BYTES_MAX} bytes, such as `debug` or `info,samovar_node=debug`"
            ));
        }
        let (mut level, mut targets) = (None, Vec::new());
        for part in text.split(',') {
            let (target, named) = part.split_once('=').map_or((None, part), |(target, level)| (Some(target), level));
            let known = Level::named(named)
                .ok_or_else(|| format!("`{named}` is no level: write error, warn, info, debug or trace"))?;
            match target {
                None if level.replace(known).is_some() => return Err("more than one level without a target".into()),
                None => {}
                Some(target) if is_target(target) => targets.push((target.to_owned(), known.filter())),
                Some(target) => {
                    return Err(format!("`{target}` is no target: write a path such as samovar_node::raft"));
                }
            }
        }
        Ok(Self { text: text.to_owned(), level, targets })
    }
}

/// A path of modules.
fn is_target(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':'))
}

/// What is in force.
pub(crate) struct Standing {
    /// As configured.
    pub(crate) configured: Level,
    /// Instead of it, for a while.
    pub(crate) change: Option<Change>,
}

/// Sends events to the journal when standard error goes there and it takes fields, else to standard error. A second call
/// changes nothing.
pub(crate) fn start(level: Level) {
    let (filter, handle) = reload::Layer::new(configured(level));
    let sink = match journald() {
        Some(layer) => layer.boxed(),
        None => fmt::layer().with_writer(std::io::stderr).with_ansi(false).boxed(),
    };
    if tracing_subscriber::registry().with(filter).with(sink).with(CountLines).try_init().is_ok() {
        let _ = FILTER.set(handle);
        state().configured = level;
    }
}

/// Changes the configured level. A change for a while goes on until its end.
pub(crate) fn configure(level: Level) {
    let mut state = state();
    state.configured = level;
    if state.change.is_none() {
        apply(configured(level));
    }
}

/// What is in force.
pub(crate) fn standing() -> Standing {
    let state = state();
    Standing { configured: state.configured, change: state.change.clone() }
}

/// Writes by `directives` from now on, instead of as configured or as changed before. It ends by itself `after` that
/// time, at `until_ms` by the clock. Called on a runtime.
pub(crate) fn change(directives: Directives, after: Duration, until_ms: u64, by: &str) {
    let mut state = state();
    let mut targets = configured(directives.level.unwrap_or(state.configured));
    targets.extend(directives.targets);
    tracing::warn!(directives = directives.text, until_ms, by, "the level of the journal is changed for a while");
    apply(targets);
    state.changes += 1;
    state.change = Some(Change { directives: directives.text, until_ms, by: by.to_owned() });
    let this = state.changes;
    samovar_node::rt::spawn(async move {
        tokio::time::sleep(after).await;
        end(Some(this));
    });
}

/// Ends a change: the one with this number if it is still in force, or whichever is.
fn end(number: Option<u64>) {
    let mut state = state();
    if number.is_some_and(|n| n != state.changes) || state.change.take().is_none() {
        return;
    }
    apply(configured(state.configured));
    tracing::warn!(level = state.configured.as_str(), "the level of the journal is again as configured");
}

/// Writes as configured again, at once.
pub(crate) fn restore() {
    end(None);
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn apply(filter: Targets) {
    if let Some(Err(error)) = FILTER.get().map(|handle| handle.reload(filter)) {
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

/// What a level lets through.
fn configured(level: Level) -> Targets {
    let all = Targets::new().with_default(level.filter());
    if level >= Level::Debug {
        return all;
    }
    // openraft tells every step of an election at `info`.
    let quiet = all.with_target("openraft", LevelFilter::ERROR);
    samovar_node::TARGETS_LEFT_OUT.into_iter().fold(quiet, |quiet, target| quiet.with_target(target, LevelFilter::OFF))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_levels_and_targets_with_levels() {
        let read = |text: &str| text.parse::<Directives>();
        let all = read("debug").expect("a level");
        assert_eq!((all.level, all.targets.len()), (Some(Level::Debug), 0));
        let some = read("samovar_node::raft=trace,warn,h2=error").expect("two targets and a level");
        assert_eq!(some.level, Some(Level::Warn));
        assert_eq!(
            some.targets,
            [("samovar_node::raft".to_owned(), LevelFilter::TRACE), ("h2".to_owned(), LevelFilter::ERROR)]
        );
        let long = format!("info,{}=debug", "x".repeat(DIRECTIVES_BYTES_MAX));
        for bad in ["", "degub", "DEBUG", "info,debug", "a=b", "=debug", "a b=debug", "a=debug,", "a[x]=debug", &long] {
            assert!(read(bad).is_err(), "{bad:?} must be refused");
        }
    }

    /// The one test that touches the state of the process. That a change ends by itself is seen on a daemon
    /// (`tests/system/diagnostics.rs`).
    #[tokio::test]
    async fn the_end_of_a_change_does_not_end_a_later_one() {
        let change = |text: &str| {
            super::change(text.parse().expect("directives"), Duration::from_secs(3600), 1000, "user/alice");
            state().changes
        };
        let now = || standing().change.map(|c| c.directives);
        let (first, second) = (change("debug"), change("trace"));
        end(Some(first));
        assert_eq!(now().as_deref(), Some("trace"), "the end of the first must not end the second");
        end(Some(second));
        assert_eq!(now(), None, "its own end does");
        change("h2=trace");
        configure(Level::Warn);
        assert_eq!(now().as_deref(), Some("h2=trace"), "a reload does not end a change");
        restore();
        assert_eq!((now(), standing().configured), (None, Level::Warn));
    }
}
