//! TLS: a CA of the ledger's own and a certificate of the node, made by `init`, renewed by themselves, rotated by command.
//!
//! `ca.pem` in the data directory is for clients (0644); `tls/` holds the keys (0600). The CA is constrained to this
//! machine's names, to local domains and to private addresses: whoever steals its key can imitate nobody else.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

mod acme;
mod authority;
mod certificates;
mod clients;
mod files;
mod peers;
mod request;
mod site;
mod validity;

pub(crate) use acme::{AcmeSettings, Responder};
pub(crate) use authority::{Subject, Times, is_dns_name};
pub(crate) use certificates::{Certificates, Shown, Standing};
pub(crate) use clients::{ClientKeys, key_hash};
pub(crate) use peers::{PeerTls, node_of, server_name};
pub(crate) use request::PEM_BYTES_MAX as REQUEST_BYTES_MAX;
pub(crate) use site::{SiteSource, SiteStanding};

use clients::AnyKey;
use files::Files;
use site::{Presented, Served};

use crate::live::Live;
use crate::secrets::Secrets;

/// CA certificates, for clients, in the data directory.
pub(crate) const CA_FILE: &str = "ca.pem";
/// Directory of the keys, in the data directory.
const DIRECTORY: &str = "tls";
const NODE_CERTIFICATE_FILE: &str = "node.pem";

/// Makes CA, node certificate and their keys in a new data directory.
pub(crate) fn make(secrets: &Secrets, subject: &Subject) -> Result<()> {
    Files::of(secrets).make(subject, Times::wall())
}

/// Makes the key of a node that joins, in a new data directory; its certificate request, in PEM.
pub(crate) fn make_request(secrets: &Secrets) -> Result<String> {
    Files::of(secrets).make_request()
}

/// Keeps the certificate that a node which joins got for its request, and the CAs.
pub(crate) fn accept(secrets: &Secrets, certificate: &str, roots: &str) -> Result<()> {
    Files::of(secrets).accept(certificate, roots)
}

/// The CA's private key in PEM, if this node has it.
pub(crate) fn authority_key(secrets: &Secrets) -> Result<Option<String>> {
    Files::of(secrets).authority_key()
}

/// Keeps the CA's private key, which another voter gave.
pub(crate) fn take_authority_key(secrets: &Secrets, key: &str) -> Result<()> {
    Files::of(secrets).take_authority_key(key)
}

/// SHA-256 of the public key of a CA in PEM, the first one: what a join token pins.
pub(crate) fn pin_of(roots: &str) -> Option<[u8; 32]> {
    key_hash(&CertificateDer::from_pem_slice(roots.as_bytes()).ok()?)
}

/// The certificates of a data directory, without any key: what clients see of the node, and the CA.
pub(crate) fn certificates(data: &Path) -> [(&'static str, PathBuf); 2] {
    [("node", data.join(DIRECTORY).join(NODE_CERTIFICATE_FILE)), ("ca", data.join(CA_FILE))]
}

/// When the certificates in use end, seconds since 1970: `node`, as it is served, and `ca`. One that does not say so is left
/// out.
pub(crate) fn expiries(data: &Path) -> impl Iterator<Item = (&'static str, u64)> {
    certificates(data).into_iter().filter_map(|(certificate, path)| {
        let der = CertificateDer::from_pem_file(&path).ok()?;
        Some((certificate, validity::of(&der)?.not_after_s))
    })
}

/// The names and addresses of `subject` for which clients would refuse the node's certificate now, with the reasons.
///
/// # Errors
/// When a certificate cannot be read.
pub(crate) fn refused_names(secrets: &Secrets, subject: &Subject) -> Result<Vec<(String, String)>> {
    Files::of(secrets).refused(subject, Times::wall())
}

/// The site's certificate as files have it: its names and its end, seconds since 1970. `None` if there is none, or none yet.
///
/// # Errors
/// When one is there and not good.
pub(crate) fn site_certificate(secrets: &Secrets, source: &SiteSource) -> Result<Option<(Vec<String>, u64)>> {
    site::inspect(secrets, source)
}

/// TLS with what is in a data directory.
pub(crate) fn load(secrets: &Secrets) -> Result<Arc<rustls::ServerConfig>> {
    let own = Own::read(&Files::of(secrets))?;
    let clients = Arc::new(ClientKeys::new(own.hash));
    own.config(&clients, Live::new(None))
}

/// What the node proves itself with.
struct Own {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    /// Of its public key.
    hash: [u8; 32],
}

impl Own {
    fn read(files: &Files) -> Result<Self> {
        let (chain, (pem, path)) = (files.chain()?, files.node_key()?);
        let shown = path.display();
        let key = PrivateKeyDer::from_pem_slice(&pem)
            .with_context(|| format!("{shown} holds no private key in PEM: restore it from a backup"))?;
        let hash = chain.first().and_then(key_hash).context("the node's certificate in tls/ is none: restore it")?;
        Ok(Self { chain, key, hash })
    }

    /// Whether key and certificate fit each other.
    fn check(&self) -> Result<()> {
        self.certified().map(drop)
    }

    fn certified(&self) -> Result<CertifiedKey> {
        let provider = rustls::crypto::ring::default_provider();
        CertifiedKey::from_der(self.chain.clone(), self.key.clone_key(), &provider)
            .context("the node's certificate and key in tls/ do not fit: restore both from a backup")
    }

    /// TLS with it, and under the site's names with what stands in `site`.
    fn config(self, clients: &Arc<ClientKeys>, site: Live<Option<Served>>) -> Result<Arc<rustls::ServerConfig>> {
        let presented = Presented { local: Arc::new(self.certified()?), site };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = AnyKey { keys: clients.clone(), algorithms: provider.signature_verification_algorithms };
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .context("choosing TLS versions")?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(presented));
        // Ours, so that what a client puts first by mistake does not count.
        config.ignore_client_order = true;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = rustls::crypto::ring::Ticketer::new().context("making session ticket keys")?;
        Ok(Arc::new(config))
    }
}
