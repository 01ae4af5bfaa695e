//! Levels of the journal.

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::LevelFilter;

/// Level of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Only what needs somebody.
    Error,
    /// Also what may come to need somebody.
    Warn,
    /// Also what the daemon does.
    Info,
    /// Also how.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    /// The level as the journal's filter writes it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// The level of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace].into_iter().find(|l| l.as_str() == name)
    }

    /// What lets this level through and no more.
    pub(crate) fn filter(self) -> LevelFilter {
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }
}
