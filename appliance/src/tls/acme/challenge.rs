//! What the authority is answered with while an order waits for it, and only then.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};

/// The protocol of the challenge (RFC 8737, 6.2).
pub(super) const ACME_TLS: &[u8] = b"acme-tls/1";

/// The answers, shared with the listener.
#[derive(Debug, Default)]
pub(crate) struct Pending(Mutex<Answers>);

#[derive(Debug, Default)]
struct Answers {
    /// Key authorizations by token.
    http: HashMap<String, String>,
    /// What a handshake for a name is done with.
    tls: HashMap<String, Arc<ServerConfig>>,
}

impl Pending {
    /// Opens the answers of one order.
    pub(super) fn hold(self: &Arc<Self>) -> Held {
        Held(self.clone())
    }

    /// The key authorization of a token.
    pub(super) fn http(&self, token: &str) -> Option<String> {
        self.lock().http.get(token).cloned()
    }

    /// What a handshake for this name is done with.
    pub(super) fn tls(&self, name: &str) -> Option<Arc<ServerConfig>> {
        self.lock().tls.get(&name.to_ascii_lowercase()).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Answers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answers of one order; there are none once it is dropped. A node has one order at a time.
pub(super) struct Held(Arc<Pending>);

impl Held {
    /// Answers a token over HTTP (RFC 8555, 8.3).
    pub(super) fn http(&mut self, token: &str, key_authorization: &str) {
        self.0.lock().http.insert(token.to_owned(), key_authorization.to_owned());
    }

    /// Answers for a name in a handshake (RFC 8737, 3). `digest`: SHA-256 of the key authorization.
    pub(super) fn tls(&mut self, name: &str, digest: &[u8]) -> Result<()> {
        let config = config(name, digest)?;
        self.0.lock().tls.insert(name.to_ascii_lowercase(), config);
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *self.0.lock() = Answers::default();
    }
}

/// A self-signed certificate for the one name that holds the digest, and the one protocol.
fn config(name: &str, digest: &[u8]) -> Result<Arc<ServerConfig>> {
    let mut params = CertificateParams::new(vec![name.to_owned()]).context("a name is no DNS name")?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate().context("making a key for the challenge")?;
    let certificate = params.self_signed(&key).context("signing the certificate of the challenge")?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| anyhow::anyhow!("the challenge's key: {e}"))?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key).context("the challenge's key")?;
    // Not by the checks for certificates: they refuse the extension, as it is critical and not for them.
    let certified = CertifiedKey::new(vec![certificate.der().clone()], key);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    Ok(Arc::new(config))
}
