//! `/v1/log-level`: what this node writes to its journal, changed for a while without a restart.

use std::time::Duration;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::{Call, Handled, access, render};
use crate::journal::{self, Directives};

/// How long a change lasts when nothing is said, in seconds.
const LASTS_S: u64 = 15 * 60;
/// How long it may last at most, in seconds: a level that is forgotten fills the disk.
pub(crate) const LASTS_S_MAX: u64 = 24 * 3600;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    directives: String,
    #[serde(default, deserialize_with = "super::transactions::whole_or_null")]
    for_s: Option<u64>,
}

/// What the journal takes.
#[derive(Serialize)]
pub(super) struct LogLevel {
    /// The level of the configuration.
    configured: &'static str,
    /// What counts instead of it, if something does.
    directives: Option<String>,
    /// Who asked for that.
    by: Option<String>,
    /// When it ends, milliseconds since 1970.
    until_ms: Option<u64>,
}

impl LogLevel {
    /// As it is now.
    pub(super) fn now() -> Self {
        let journal::Standing { configured, change } = journal::standing();
        let (directives, by, until_ms) = match change {
            Some(change) => (Some(change.directives), Some(change.by), Some(change.until_ms)),
            None => (None, None, None),
        };
        Self { configured: configured.as_str(), directives, by, until_ms }
    }
}

/// `GET /v1/log-level`.
pub(crate) async fn get(_: Call) -> Handled {
    render::json(StatusCode::OK, &LogLevel::now())
}

/// `PUT /v1/log-level`.
pub(crate) async fn put(call: Call) -> Handled {
    let (call, wanted) = access::body::<Wanted>(call).await?;
    let directives: Directives =
        wanted.directives.parse().map_err(|e| Problem::unprocessable(format!("`directives`: {e}")))?;
    let for_s = wanted.for_s.unwrap_or(LASTS_S);
    if !(1..=LASTS_S_MAX).contains(&for_s) {
        return Err(Problem::unprocessable(format!("`for_s` must lie between 1 and {LASTS_S_MAX} seconds")));
    }
    let until_ms = call.app.node.now_ms().saturating_add(for_s * 1000);
    journal::change(directives, Duration::from_secs(for_s), until_ms, &call.principal.id);
    render::json(StatusCode::OK, &LogLevel::now())
}

/// `DELETE /v1/log-level`: as configured again, at once.
pub(crate) async fn delete(_: Call) -> Handled {
    journal::restore();
    Ok(render::empty(StatusCode::NO_CONTENT))
}
