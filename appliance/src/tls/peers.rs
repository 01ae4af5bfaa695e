//! TLS between the nodes of a cluster: 1.3 alone, both ends show a certificate of the ledger's CA that names a node, and
//! nothing else counts: no name of a host, no other authority. Which nodes are members is asked elsewhere, for each message.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::Own;
use super::files::Files;
use crate::secrets::Secrets;

/// What the URI of a node's certificate begins with (a subject alternative name); the node's id follows.
pub(super) const NODE_URI: &str = "urn:samovar:node:";

/// The node that a certificate names, if it names one and no more.
pub(crate) fn node_of(certificate: &CertificateDer<'_>) -> Option<u64> {
    let parsed = EndEntityCert::try_from(certificate).ok()?;
    let mut named = parsed.valid_uri_names().filter_map(|uri| uri.strip_prefix(NODE_URI));
    let id = named.next()?.parse().ok()?;
    named.next().is_none().then_some(id)
}

/// What `rustls` is told whom to expect: it wants a host, and a node is none.
pub(crate) fn server_name(node: u64) -> Result<ServerName<'static>> {
    ServerName::try_from(format!("node-{node}")).context("a node's id")
}

fn expected(name: &ServerName<'_>) -> Option<u64> {
    match name {
        ServerName::DnsName(name) => name.as_ref().strip_prefix("node-")?.parse().ok(),
        _ => None,
    }
}

/// Both ends of TLS with peers.
pub(crate) struct PeerTls {
    /// For calls.
    pub(crate) client: Arc<ClientConfig>,
    /// For answers.
    pub(crate) server: Arc<ServerConfig>,
}

impl PeerTls {
    /// With what is in a data directory. `sure_ms`: the node's sure time, milliseconds since 1970, once it is known (not 0):
    /// certificates do not end by a clock that is not believed.
    pub(crate) fn load(secrets: &Secrets, sure_ms: Arc<AtomicU64>) -> Result<Self> {
        let files = Files::of(secrets);
        let (own, roots) = (Own::read(&files)?, files.roots()?);
        let anchors = roots.iter().map(|root| Ok(anchor_from_trusted_cert(root)?.to_owned()));
        let anchors = anchors.collect::<Result<_>>().context("a certificate in ca.pem is no CA's")?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let members = Arc::new(Certified { anchors, algorithms, sure_ms });
        Ok(Self { client: client(&own, &provider, &members)?, server: server(&own, &provider, &members)? })
    }
}

fn client(own: &Own, provider: &Arc<CryptoProvider>, members: &Arc<Certified>) -> Result<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("choosing TLS 1.3")?
        .dangerous()
        .with_custom_certificate_verifier(members.clone())
        .with_client_auth_cert(own.chain.clone(), own.key.clone_key())
        .context("the node's certificate and key do not fit")?;
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

fn server(own: &Own, provider: &Arc<CryptoProvider>, members: &Arc<Certified>) -> Result<Arc<ServerConfig>> {
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("choosing TLS 1.3")?
        .with_client_cert_verifier(members.clone())
        .with_single_cert(own.chain.clone(), own.key.clone_key())
        .context("the node's certificate and key do not fit")?;
    // Connections last; each new one is checked anew.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// Lets certificates of the cluster's CA pass that name a node.
#[derive(Debug)]
struct Certified {
    anchors: Vec<TrustAnchor<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
    sure_ms: Arc<AtomicU64>,
}

impl Certified {
    /// The node whose certificate this is.
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<u64, Error> {
        let parsed = EndEntityCert::try_from(leaf).map_err(|_| CertificateError::BadEncoding)?;
        let now = match self.sure_ms.load(Relaxed) {
            0 => now,
            sure_ms => UnixTime::since_unix_epoch(Duration::from_millis(sure_ms)),
        };
        parsed.verify_for_usage(self.algorithms.all, &self.anchors, between, now, usage, None, None).map_err(
            |error| match error {
                webpki::Error::CertExpired { .. } => CertificateError::Expired,
                webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
                webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
                _ => CertificateError::BadEncoding,
            },
        )?;
        node_of(leaf).ok_or_else(|| CertificateError::ApplicationVerificationFailure.into())
    }
}

impl ServerCertVerifier for Certified {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let node = self.check(leaf, between, now, KeyUsage::server_auth())?;
        if expected(name) == Some(node) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::NotValidForName.into())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("peers speak TLS 1.3 alone".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Certified {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(leaf, between, now, KeyUsage::client_auth()).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("peers speak TLS 1.3 alone".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
