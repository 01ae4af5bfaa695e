//! A certificate request (PKCS #10, RFC 2986) as a node sends it that joins: whose key it is, proved by its signature. What
//! else stands in it is not used: which names and which node a certificate is for, the ledger decides.

use anyhow::{Context as _, Result, bail};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData, SignatureAlgorithm};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject as _;

use super::validity::{BIT_STRING, SEQUENCE, any, take};

/// Longest request, in bytes of PEM.
pub(crate) const PEM_BYTES_MAX: usize = 4096;
/// What a `SubjectPublicKeyInfo` of a key on P-256 begins with (RFC 5480): its algorithm, and that a point follows.
const P256_INFO: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// The algorithm `ecdsa-with-SHA256` (RFC 5758, 3.2).
const ECDSA_SHA256: [u8; 12] = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// Bytes of an uncompressed point on P-256.
const POINT_BYTES: usize = 65;

/// The request for a key, in PEM.
pub(super) fn make(key: &KeyPair) -> Result<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(key).context("making a certificate request")?;
    request.pem().context("writing a certificate request")
}

/// A public key that whoever asks has the private half of.
#[derive(Debug)]
pub(super) struct Requested {
    point: Vec<u8>,
}

impl Requested {
    /// Reads a request and checks its signature.
    ///
    /// # Errors
    /// With what is wrong with it.
    pub(super) fn read(pem: &str) -> Result<Self> {
        if pem.len() > PEM_BYTES_MAX {
            bail!("is longer than {PEM_BYTES_MAX} bytes");
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes());
        let der = der.map_err(|e| anyhow::anyhow!("is no certificate request in PEM: {e:?}"))?;
        Self::of(&der).context("is no certificate request whose signature holds, by a key on P-256")
    }

    fn of(der: &[u8]) -> Option<Self> {
        let (request, []) = take(der, SEQUENCE)? else { return None };
        let (_, info, after_info) = any(request)?;
        let signed = request.get(..request.len() - after_info.len())?;
        let (_, _, after_version) = any(info)?;
        let (_, _, after_subject) = any(after_version)?;
        let (_, _, after_key) = any(after_subject)?;
        let key = after_subject.get(..after_subject.len() - after_key.len())?;
        let point = key.strip_prefix(&P256_INFO).filter(|point| point.len() == POINT_BYTES)?;
        let after_algorithm = after_info.strip_prefix(&ECDSA_SHA256)?;
        let (signature, []) = take(after_algorithm, BIT_STRING)? else { return None };
        // No bits of its last byte are unused.
        let signature = signature.strip_prefix(&[0])?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).verify(signed, signature).ok()?;
        Some(Self { point: point.to_vec() })
    }
}

impl PublicKeyData for Requested {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_proves_whose_key_it_is() {
        let key = KeyPair::generate().expect("a key");
        let pem = make(&key).expect("a request");
        let requested = Requested::read(&pem).expect("what was made is read");
        assert_eq!(requested.subject_public_key_info(), key.subject_public_key_info(), "the key that asked");

        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        assert!(Requested::of(&der).is_some(), "the same without PEM");
        for at in 0..der.len() {
            let mut altered = der.to_vec();
            altered[at] ^= 1;
            assert!(
                Requested::of(&altered).is_none(),
                "byte {at} of {} altered: the signature must not hold",
                der.len()
            );
            assert!(Requested::of(&der[..at]).is_none(), "cut to {at} bytes");
        }
        for nonsense in ["", "no PEM", &"x".repeat(PEM_BYTES_MAX + 1)] {
            assert!(Requested::read(nonsense).is_err(), "{nonsense:.20} is no request");
        }
    }
}
