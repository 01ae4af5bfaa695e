//! The HTTPS client of the commands: HTTP/1.1 with keep-alive, pinned to one certificate authority, every wait and body
//! bounded, and repeating only what is safe to repeat.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper_util::rt::TokioIo;
use samovar_node::rt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

mod anybody;
mod failure;
pub(crate) mod sse;
mod target;
mod upload;

pub(crate) use failure::{Error, Problem};
pub(crate) use target::{DATA_DEFAULT, Target};

use target::{Resolved, Way};
use upload::Outgoing;

/// Longest wait for a connection with its TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a whole answer, unless the request says otherwise.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer, in bytes, unless the request says otherwise: a page of history or keys is far below.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// How long a repeatable request is repeated, unless the request says otherwise.
const PATIENCE: Duration = Duration::from_secs(15);
/// First pause between two tries; doubles with each, up to [`PAUSE_MAX`].
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// Longest pause of our own.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Most connections kept for reuse.
const IDLE_MAX: usize = 32;

type Connection = SendRequest<Outgoing>;

/// A client of one node. Clones are cheap and share their connections.
#[derive(Clone)]
pub(crate) struct Client {
    target: Arc<Resolved>,
    /// Connections with no request on them; the lock is never held across a wait.
    idle: Arc<Mutex<Vec<Connection>>>,
    anonymous: bool,
}

/// A request to be sent, perhaps several times.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
    repeatable: bool,
    patience: Duration,
    answer_timeout: Duration,
    answer_bytes_max: usize,
}

/// A successful (2xx) answer with its whole body.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Headers.
    pub(crate) headers: HeaderMap,
    /// Body.
    pub(crate) body: Bytes,
}

impl Request {
    fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            repeatable: method == Method::GET,
            method,
            path: path.into(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            patience: PATIENCE,
            answer_timeout: ANSWER_TIMEOUT,
            answer_bytes_max: ANSWER_BYTES_MAX,
        }
    }

    /// A read, which may be repeated.
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    /// A write that may be repeated only with [`Request::idempotent`].
    pub(crate) fn write(method: Method, path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::new(method, path) }
    }

    /// Makes a write repeatable: the node applies it once for this key.
    pub(crate) fn idempotent(mut self, key: &str) -> Result<Self, Error> {
        self = self.header("idempotency-key", key)?;
        self.repeatable = true;
        Ok(self)
    }

    /// Adds a header.
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Result<Self, Error> {
        let value =
            HeaderValue::from_str(value).map_err(|_| Error::Usage(format!("{name}: {value:?} fits no header")))?;
        self.headers.insert(HeaderName::from_static(name), value);
        Ok(self)
    }

    /// Says how long the request is repeated while the node is away or busy.
    pub(crate) fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Says how long one answer may take and how large, in bytes, it may be.
    pub(crate) fn bounds(mut self, timeout: Duration, bytes_max: usize) -> Self {
        self.answer_timeout = timeout;
        self.answer_bytes_max = bytes_max;
        self
    }
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Result<serde_json::Value, Error> {
        serde_json::from_slice(&self.body).map_err(|e| Error::Protocol(format!("the node's answer is not JSON: {e}")))
    }

    /// The body as text.
    pub(crate) fn text(&self) -> Result<&str, Error> {
        std::str::from_utf8(&self.body).map_err(|_| Error::Protocol("the node's answer is not UTF-8".into()))
    }

    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl Client {
    /// Reads what the target names. Connects to nothing yet.
    pub(crate) fn open(target: &Target) -> Result<Self, Error> {
        Ok(Self { target: Arc::new(target.resolve()?), idle: Arc::default(), anonymous: false })
    }

    /// The node of a data directory of this machine through its Unix socket, so as the user that this process runs as.
    pub(crate) fn open_local(target: &Target) -> Result<Self, Error> {
        Ok(Self::local(&target.socket()?))
    }

    /// Whoever answers at a URL, with whatever certificate: only for what is checked by other means, and without a token.
    pub(crate) fn to_anybody(url: &str) -> Result<Self, Error> {
        Ok(Self { target: Arc::new(Resolved::unchecked(url)?), idle: Arc::default(), anonymous: true })
    }

    /// The node behind a Unix socket.
    pub(crate) fn local(socket: &std::path::Path) -> Self {
        Self { target: Arc::new(Resolved::local(socket.to_owned())), idle: Arc::default(), anonymous: false }
    }

    /// The same node, asked without a token: a login is nobody's request yet.
    pub(crate) fn without_token(mut self) -> Self {
        self.anonymous = true;
        self
    }

    /// URL of the node.
    pub(crate) fn url(&self) -> &str {
        &self.target.url
    }

    /// Sends a request and reads the whole answer. What is repeatable is repeated after a lost connection, 429, 503 and
    /// "still running" until its patience ends, as the node's `Retry-After` asks.
    pub(crate) async fn send(&self, request: Request) -> Result<Answer, Error> {
        let give_up = Instant::now() + request.patience;
        let mut pause = PAUSE_FIRST;
        loop {
            let error = match self.try_once(&request).await {
                Ok(answer) => return Ok(answer),
                Err(e) => e,
            };
            let wait = error.retry_after().unwrap_or(pause) + jitter(pause);
            if !(request.repeatable && error.is_passing()) || Instant::now() + wait > give_up {
                return Err(error);
            }
            rt::sleep(wait).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn try_once(&self, request: &Request) -> Result<Answer, Error> {
        let Exchange { mut connection, answer, deadline } = self.exchange(request).await?;
        let (head, body) = answer.into_parts();
        let body = timeout_at(deadline, collect(body, request.answer_bytes_max)).await;
        let body = body.map_err(|_| self.late(request))?.map_err(|e| e.at(&self.target.url))?;
        if connection.ready().await.is_ok() {
            self.keep(connection);
        }
        if head.status.is_success() {
            return Ok(Answer { headers: head.headers, body });
        }
        Err(Error::Refused(Box::new(Problem::parse(head.status, &head.headers, &body))))
    }

    /// Opens an endless answer, for events. Its pieces come by [`Stream::next`].
    pub(crate) async fn stream(&self, request: Request) -> Result<Stream, Error> {
        let Exchange { connection, answer, deadline } = self.exchange(&request).await?;
        let (head, body) = answer.into_parts();
        if head.status.is_success() {
            return Ok(Stream { body, url: self.target.url.clone(), _connection: connection });
        }
        let body = timeout_at(deadline, collect(body, request.answer_bytes_max)).await;
        let body = body.map_err(|_| self.late(&request))?.map_err(|e| e.at(&self.target.url))?;
        Err(Error::Refused(Box::new(Problem::parse(head.status, &head.headers, &body))))
    }

    /// Sends on a kept connection, or on a new one when that turns out to be closed before anything was sent.
    async fn exchange(&self, request: &Request) -> Result<Exchange, Error> {
        loop {
            let (mut connection, kept) = match self.take() {
                Some(connection) => (connection, true),
                None => (self.connect().await?, false),
            };
            let deadline = Instant::now() + request.answer_timeout;
            let sent = timeout_at(
                deadline,
                connection.try_send_request(self.message(request, Outgoing::Whole(request.body.clone()))?),
            )
            .await;
            let mut failed = match sent.map_err(|_| self.late(request))? {
                Ok(answer) => return Ok(Exchange { connection, answer, deadline }),
                Err(failed) => failed,
            };
            let unsent = failed.take_message().is_some();
            if !(kept && unsent) {
                let written = !unsent && request.method != Method::GET;
                return Err(Error::lost(&self.target.url, &failed.into_error(), written));
            }
        }
    }

    fn message(&self, request: &Request, body: Outgoing) -> Result<hyper::Request<Outgoing>, Error> {
        let mut message = hyper::Request::new(body);
        *message.method_mut() = request.method.clone();
        *message.uri_mut() = request.path.parse().map_err(|e| Error::Usage(format!("{}: {e}", request.path)))?;
        let headers = message.headers_mut();
        headers.extend(request.headers.clone());
        headers.insert(header::HOST, self.target.authority.clone());
        headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("samovar/", env!("CARGO_PKG_VERSION"))));
        if let Some(bearer) = self.target.bearer.as_ref().filter(|_| !self.anonymous) {
            headers.insert(header::AUTHORIZATION, bearer.clone());
        }
        Ok(message)
    }

    async fn connect(&self) -> Result<Connection, Error> {
        timeout(CONNECT_TIMEOUT, self.connect_unbounded()).await.map_err(|_| Error::Unreachable {
            url: self.target.url.clone(),
            reason: format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
        })?
    }

    async fn connect_unbounded(&self) -> Result<Connection, Error> {
        let unreachable = |e: std::io::Error| Error::unreachable(&self.target.url, &e);
        match &self.target.way {
            Way::Local(socket) => self.begin(UnixStream::connect(socket).await.map_err(unreachable)?).await,
            Way::Tls { host, port, server_name, tls } => {
                let tcp = TcpStream::connect((host.as_str(), *port)).await.map_err(unreachable)?;
                tcp.set_nodelay(true).map_err(unreachable)?;
                let tls = TlsConnector::from(tls.clone()).connect(server_name.clone(), tcp).await;
                self.begin(tls.map_err(unreachable)?).await
            }
        }
    }

    async fn begin(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Connection, Error> {
        let begun = handshake(TokioIo::new(stream)).await;
        let (connection, driver) = begun.map_err(|e| Error::lost(&self.target.url, &e, false))?;
        rt::spawn(async move { driver.await.ok() });
        Ok(connection)
    }

    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|c| !c.is_closed());
        idle.pop()
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }

    fn late(&self, request: &Request) -> Error {
        let (url, reason) = (self.target.url.clone(), "no answer in time".to_owned());
        if request.method == Method::GET { Error::Unreachable { url, reason } } else { Error::Unknown { url, reason } }
    }
}

/// An answer whose head has come.
struct Exchange {
    connection: Connection,
    answer: hyper::Response<Incoming>,
    /// When its body must have come.
    deadline: Instant,
}

/// The body of an endless answer.
pub(crate) struct Stream {
    body: Incoming,
    url: String,
    /// Dropping it would end the connection.
    _connection: Connection,
}

impl Stream {
    /// The next bytes, or `None` when the node ended the answer; silence for longer than `idle` is a lost connection.
    pub(crate) async fn next(&mut self, idle: Duration) -> Result<Option<Bytes>, Error> {
        loop {
            let silent = || Error::Unreachable { url: self.url.clone(), reason: "the connection went silent".into() };
            match timeout(idle, self.body.frame()).await.map_err(|_| silent())? {
                None => return Ok(None),
                Some(Err(e)) => return Err(Error::lost(&self.url, &e, false)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

enum BodyError {
    Lost(hyper::Error),
    TooLarge(usize),
}

impl BodyError {
    fn at(self, url: &str) -> Error {
        match self {
            Self::Lost(e) => Error::lost(url, &e, false),
            Self::TooLarge(max) => Error::Protocol(format!("the answer of {url} is larger than {max} bytes")),
        }
    }
}

async fn collect(mut body: Incoming, bytes_max: usize) -> Result<Bytes, BodyError> {
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(BodyError::Lost)?.into_data() {
            if all.len() + data.len() > bytes_max {
                return Err(BodyError::TooLarge(bytes_max));
            }
            all.extend_from_slice(&data);
        }
    }
    Ok(all.freeze())
}

/// Up to half of the pause, so that many clients do not come back at once.
fn jitter(pause: Duration) -> Duration {
    let mut byte = [0];
    rt::fill_random(&mut byte);
    pause * u32::from(byte[0]) / 512
}

/// Path of a route that ends in a key. `/` stays; whatever is not unreserved is percent-encoded as UTF-8.
pub(crate) fn key_path(route: &str, key: &str) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    const KEEP: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
    format!("{route}/{}", utf8_percent_encode(key, KEEP))
}

/// A query string with its `?`, from the parameters that have a value; empty without any.
pub(crate) fn query(parameters: &[(&str, Option<&str>)]) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    const KEEP: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    let mut text = String::new();
    for (name, value) in parameters {
        if let Some(value) = value {
            text.push(if text.is_empty() { '?' } else { '&' });
            text.push_str(name);
            text.push('=');
            text.extend(utf8_percent_encode(value, KEEP));
        }
    }
    text
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
