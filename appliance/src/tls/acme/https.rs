//! How the authority is talked to: HTTPS with HTTP/1.1, one request a connection (an order has about twelve), every wait and
//! answer bounded.

use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{HOST, HeaderValue, RETRY_AFTER};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore};
use samovar_node::rt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Time for one request with its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest answer, in bytes; a chain of certificates has some 10 KiB.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Where systems keep their roots: Debian and Alpine, Fedora, SUSE.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// A client of one authority.
#[derive(Clone)]
pub(super) struct Https {
    tls: Arc<ClientConfig>,
    /// What the last refusal asked for.
    retry_after: Arc<Mutex<Option<Duration>>>,
}

impl Https {
    /// Trusts the roots of a file, or the system's. `now_s`: the time that certificates must hold at.
    pub(super) fn new(roots: Option<&Path>, now_s: u64) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let now = Arc::new(At(UnixTime::since_unix_epoch(Duration::from_secs(now_s))));
        let mut tls = ClientConfig::builder_with_details(provider, now)
            .with_safe_default_protocol_versions()
            .context("choosing TLS versions")?
            .with_root_certificates(self::roots(roots)?)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: Arc::new(tls), retry_after: Arc::default() })
    }

    /// How long the authority asked to be left alone, at its last refusal.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        *self.retry_after.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, mut request: Request<BodyWrapper<Bytes>>) -> Result<Response<Full<Bytes>>> {
        let uri = request.uri().clone();
        let (Some("https"), Some(host)) = (uri.scheme_str(), uri.host()) else {
            bail!("the authority names {uri}, which is no https URL");
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(443);
        let authority = uri.authority().context("a URL without a host")?.as_str();
        request.headers_mut().insert(HOST, HeaderValue::from_str(authority)?);
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse::<Uri>()?;

        let tcp = TcpStream::connect((host, port)).await.with_context(|| format!("connecting to {authority}"))?;
        let name = ServerName::try_from(host.to_owned()).context("the host is neither a name nor an address")?;
        let tls = TlsConnector::from(self.tls.clone()).connect(name, tcp).await;
        let tls = tls.with_context(|| format!("the TLS handshake with {authority}"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
        let driver = rt::spawn(connection);
        let answer = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|e| anyhow!("the answer of {authority} cannot be read: {e}"))?;
            anyhow::Ok(Response::from_parts(head, Full::new(body.to_bytes())))
        };
        let answer = answer.await;
        driver.abort();
        let answer = answer?;
        let failed = answer.status().is_client_error() || answer.status().is_server_error();
        *self.retry_after.lock().unwrap_or_else(PoisonError::into_inner) =
            answer.headers().get(RETRY_AFTER).filter(|_| failed).and_then(wait);
        Ok(answer)
    }
}

impl HttpClient for Https {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.clone();
        Box::pin(async move {
            let uri = request.uri().clone();
            let sent = rt::timeout(REQUEST_TIMEOUT, client.send(request)).await;
            let answer = sent.unwrap_or_else(|_| Err(anyhow!("no answer within {} s", REQUEST_TIMEOUT.as_secs())));
            let answer = answer.with_context(|| format!("asking {uri}"));
            // One line: the source of an error is not asked for later.
            answer.map(BytesResponse::from).map_err(|error| Error::Other(format!("{error:#}").into()))
        })
    }
}

/// Seconds, or a date as HTTP writes them (RFC 9110, 10.2.3).
fn wait(value: &HeaderValue) -> Option<Duration> {
    use time::format_description::well_known::Rfc2822;
    use time::{OffsetDateTime, UtcOffset};
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = OffsetDateTime::parse(&text.replace("GMT", "+0000"), &Rfc2822).ok()?.to_offset(UtcOffset::UTC);
    let at_s = u64::try_from(date.unix_timestamp()).ok()?;
    Some(Duration::from_secs(at_s.saturating_sub(rt::now_ms() / 1000)))
}

/// The roots to trust.
fn roots(named: Option<&Path>) -> Result<RootCertStore> {
    let path = match named {
        Some(path) => path,
        None => SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists()).with_context(|| {
            format!(
                "this system has no roots to trust the directory by ({} is not there): install ca-certificates, or name a \
                 file in acme.roots",
                SYSTEM_ROOTS[0]
            )
        })?,
    };
    let shown = path.display();
    let mut roots = RootCertStore::empty();
    let all = CertificateDer::pem_file_iter(path).with_context(|| format!("reading the roots in {shown}"))?;
    let all: Vec<_> = all.collect::<Result<_, _>>().with_context(|| format!("{shown} holds no roots in PEM"))?;
    let (good, _) = roots.add_parsable_certificates(all);
    if good == 0 {
        bail!("{shown} holds no root certificate in PEM: see acme.roots");
    }
    Ok(roots)
}

/// A time that stands still: the latest that this machine knows of, whatever its wall clock says.
#[derive(Debug)]
struct At(UnixTime);

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let soon = rt::now_ms() / 1000 + 3600;
        let date = time::OffsetDateTime::from_unix_timestamp(soon.cast_signed()).expect("a time");
        let date =
            date.format(&time::format_description::well_known::Rfc2822).expect("formatted").replace("+0000", "GMT");
        for (text, least, most) in
            [("120", 120, 120), (date.as_str(), 3595, 3600), ("Fri, 31 Dec 1999 23:59:59 GMT", 0, 0)]
        {
            let got = wait(&HeaderValue::from_str(text).expect(text)).map(|wait| wait.as_secs());
            assert!(
                got.is_some_and(|s| (least..=most).contains(&s)),
                "{text}: {least} to {most} s expected, got {got:?}"
            );
        }
        for text in ["", "soon", "-1", "1.5"] {
            assert_eq!(wait(&HeaderValue::from_str(text).expect(text)), None, "{text:?}");
        }
    }

    #[test]
    fn roots_that_are_none_are_refused_with_what_to_do() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for (path, want) in [(file.path(), "see acme.roots"), (Path::new("/nowhere/roots.pem"), "reading the roots in")]
        {
            let refused = roots(Some(path)).err().map(|e| format!("{e:#}")).unwrap_or_default();
            assert!(refused.contains(want), "{}: expected {want:?} in {refused:?}", path.display());
        }
    }
}
