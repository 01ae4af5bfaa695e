//! The routes that replace secrets of the ledger.

use hyper::Method;

use super::super::{Route, api_keys, log, login, tls};
use super::parameters::{GRACE, OLD, ROLL_OVER};
use crate::auth::Right;
use crate::quota::Class;

pub(super) const SESSION_KEYS: Route = Route {
    method: Method::POST,
    pattern: "/v1/session-keys",
    right: Right::Rotate,
    class: Class::Api,
    summary: "Replaces the keys that sign session tokens.",
    query: &[OLD],
    body: None,
    answers: &[(201, Some("RotatedKey"))],
    problems: &[409, 412, 507],
    handler: handler!(login::rotate),
};

pub(super) const TLS_NODE: Route = Route {
    pattern: "/v1/tls/node",
    summary: "Replaces the node's TLS key and certificate.",
    query: &[],
    answers: &[(201, Some("RotatedCertificate"))],
    handler: handler!(tls::rotate_node),
    ..SESSION_KEYS
};

pub(super) const TLS_CA: Route = Route {
    pattern: "/v1/tls/ca",
    summary: "Begins a roll-over to a new CA, during which clients may trust the old one or the new one; or ends it.",
    query: &[ROLL_OVER],
    handler: handler!(tls::rotate_ca),
    ..TLS_NODE
};

pub(super) const LOG_KEY: Route = Route {
    pattern: "/v1/log/key",
    right: Right::RotateLogKey,
    summary: "Replaces the key that signs the log; answers when the old one is destroyed.",
    query: &[],
    answers: &[(201, Some("RotatedLogKey"))],
    problems: &[507],
    handler: handler!(log::rotate_key),
    ..SESSION_KEYS
};

pub(super) const API_KEY: Route = Route {
    pattern: "/v1/api-keys/{id}/successor",
    right: Right::ManageAccess,
    summary: "Makes an API key with the rights of this one, which ends now or after a while.",
    query: &[GRACE],
    answers: &[(201, Some("IssuedApiKey"))],
    problems: &[404, 409, 412, 507],
    handler: handler!(api_keys::rotate),
    ..SESSION_KEYS
};
