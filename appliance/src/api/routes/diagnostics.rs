//! The routes that look into the running process.

use hyper::Method;

use super::super::{Route, log_level, profiles};
use super::parameters::SECONDS;
use crate::auth::Right;
use crate::quota::Class;

pub(super) const LOG_LEVEL: Route = Route {
    method: Method::GET,
    pattern: "/v1/log-level",
    right: Right::ReadStatus,
    class: Class::Api,
    summary: "What the journal of this node takes.",
    query: &[],
    body: None,
    answers: &[(200, Some("LogLevel"))],
    problems: &[],
    handler: handler!(log_level::get),
};

pub(super) const CHANGE_LOG_LEVEL: Route = Route {
    method: Method::PUT,
    summary: "Changes what the journal of this node takes, for a while.",
    right: Right::Diagnose,
    body: Some("NewLogLevel"),
    problems: &[408, 413, 415, 422],
    handler: handler!(log_level::put),
    ..LOG_LEVEL
};

pub(super) const RESTORE_LOG_LEVEL: Route = Route {
    method: Method::DELETE,
    summary: "The journal takes what is configured again.",
    right: Right::Diagnose,
    answers: &[(204, None)],
    handler: handler!(log_level::delete),
    ..LOG_LEVEL
};

pub(super) const CPU_PROFILE: Route = Route {
    method: Method::GET,
    pattern: "/debug/pprof/profile",
    right: Right::Diagnose,
    class: Class::Api,
    summary: "What uses the CPU in the seconds from now: a gzipped pprof profile.",
    query: &[SECONDS],
    body: None,
    answers: &[(200, Some("application/octet-stream"))],
    problems: &[409],
    handler: handler!(profiles::cpu),
};

pub(super) const HEAP_PROFILE: Route = Route {
    pattern: "/debug/pprof/heap",
    summary: "What holds memory now: a gzipped pprof profile.",
    query: &[],
    handler: handler!(profiles::heap),
    ..CPU_PROFILE
};

pub(super) const TIMELINE: Route = Route {
    pattern: "/debug/pprof/trace",
    summary: "What is done when, on which thread, in the seconds from now: Chrome trace events.",
    answers: &[(200, Some("application/json"))],
    handler: handler!(profiles::trace),
    ..CPU_PROFILE
};
