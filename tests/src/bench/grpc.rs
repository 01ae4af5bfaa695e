//! etcd's own protocol: one HTTP/2 connection, one unary call in flight.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// How long a call may take.
const DEADLINE: Duration = Duration::from_secs(30);
const BYTES_FIELD_1: u8 = 0x0a;
const BYTES_FIELD_2: u8 = 0x12;

pub(super) struct Grpc {
    send: SendRequest<Full<Bytes>>,
    uri: String,
}

fn field(message: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    message.push(tag);
    let mut length = bytes.len();
    while length >= 0x80 {
        message.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
        length >>= 7;
    }
    message.push(u8::try_from(length).unwrap_or(0));
    message.extend_from_slice(bytes);
}

/// A `PutRequest` as gRPC frames it: not compressed, its length, the message.
pub(super) fn put_message(key: &str, value: &[u8]) -> Bytes {
    let mut message = vec![0; 5];
    field(&mut message, BYTES_FIELD_1, key.as_bytes());
    field(&mut message, BYTES_FIELD_2, value);
    let length = u32::try_from(message.len() - 5).unwrap_or(u32::MAX);
    message[1..5].copy_from_slice(&length.to_be_bytes());
    message.into()
}

impl Grpc {
    pub(super) async fn open(port: u16) -> Result<Self> {
        let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
        tcp.set_nodelay(true)?;
        let (send, connection) = handshake(TokioExecutor::new(), TokioIo::new(tcp)).await?;
        tokio::spawn(connection);
        Ok(Self { send, uri: format!("http://127.0.0.1:{port}/etcdserverpb.KV/Put") })
    }

    /// Calls `Put`; the answer must say that it was done.
    pub(super) async fn put(&mut self, message: Bytes) -> Result<()> {
        let request = Request::post(&self.uri).header("content-type", "application/grpc").header("te", "trailers");
        self.send.ready().await?;
        let answer = self.send.send_request(request.body(Full::new(message))?);
        let answer = tokio::time::timeout(DEADLINE, answer).await.context("no answer by gRPC")??;
        let status = |headers: &hyper::HeaderMap| headers.get("grpc-status").map(|s| s.as_bytes().to_vec());
        let (at_once, code) = (status(answer.headers()), answer.status());
        let body = answer.into_body().collect().await?;
        let status = body.trailers().and_then(status).or(at_once);
        ensure!(code == 200, "gRPC was answered with {code}");
        if status.as_deref() != Some(b"0") {
            bail!("gRPC put: status {:?}", status.map(|s| String::from_utf8_lossy(&s).into_owned()));
        }
        ensure!(body.to_bytes().len() > 5, "gRPC put: an empty answer");
        Ok(())
    }
}
