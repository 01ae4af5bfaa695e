//! A node for tests: real TLS and HTTP/1.1 on a loopback port, answers by a closure.

use std::convert::Infallible;
use std::future::Future;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::Target;

/// What the closure answers.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    /// One piece: an ordinary body. Several: a stream whose connection breaks after the last.
    pub(crate) pieces: Vec<Vec<u8>>,
    /// Ends the connection after the answer.
    pub(crate) close: bool,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), pieces: vec![body.into()], close: false }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }
}

pub(crate) struct Fake {
    pub(crate) target: Target,
    /// Connections accepted so far.
    pub(crate) connections: Arc<AtomicUsize>,
    _directory: tempfile::TempDir,
}

/// Starts a node on the runtime of the caller.
pub(crate) async fn start<F, R>(answer: F) -> Fake
where
    F: Fn(Request<Bytes>) -> R + Send + Sync + 'static,
    R: Future<Output = Reply> + Send + 'static,
{
    let (acceptor, ca) = authority();
    let directory = tempfile::tempdir().expect("temporary directory");
    let ca_file = directory.path().join("ca.pem");
    std::fs::File::create(&ca_file).and_then(|mut f| f.write_all(ca.as_bytes())).expect("ca.pem");
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a loopback port");
    let url = format!("https://{}", listener.local_addr().expect("address"));
    let connections = Arc::new(AtomicUsize::new(0));
    let (answer, accepted) = (Arc::new(answer), connections.clone());
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            accepted.fetch_add(1, Ordering::SeqCst);
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else { return };
                let service = service_fn(move |request| serve(answer.clone(), request));
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await.ok();
            });
        }
    });
    let target = Target { url: Some(url), ca: Some(ca_file), ..Target::default() };
    Fake { target, connections, _directory: directory }
}

type Body = BoxBody<Bytes, std::io::Error>;

async fn serve<F, R>(answer: Arc<F>, request: Request<hyper::body::Incoming>) -> Result<Response<Body>, Infallible>
where
    F: Fn(Request<Bytes>) -> R + Send + Sync + 'static,
    R: Future<Output = Reply> + Send + 'static,
{
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let mut reply = answer(Request::from_parts(head, body)).await;
    let mut response = Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        response = response.header(*name, value);
    }
    if reply.close {
        response = response.header("connection", "close");
    }
    let body = if reply.pieces.len() == 1 {
        Full::new(Bytes::from(reply.pieces.remove(0))).map_err(|e| match e {}).boxed()
    } else {
        let pieces = stream::iter(reply.pieces.into_iter().map(|p| Ok(Frame::data(Bytes::from(p)))));
        // The break waits until the pieces are through: hyper drops what it still buffers.
        let broken = stream::once(async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Err(std::io::Error::other("broken on purpose"))
        });
        BodyExt::boxed(StreamBody::new(pieces.chain(broken)))
    };
    Ok(response.body(body).expect("a response"))
}

fn authority() -> (TlsAcceptor, String) {
    let ca_key = rcgen::KeyPair::generate().expect("key");
    let mut ca = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).expect("certificate").pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().expect("key");
    let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).expect("parameters");
    let leaf = leaf.signed_by(&key, &issuer).expect("certificate");
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .expect("certificate and key");
    (TlsAcceptor::from(Arc::new(config)), ca_pem)
}
