//! The API: every route with the right it needs in one table, and the way of a request through it.
//!
//! [`ROUTES`] is also what `/openapi.json` is made from and what decides which query parameters a route takes.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use hyper::http::request::Parts;
use hyper::{Method, Response};
use samovar_node::command::Committed;
use samovar_node::{Key, Node, Outcome, Write, rt};

use crate::auth::{Auth, Principal, Right};
use crate::config::{Config, Network};
use crate::http::{Answer, Asked, Handler, Limits, Payload, Peer, Reply, RequestBody};
use crate::live::Live;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::quota::{Class, Limiter, Quotas, Told};
use crate::secrets::Secrets;
use crate::tls::Certificates;

mod access;
mod api_keys;
mod blobs;
mod certificates;
mod clock;
mod cluster;
mod entries;
mod feed;
mod idempotency;
mod keys;
mod log;
mod log_level;
mod login;
mod node;
pub(crate) mod problem;
mod profiles;
mod query;
mod render;
mod routes;
mod tls;
mod transactions;
mod updates;
mod users;

pub(crate) use node::tell_peers;
pub(crate) use routes::ROUTES;

/// Whether JSON may be a value in the body of `POST /v1/transactions`; for what is to be sent there.
pub(crate) use transactions::check_within as check_json_within;

use idempotency::Running;
use problem::Problem;
use query::Values;

/// What a handler returns.
pub(crate) type Handled = Result<Response<Payload>, Problem>;
type HandledFuture = Pin<Box<dyn Future<Output = Handled> + Send>>;

/// One route.
pub(crate) struct Route {
    /// Method; GET stands for HEAD too.
    pub(crate) method: Method,
    /// Path with at most one `{parameter}`; one at the end takes `/` too if its name is `key` or `tile`.
    pub(crate) pattern: &'static str,
    /// What it needs.
    pub(crate) right: Right,
    /// Which limits it counts against.
    pub(crate) class: Class,
    /// One line for the documentation.
    pub(crate) summary: &'static str,
    /// Query parameters that it takes; others are refused.
    pub(crate) query: &'static [Parameter],
    /// What the body is: name of a schema, `bytes`, or nothing.
    pub(crate) body: Option<&'static str>,
    /// Successful answers: status and name of a schema, a media type, or nothing.
    pub(crate) answers: &'static [(u16, Option<&'static str>)],
    /// Statuses of problems beyond those that every route has.
    pub(crate) problems: &'static [u16],
    /// Does the work.
    pub(crate) handler: fn(Call) -> HandledFuture,
}

/// A query parameter.
pub(crate) struct Parameter {
    /// Name.
    pub(crate) name: &'static str,
    /// What it takes.
    pub(crate) takes: Takes,
    /// For the documentation.
    pub(crate) doc: &'static str,
}

/// Values of a query parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    /// Any text.
    Text,
    /// A whole number between these, both included.
    Number(u64, u64),
    /// One of these.
    OneOf(&'static [&'static str]),
}

/// What handlers share.
pub(crate) struct App {
    /// The ledger.
    pub(crate) node: Node,
    /// The other nodes of the cluster.
    pub(crate) peers: Peers,
    /// Credentials.
    pub(crate) auth: Auth,
    /// What TLS serves.
    pub(crate) certificates: Arc<Certificates>,
    /// Metrics.
    pub(crate) metrics: Arc<Metrics>,
    /// What needs no token.
    pub(crate) openness: Live<Openness>,
    /// How many requests are taken.
    limiter: Limiter,
    /// Bounds of the listener; here for the number of watches.
    pub(crate) limits: Live<Limits>,
    /// Data directory.
    pub(crate) data: std::path::PathBuf,
    /// Where the box's updater keeps its files, if this is a box.
    pub(crate) updates: std::path::PathBuf,
    /// How long a session lasts, in milliseconds.
    pub(crate) session_life_ms: u64,
    /// Turns true when the daemon begins to stop.
    pub(crate) stop: tokio::sync::watch::Receiver<bool>,
    /// When the daemon was ready.
    pub(crate) started: std::time::Instant,
    running: Running,
    /// Held while certificates are rotated: one rotation at a time.
    pub(crate) rotating: tokio::sync::Mutex<()>,
}

/// What needs no token.
#[derive(Debug, Clone)]
pub(crate) struct Openness {
    /// Whether checkpoint and tiles are for everybody.
    pub(crate) public: bool,
    /// Networks that may read metrics.
    pub(crate) metrics_allow: Vec<Network>,
}

impl Openness {
    /// As configured.
    pub(crate) fn of(config: &Config) -> Self {
        Self { public: config.public, metrics_allow: config.metrics_allow.clone() }
    }
}

impl App {
    /// An API over a node. Called on the runtime of the listener.
    pub(crate) fn new(
        (node, peers): (Node, Peers),
        (config, secrets): (&Config, &Secrets),
        live: (Live<Limits>, Live<Openness>, Live<Quotas>),
        certificates: Arc<Certificates>,
        metrics: Arc<Metrics>,
        stop: tokio::sync::watch::Receiver<bool>,
    ) -> Arc<Self> {
        let clients = certificates.clients.clone();
        rt::spawn(Auth::follow_certificates(node.clone(), clients.clone()));
        Arc::new(Self {
            auth: Auth::new(node.clone(), secrets, clients, &metrics),
            node,
            peers,
            certificates,
            metrics,
            limits: live.0,
            openness: live.1,
            data: config.data.clone(),
            updates: config.updates.clone(),
            limiter: Limiter::new(live.2),
            session_life_ms: config.session_life_ms,
            stop,
            started: std::time::Instant::now(),
            running: Running::default(),
            rotating: tokio::sync::Mutex::default(),
        })
    }

    /// The handler of the listener.
    pub(crate) fn handler(self: &Arc<Self>) -> Handler {
        let app = self.clone();
        Arc::new(move |asked| {
            let found = find(&asked.head.method, asked.head.uri.path());
            let route = found.as_ref().map_or("-", |(route, _)| route.pattern);
            Reply { route, answer: Box::pin(dispatch(app.clone(), asked, found)) }
        })
    }
}

/// One request on its way through a handler.
pub(crate) struct Call {
    /// What handlers share.
    pub(crate) app: Arc<App>,
    /// Who asks.
    pub(crate) principal: Arc<Principal>,
    /// Header of the request.
    pub(crate) head: Parts,
    body: Option<RequestBody>,
    /// Who is at the other end of the connection.
    pub(crate) peer: Peer,
    /// Query parameters, each at most once, all known to the route.
    pub(crate) query: Values,
    captured: std::ops::Range<usize>,
}

/// A route, and where its parameter lies in the path.
type Found = Result<(&'static Route, std::ops::Range<usize>), Problem>;

async fn dispatch(app: Arc<App>, asked: Asked, found: Found) -> Answer {
    let Asked { head, body, peer, id } = asked;
    let (route, captured) = match found {
        Ok(found) => found,
        Err(problem) => return Answer::refused(problem, &id),
    };
    let (mut actor, mut told) = (None, app.limiter.network(route.class, &peer));
    let handled = async {
        told.as_ref().map_or(Ok(()), Told::check)?;
        let principal = admit(&app, route.right, &head, &peer).await?;
        actor = Some(principal.id.clone());
        let own = app.limiter.principal(route.class, &principal, &peer);
        let checked = own.as_ref().map_or(Ok(()), Told::check);
        told = Told::nearer(told.take(), own);
        checked?;
        let query = Values::parse(head.uri.query(), route.query)?;
        if route.body.is_none() {
            body.refuse()?;
        }
        (route.handler)(Call { app: app.clone(), principal, head, body: Some(body), peer, query, captured }).await
    }
    .await;
    let mut response = handled.unwrap_or_else(|problem| problem.into_response(id.as_str()));
    if let Some(told) = told {
        told.dress(&mut response);
    }
    Answer { response, route: route.pattern, actor }
}

/// The route of a method and path.
fn find(method: &Method, path: &str) -> Found {
    let asked = if *method == Method::HEAD { &Method::GET } else { method };
    let mut allowed = Vec::new();
    for route in ROUTES {
        let Some(captured) = capture(route.pattern, path) else { continue };
        if route.method == *asked {
            return Ok((route, captured));
        }
        allowed.push(route.method.as_str());
        if route.method == Method::GET {
            allowed.push("HEAD");
        }
    }
    if allowed.is_empty() { Err(Problem::no_route()) } else { Err(Problem::method_not_allowed(&allowed.join(", "))) }
}

/// Where the parameter of a pattern lies in a path that matches it.
fn capture(pattern: &str, path: &str) -> Option<std::ops::Range<usize>> {
    let Some((prefix, rest)) = pattern.split_once('{') else {
        return (pattern == path).then_some(0..0);
    };
    let (name, suffix) = rest.split_once('}')?;
    let middle = path.strip_prefix(prefix)?.strip_suffix(suffix)?;
    let takes_slash = matches!(name, "key" | "tile");
    (takes_slash || !middle.contains('/')).then(|| prefix.len()..prefix.len() + middle.len())
}

/// Who asks, if it may do what the route does.
async fn admit(app: &App, right: Right, head: &Parts, peer: &Peer) -> Result<Arc<Principal>, Problem> {
    let open = match right {
        Right::ReadLog => app.openness.get().public,
        Right::ReadMetrics => app.openness.get().metrics_allow.iter().any(|n| n.contains(peer.address)),
        other => other.is_open(),
    };
    if open {
        return Ok(Arc::new(Principal::anonymous()));
    }
    let principal = app.auth.authenticate(&head.headers, peer).await?;
    principal.require(right)?;
    Ok(principal)
}

impl Call {
    /// What stands in the path for the route's parameter, as it was sent.
    pub(crate) fn captured(&self) -> &str {
        self.head.uri.path().get(self.captured.clone()).unwrap_or("")
    }

    /// The key in the path, decoded, if the principal may touch it.
    pub(crate) fn key(&self) -> Result<Key, Problem> {
        let key = Key::client(&decode(self.captured())?).map_err(Problem::key)?;
        self.allow(key.as_str())?;
        Ok(key)
    }

    /// The whole number in the path.
    pub(crate) fn number(&self, what: &'static str) -> Result<u64, Problem> {
        query::whole_number(self.captured())
            .ok_or_else(|| Problem::invalid(format!("{what} in the path must be a whole number")))
    }

    /// Reads the body; a second time there is none.
    pub(crate) async fn read(mut self, bytes_max: usize) -> Result<(Self, Bytes), Problem> {
        let bytes = match self.body.take() {
            Some(body) => body.read(bytes_max).await?,
            None => Bytes::new(),
        };
        Ok((self, bytes))
    }

    /// Refuses a key outside the principal's prefixes.
    pub(crate) fn allow(&self, key: &str) -> Result<(), Problem> {
        if self.principal.covers(key) {
            return Ok(());
        }
        Err(Problem::forbidden("the key is outside the prefixes that you are limited to"))
    }

    /// Hands a transaction to the node; a refusal is a problem.
    pub(crate) async fn commit(&self, write: Write) -> Result<Committed, Problem> {
        let _running = match &write.idempotency {
            Some(idempotency) => Some(self.app.running.claim(&self.principal.id, &idempotency.key)?),
            None => None,
        };
        let outcome = self.app.node.write(write).await;
        self.app.metrics.transaction(&outcome);
        match outcome? {
            Outcome::Committed(committed) => Ok(committed),
            Outcome::Refused(refusal) => Err(refusal.into()),
        }
    }
}

/// Percent-decoding as RFC 3986 has it, strictly: every `%` with two hex digits, and UTF-8 underneath.
pub(crate) fn decode(text: &str) -> Result<Cow<'_, str>, Problem> {
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    let bytes = text.as_bytes();
    let malformed = bytes.iter().enumerate().filter(|(_, b)| **b == b'%').any(|(i, _)| {
        let digits = bytes.get(i + 1..i + 3);
        !digits.is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit))
    });
    if malformed {
        return Err(Problem::invalid("a % in the request target is not followed by two hex digits"));
    }
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| Problem::invalid("the request target is not UTF-8 once decoded"))
}

#[cfg(test)]
mod tests;
