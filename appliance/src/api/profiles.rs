//! `/debug/pprof/…`: profiles of the running process.

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::HeaderValue;

use super::problem::Problem;
use super::{Call, Handled, render};
use crate::profile::{self, Turn};

/// How long a profile takes when nothing is said, in seconds.
const SECONDS: u64 = 10;
/// How long it may take at most; less if a request may not take so long.
pub(super) const SECONDS_MAX: u64 = 60;
/// What is left of a request's time to make a file of the samples.
const RENDERING: Duration = Duration::from_secs(5);

/// What `profile.proto` goes by.
const PROTO: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// `GET /debug/pprof/profile`.
pub(crate) async fn cpu(call: Call) -> Handled {
    let time = seconds(&call)?;
    let turn = turn()?;
    tracing::info!(by = &*call.principal.id, ?time, "a CPU profile is taken");
    answer(PROTO, profile::cpu(turn, time).await)
}

/// `GET /debug/pprof/heap`.
pub(crate) async fn heap(call: Call) -> Handled {
    let turn = turn()?;
    tracing::info!(by = &*call.principal.id, "a heap profile is taken");
    answer(PROTO, profile::heap(turn).await)
}

/// `GET /debug/pprof/trace`.
pub(crate) async fn trace(call: Call) -> Handled {
    let time = seconds(&call)?;
    let turn = turn()?;
    tracing::info!(by = &*call.principal.id, ?time, "a timeline is recorded");
    answer(HeaderValue::from_static("application/json"), profile::timeline(turn, time).await)
}

fn turn() -> Result<Turn, Problem> {
    let detail = "another profile is being taken; one at a time";
    Turn::take().ok_or_else(|| Problem::conflict("profile-running", detail))
}

fn seconds(call: &Call) -> Result<Duration, Problem> {
    let most = call.app.limits.get().request_deadline.saturating_sub(RENDERING).as_secs().clamp(1, SECONDS_MAX);
    let wanted = call.query.number("seconds").unwrap_or_else(|| SECONDS.min(most));
    if (1..=most).contains(&wanted) {
        return Ok(Duration::from_secs(wanted));
    }
    let detail = format!("must lie between 1 and {most} (limits.request_deadline less {} s)", RENDERING.as_secs());
    Err(Problem::parameter("seconds", detail))
}

fn answer(media_type: HeaderValue, profile: anyhow::Result<Vec<u8>>) -> Handled {
    let profile = profile.map_err(|error| Problem::internal(&format!("{error:#}")))?;
    let mut response = render::content(StatusCode::OK, media_type, profile);
    response.headers_mut().insert(hyper::header::CACHE_CONTROL, render::NO_STORE);
    Ok(response)
}
