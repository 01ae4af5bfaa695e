//! The routes about the nodes of the cluster.

use hyper::Method;

use super::super::{Route, cluster};
use crate::auth::Right;
use crate::quota::Class;

pub(super) const CLUSTER: Route = Route {
    method: Method::GET,
    pattern: "/v1/cluster",
    right: Right::ReadStatus,
    class: Class::Api,
    summary: "How the cluster is, as this node knows it; needs no leader.",
    query: &[],
    body: None,
    answers: &[(200, Some("Cluster"))],
    problems: &[],
    handler: handler!(cluster::cluster),
};

pub(super) const NODES: Route = Route {
    pattern: "/v1/cluster/nodes",
    summary: "How every node is, and how old that is.",
    answers: &[(200, Some("ClusterNodes"))],
    handler: handler!(cluster::nodes),
    ..CLUSTER
};

pub(super) const NODE: Route = Route {
    pattern: "/v1/cluster/nodes/{name}",
    summary: "How one node is.",
    answers: &[(200, Some("ClusterNode"))],
    problems: &[404],
    handler: handler!(cluster::node),
    ..CLUSTER
};

pub(super) const REMOVE: Route = Route {
    method: Method::DELETE,
    pattern: "/v1/cluster/nodes/{name}",
    right: Right::ManageNodes,
    summary: "Takes a node out of the cluster, for good.",
    answers: &[(200, Some("ChangedNode"))],
    problems: &[404, 409, 412, 507],
    handler: handler!(cluster::remove),
    ..CLUSTER
};

pub(super) const PROMOTE: Route = Route {
    method: Method::POST,
    pattern: "/v1/cluster/nodes/{name}/promote",
    summary: "Makes a learner a voter, once it lags little.",
    problems: &[404, 412, 507],
    handler: handler!(cluster::promote),
    ..REMOVE
};

pub(super) const DRAIN: Route = Route {
    method: Method::POST,
    pattern: "/v1/cluster/nodes/{name}/drain",
    right: Right::ServeNodes,
    summary: "Takes a node out of service: it gets the permit to go down, and hands the lead over.",
    body: Some("Drain"),
    problems: &[403, 404, 408, 409, 412, 413, 415, 422, 507],
    handler: handler!(cluster::drain),
    ..REMOVE
};

pub(super) const RESUME: Route = Route {
    method: Method::POST,
    pattern: "/v1/cluster/nodes/{name}/resume",
    right: Right::ServeNodes,
    summary: "Puts a node back into service, and gives the permit back.",
    problems: &[404, 412, 507],
    handler: handler!(cluster::resume),
    ..REMOVE
};

pub(super) const FORMAT: Route = Route {
    pattern: "/v1/cluster/format",
    summary: "Which format of commands is in force, and what keeps a newer one from it.",
    answers: &[(200, Some("Format"))],
    handler: handler!(cluster::format),
    ..CLUSTER
};

pub(super) const FINALIZE: Route = Route {
    method: Method::POST,
    pattern: "/v1/cluster/format",
    summary: "Puts the newest format in force, once every node and its spare slot reads it; there is no way back.",
    answers: &[(200, Some("Format"))],
    problems: &[409, 412, 507],
    handler: handler!(cluster::finalize),
    right: Right::Update,
    ..REMOVE
};

pub(super) const PERMITS: Route = Route {
    pattern: "/v1/permits",
    summary: "Who has the permit to go down.",
    answers: &[(200, Some("Permits"))],
    handler: handler!(cluster::permits),
    ..CLUSTER
};

pub(super) const NEW_PERMIT: Route = Route {
    method: Method::POST,
    pattern: "/v1/permits",
    right: Right::ServeNodes,
    summary: "Asks for the permit to go down, for one node.",
    body: Some("NewPermit"),
    answers: &[(201, Some("Permit"))],
    problems: &[403, 404, 408, 409, 412, 413, 415, 422, 507],
    handler: handler!(cluster::acquire),
    ..CLUSTER
};

pub(super) const RELEASE_PERMIT: Route = Route {
    method: Method::DELETE,
    pattern: "/v1/permits/{name}",
    right: Right::ServeNodes,
    summary: "Gives the permit back.",
    answers: &[(204, None)],
    problems: &[404, 409, 412, 507],
    handler: handler!(cluster::release),
    ..CLUSTER
};

pub(super) const NEW_TOKEN: Route = Route {
    method: Method::POST,
    pattern: "/v1/cluster/join-tokens",
    right: Right::ManageNodes,
    summary: "Makes a token with which one node may join.",
    body: Some("NewJoinToken"),
    answers: &[(201, Some("IssuedJoinToken"))],
    problems: &[404, 408, 409, 412, 413, 415, 422, 507],
    handler: handler!(cluster::create_token),
    ..CLUSTER
};

pub(super) const TOKENS: Route = Route {
    pattern: "/v1/cluster/join-tokens",
    right: Right::ManageNodes,
    summary: "Join tokens, without their secrets.",
    answers: &[(200, Some("JoinTokens"))],
    handler: handler!(cluster::list_tokens),
    ..CLUSTER
};

pub(super) const REVOKE_TOKEN: Route = Route {
    method: Method::DELETE,
    pattern: "/v1/cluster/join-tokens/{id}",
    right: Right::ManageNodes,
    summary: "Revokes a join token.",
    answers: &[(204, None)],
    problems: &[404, 412, 507],
    handler: handler!(cluster::delete_token),
    ..CLUSTER
};

pub(super) const AUTHORITY: Route = Route {
    pattern: "/v1/cluster/ca",
    right: Right::Anyone,
    summary: "The CA certificates of the ledger, in PEM. Who does not trust them yet compares a hash.",
    answers: &[(200, Some("text/plain"))],
    handler: handler!(cluster::authority),
    ..CLUSTER
};

pub(super) const JOIN: Route = Route {
    method: Method::POST,
    pattern: "/v1/cluster/join",
    right: Right::Anyone,
    class: Class::Login,
    summary: "Admits a node that shows a join token.",
    body: Some("Joining"),
    answers: &[(201, Some("Joined"))],
    problems: &[403, 404, 408, 409, 413, 415, 422, 507],
    handler: handler!(cluster::join),
    ..CLUSTER
};
