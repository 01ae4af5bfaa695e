//! Client certificates: a way to prove that one has a key. What else stands in a certificate (names, dates, who signed it)
//! says nothing here; whose key it is, the ledger says (`~certificates/`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use ring::digest::{SHA256, digest};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

/// SHA-256 of a certificate's public key (its `SubjectPublicKeyInfo` in DER); none if it is no certificate.
pub(crate) fn key_hash(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    digest(&SHA256, &parsed.subject_public_key_info()).as_ref().try_into().ok()
}

/// What TLS and the API share about client certificates.
#[derive(Debug)]
pub(crate) struct ClientKeys {
    /// Whether clients are asked for a certificate. Only while one is registered, since browsers that have certificates
    /// of their own bother their users when they are asked.
    asked: AtomicBool,
    /// Hashes of the keys of nodes' certificates, which are never principals.
    node: Mutex<Own>,
}

/// Hashes of the keys of this node and of its peers.
#[derive(Debug)]
struct Own {
    local: [u8; 32],
    site: Option<[u8; 32]>,
    /// Of peers, by their id: each has one key.
    peers: HashMap<u64, [u8; 32]>,
}

impl ClientKeys {
    /// Nobody is asked yet.
    pub(super) fn new(node: [u8; 32]) -> Self {
        Self { asked: AtomicBool::new(false), node: Mutex::new(Own { local: node, site: None, peers: HashMap::new() }) }
    }

    /// Says which key the node has from now on.
    pub(super) fn renew(&self, node: [u8; 32]) {
        self.own().local = node;
    }

    /// Says which key the site's certificate has from now on, if there is one.
    pub(super) fn set_site(&self, site: Option<[u8; 32]>) {
        self.own().site = site;
    }

    /// Says which key a peer proved to have.
    pub(crate) fn note_peer(&self, node: u64, key: [u8; 32]) {
        self.own().peers.insert(node, key);
    }

    fn own(&self) -> std::sync::MutexGuard<'_, Own> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether certificates are asked for in handshakes to come.
    pub(crate) fn ask(&self, asked: bool) {
        self.asked.store(asked, Relaxed);
    }

    /// Whether the key is a node's.
    pub(crate) fn is_node(&self, key: &[u8; 32]) -> bool {
        let own = self.own();
        *key == own.local || own.site.as_ref() == Some(key) || own.peers.values().any(|peer| peer == key)
    }
}

/// Lets every certificate pass whose owner signs the handshake with its key.
#[derive(Debug)]
pub(super) struct AnyKey {
    pub(super) keys: Arc<ClientKeys>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyKey {
    fn offer_client_auth(&self) -> bool {
        self.keys.asked.load(Relaxed)
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        ParsedCertificate::try_from(end_entity).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
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
