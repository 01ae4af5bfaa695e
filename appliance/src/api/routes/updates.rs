//! The routes about updates of the box.

use hyper::Method;

use super::super::{Route, updates};
use crate::auth::Right;
use crate::quota::Class;

pub(super) const STATE: Route = Route {
    method: Method::GET,
    pattern: "/v1/updates",
    right: Right::ReadStatus,
    class: Class::Api,
    summary: "How updates of this box stand, with the newest steps.",
    query: &[],
    body: None,
    answers: &[(200, Some("Updates"))],
    problems: &[404],
    handler: handler!(updates::get),
};

pub(super) const INSTALL: Route = Route {
    method: Method::POST,
    right: Right::Update,
    summary: "Checks an update bundle and begins to install it; the state says when that is done.",
    body: Some("NewUpdate"),
    answers: &[(202, Some("Updates"))],
    problems: &[404, 408, 409, 413, 415, 422],
    handler: handler!(updates::install),
    ..STATE
};

pub(super) const ROLLBACK: Route = Route {
    pattern: "/v1/updates/rollback",
    summary: "Lets the version in the other slot be started at the next restart.",
    body: None,
    problems: &[404, 409],
    handler: handler!(updates::rollback),
    ..INSTALL
};

pub(super) const RESTART: Route = Route {
    pattern: "/v1/updates/restart",
    summary: "Starts the box again.",
    handler: handler!(updates::restart),
    ..ROLLBACK
};
