//! A certificate of the site's own, checked, and which client is shown it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::super::certificates::Shown;
use super::super::clients::key_hash;
use super::super::validity::{self, Validity};
use crate::live::Live;

/// A certificate with its key, which fit each other, and the names that it holds for.
#[derive(Debug)]
pub(in crate::tls) struct Served {
    pub(super) key: Arc<CertifiedKey>,
    /// Its DNS names.
    pub(super) names: Vec<String>,
    pub(super) life: Validity,
    pub(super) shown: Shown,
    /// Of its public key.
    pub(super) key_hash: [u8; 32],
}

impl Served {
    /// Of a chain and a key in PEM. `whence` is what errors call it.
    ///
    /// # Errors
    /// When one of them is missing, they do not fit, or the certificate has no DNS name or does not say until when it holds.
    pub(in crate::tls) fn of(chain_pem: &[u8], key_pem: &[u8], whence: &str) -> Result<Self> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain_pem)
            .collect::<Result<_, _>>()
            .with_context(|| format!("{whence} holds no certificates in PEM"))?;
        let Some(leaf) = chain.first().cloned() else { bail!("{whence} holds no certificate in PEM") };
        let key = PrivateKeyDer::from_pem_slice(key_pem)
            .with_context(|| format!("beside {whence} there is no private key in PEM"))?;
        let life = validity::of(&leaf).with_context(|| format!("{whence} does not say until when it holds"))?;
        let names = names(&leaf).with_context(|| format!("{whence} holds no certificate"))?;
        if names.is_empty() {
            bail!("{whence} holds for no DNS name: its subject alternative names must have those that clients use");
        }
        let key_hash = key_hash(&leaf).with_context(|| format!("{whence} holds no certificate"))?;
        let key = CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
            .with_context(|| format!("{whence} and its key do not fit: the first certificate must be the key's own"))?;
        Ok(Self { key: Arc::new(key), names, life, shown: Shown::of(&leaf), key_hash })
    }

    /// Of two files.
    pub(in crate::tls) fn read(chain: &Path, key: &Path) -> Result<Self> {
        let read = |path: &Path| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
        Self::of(&read(chain)?, &read(key)?, &chain.display().to_string())
    }

    /// Whether it may be good at a time between two, in seconds since 1970.
    pub(super) fn may_hold(&self, earliest_s: u64, latest_s: u64) -> bool {
        self.life.not_before_s <= latest_s && earliest_s <= self.life.not_after_s
    }

    /// Whether it holds for a DNS name.
    pub(in crate::tls) fn is_for(&self, name: &str) -> bool {
        let certificate = self.key.cert.first().and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
        let name = ServerName::try_from(name);
        certificate.is_some_and(|c| name.is_ok_and(|name| verify_server_name(&c, &name).is_ok()))
    }

    /// Whether it names exactly these.
    pub(super) fn is_for_all(&self, names: &[String]) -> bool {
        let sorted = |names: &[String]| {
            let mut names: Vec<String> = names.iter().map(|name| name.to_lowercase()).collect();
            names.sort_unstable();
            names.dedup();
            names
        };
        sorted(&self.names) == sorted(names)
    }
}

/// The DNS names of a certificate. For people; whether it holds for one is [`Served::is_for`]'s to say.
fn names(leaf: &CertificateDer<'_>) -> Option<Vec<String>> {
    let certificate = webpki::EndEntityCert::try_from(leaf).ok()?;
    Some(certificate.valid_dns_names().map(str::to_owned).collect())
}

/// Shows the site's certificate to clients that ask for one of its names, and the one of the ledger's CA to all others: to
/// those that ask for an address (which TLS does not send), a local name, or nothing.
#[derive(Debug)]
pub(in crate::tls) struct Presented {
    pub(in crate::tls) local: Arc<CertifiedKey>,
    pub(in crate::tls) site: Live<Option<Served>>,
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let site = self.site.get();
        let asked = hello.server_name().filter(|name| !is_local(name));
        match (&*site, asked) {
            (Some(served), Some(name)) if served.is_for(name) => Some(served.key.clone()),
            _ => Some(self.local.clone()),
        }
    }
}

/// Names under which the ledger's own clients come, whatever else a certificate holds for.
fn is_local(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name == "localhost" || name.ends_with(".local")
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn made(names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).expect("names");
        (params.self_signed(&key).expect("signed").pem(), key.serialize_pem())
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_reason() {
        let (chain, key) = made(&["box.example"]);
        let (no_names, its_key) = made(&[]);
        let (_, other_key) = made(&["box.example"]);
        for (chain, key, want) in [
            ("", key.as_str(), "holds no certificate in PEM"),
            (&chain, "", "there is no private key in PEM"),
            (&chain, &other_key, "and its key do not fit"),
            (&no_names, &its_key, "holds for no DNS name"),
        ] {
            let refused = Served::of(chain.as_bytes(), key.as_bytes(), "site.pem").err().map(|e| format!("{e:#}"));
            assert!(refused.as_ref().is_some_and(|r| r.contains(want)), "{want:?} was expected, got {refused:?}");
        }
        assert!(Served::of(chain.as_bytes(), key.as_bytes(), "site.pem").is_ok(), "the good pair is taken");
    }

    #[test]
    fn a_certificate_is_for_its_names_and_those_below_its_wildcards() {
        let (chain, key) = made(&["Box.example", "*.site.example"]);
        let served = Served::of(chain.as_bytes(), key.as_bytes(), "site.pem").expect("a certificate");
        for (name, want) in [
            ("box.example", true),
            ("BOX.EXAMPLE", true),
            ("a.site.example", true),
            ("site.example", false),
            ("a.b.site.example", false),
            ("example", false),
            ("127.0.0.1", false),
            ("", false),
        ] {
            assert_eq!(served.is_for(name), want, "{name}");
        }
        assert!(served.is_for_all(&["*.site.example".to_owned(), "box.example".to_owned()]));
        assert!(!served.is_for_all(&["box.example".to_owned()]), "other names want another certificate");
    }

    #[test]
    fn it_may_hold_while_any_of_the_times_is_within_its_life() {
        let (chain, key) = made(&["box.example"]);
        let mut served = Served::of(chain.as_bytes(), key.as_bytes(), "site.pem").expect("a certificate");
        served.life = Validity { not_before_s: 100, not_after_s: 200 };
        for (earliest, latest, want) in
            [(0, 99, false), (0, 100, true), (150, 150, true), (50, 300, true), (200, 300, true), (201, 300, false)]
        {
            assert_eq!(served.may_hold(earliest, latest), want, "between {earliest} and {latest}");
        }
    }
}
