//! The generator: N connections, each with one request in flight (a closed loop), all on one thread.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::grpc::{Grpc, put_message};
use super::wire::Connection;

/// Bytes of a value.
pub(super) const VALUE_BYTES: usize = 256;
/// Distinct values; enough that no cache or compression helps anybody.
const VALUES: usize = 4096;

/// Name of the n-th key: the same bytes for every server.
pub(super) fn key(n: u64) -> String {
    format!("bench/{n:010}")
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// `PUT /v1/keys/{key}`.
    Put,
    /// `POST /v1/transactions` of one put, the value in base64: the shape that etcd's gateway asks for.
    PutJson,
    /// `GET /v1/keys/{key}`, linearizable.
    Get,
    /// `/v3/kv/put`.
    EtcdPut,
    /// `/v3/kv/range` of one key, linearizable.
    EtcdGet,
    /// `etcdserverpb.KV/Put` by gRPC.
    EtcdPutGrpc,
}

/// Which keys.
#[derive(Debug, Clone, Copy)]
pub(super) enum Keys {
    /// Uniformly at random among so many.
    Random(u64),
    /// Each of so many once.
    Once(u64),
}

/// A server as the generator sees it.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) port: u16,
    /// `None`: plain HTTP.
    pub(super) tls: Option<TlsConnector>,
    pub(super) token: Option<String>,
}

/// One run of the generator.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) ask: Ask,
    pub(super) connections: u64,
    pub(super) keys: Keys,
    /// Ends after so long, or with [`Keys::Once`] when every key was named.
    pub(super) duration: Duration,
    pub(super) seed: u64,
}

/// What a run gave. Every answer was what it had to be.
pub(super) struct Round {
    pub(super) done: u64,
    pub(super) seconds: f64,
    /// Nanoseconds, ascending.
    latencies: Vec<u32>,
}

impl Round {
    pub(super) fn per_second(&self) -> f64 {
        count(self.done) / self.seconds
    }

    /// Latency in µs below which `percent` of the requests were.
    pub(super) fn percentile_us(&self, percent: usize) -> f64 {
        let at = (self.latencies.len() * percent / 100).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(at).map_or(0.0, |ns| f64::from(*ns) / 1000.0)
    }
}

/// A count as a float: all of ours are far below 2^53.
#[allow(clippy::cast_precision_loss)]
pub(super) fn count(n: u64) -> f64 {
    n as f64
}

/// Random values, the same for every server, with their base64 form made beforehand: the generator's time is not what is
/// measured.
pub(super) struct Values {
    plain: Vec<[u8; VALUE_BYTES]>,
    base64: Vec<String>,
}

impl Values {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut value = || {
            let mut bytes = [0; VALUE_BYTES];
            random.fill_bytes(&mut bytes);
            bytes
        };
        let plain: Vec<_> = (0..VALUES).map(|_| value()).collect();
        let base64 = plain.iter().map(|v| BASE64.encode(v)).collect();
        Arc::new(Self { plain, base64 })
    }
}

/// Opens the connections, to each endpoint in turn, then asks until the time is over.
pub(super) async fn run(endpoints: &[Endpoint], load: Load, values: &Arc<Values>) -> Result<Round> {
    let mut clients = Vec::new();
    for (number, endpoint) in (0..load.connections).zip(endpoints.iter().cycle()) {
        let connection = match load.ask {
            Ask::EtcdPutGrpc => Way::Grpc(Grpc::open(endpoint.port).await?),
            _ => Way::Http(Connection::open(endpoint.port, endpoint.tls.as_ref()).await?),
        };
        let random = StdRng::seed_from_u64(load.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let writer = Writer { ask: load.ask, token: endpoint.token.clone(), values: values.clone(), body: Vec::new() };
        clients.push(Client { connection, random, writer, number, load, latencies: Vec::new() });
    }
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for client in clients {
        tasks.spawn(client.run(begun + load.duration));
    }
    let mut latencies = Vec::new();
    while let Some(done) = tasks.join_next().await {
        latencies.extend(done??);
    }
    let seconds = begun.elapsed().as_secs_f64();
    latencies.sort_unstable();
    Ok(Round { done: latencies.len() as u64, seconds, latencies })
}

enum Way {
    Http(Connection),
    Grpc(Grpc),
}

struct Client {
    connection: Way,
    random: StdRng,
    writer: Writer,
    number: u64,
    load: Load,
    latencies: Vec<u32>,
}

impl Client {
    async fn run(mut self, until: Instant) -> Result<Vec<u32>> {
        let mut request = Vec::with_capacity(1024);
        while let Some(n) = self.next_key() {
            let value = self.random.gen_range(0..VALUES);
            let sent = match &mut self.connection {
                Way::Http(connection) => {
                    request.clear();
                    self.writer.write(&mut request, &key(n), value)?;
                    let sent = Instant::now();
                    let answer = connection.exchange(&request).await?;
                    check(self.load.ask, answer.status, answer.body)?;
                    sent
                }
                Way::Grpc(connection) => {
                    let message = put_message(&key(n), &self.writer.values.plain[value]);
                    let sent = Instant::now();
                    connection.put(message).await?;
                    sent
                }
            };
            let now = Instant::now();
            self.latencies.push(u32::try_from((now - sent).as_nanos()).unwrap_or(u32::MAX));
            if now >= until {
                break;
            }
        }
        Ok(self.latencies)
    }

    fn next_key(&mut self) -> Option<u64> {
        match self.load.keys {
            Keys::Random(count) => Some(self.random.gen_range(0..count)),
            Keys::Once(count) => {
                let n = self.number + self.latencies.len() as u64 * self.load.connections;
                (n < count).then_some(n)
            }
        }
    }
}

/// Writes requests.
struct Writer {
    ask: Ask,
    token: Option<String>,
    values: Arc<Values>,
    body: Vec<u8>,
}

impl Writer {
    fn write(&mut self, request: &mut Vec<u8>, key: &str, value: usize) -> Result<()> {
        self.body.clear();
        let base64 = &self.values.base64[value];
        let line = match self.ask {
            Ask::Put => {
                self.body.extend_from_slice(&self.values.plain[value]);
                format!("PUT /v1/keys/{key}")
            }
            Ask::PutJson => {
                let put = format!(r#"{{"key":"{key}","bytes":"{base64}","type":"application/octet-stream"}}"#);
                write!(self.body, r#"{{"operations":[{{"put":{put}}}]}}"#)?;
                "POST /v1/transactions".to_owned()
            }
            Ask::Get => format!("GET /v1/keys/{key}"),
            Ask::EtcdPut => {
                write!(self.body, r#"{{"key":"{}","value":"{base64}"}}"#, BASE64.encode(key))?;
                "POST /v3/kv/put".to_owned()
            }
            Ask::EtcdGet => {
                write!(self.body, r#"{{"key":"{}"}}"#, BASE64.encode(key))?;
                "POST /v3/kv/range".to_owned()
            }
            Ask::EtcdPutGrpc => bail!("gRPC is no HTTP/1.1"),
        };
        write!(request, "{line} HTTP/1.1\r\nhost: localhost\r\n")?;
        if let Some(token) = &self.token {
            write!(request, "authorization: Bearer {token}\r\n")?;
        }
        if self.ask != Ask::Get {
            let media_type = if self.ask == Ask::Put { "application/octet-stream" } else { "application/json" };
            write!(request, "content-type: {media_type}\r\ncontent-length: {}\r\n", self.body.len())?;
        }
        request.extend_from_slice(b"\r\n");
        request.extend_from_slice(&self.body);
        Ok(())
    }
}

/// A run counts only answers that say that the work was done.
fn check(ask: Ask, status: u16, body: &[u8]) -> Result<()> {
    let holds = |word: &str| body.windows(word.len()).any(|w| w == word.as_bytes());
    let good = match ask {
        Ask::Put | Ask::PutJson => (status == 200 || status == 201) && holds("\"transaction\""),
        Ask::Get => status == 200 && body.len() >= VALUE_BYTES,
        Ask::EtcdPut => status == 200 && holds("\"revision\""),
        Ask::EtcdGet => status == 200 && holds("\"value\""),
        // Checked where it is asked.
        Ask::EtcdPutGrpc => false,
    };
    if good {
        return Ok(());
    }
    bail!("{ask:?} was answered with {status}: {}", String::from_utf8_lossy(body));
}
