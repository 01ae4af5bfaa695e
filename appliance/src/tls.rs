//! Certificates of a node: made at init by a local CA, loaded at start.
//!
//! `ca.pem` in the data directory is for clients (0644); `tls/` holds the keys (0600). The CA is constrained to this
//! machine's names, to local domains and to private addresses: whoever steals its key can imitate nobody else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use samovar_node::rt;
use time::{Duration, OffsetDateTime};

use crate::durable::{Mode, sync_directory, write_new};

mod clients;
mod renew;
mod validity;

pub(crate) use clients::{ClientKeys, key_hash};
pub(crate) use renew::{load_or_renew, refused_names};

use clients::AnyKey;

/// CA certificate, for clients, in the data directory.
pub(crate) const CA_FILE: &str = "ca.pem";
/// Directory of the keys, in the data directory.
const DIRECTORY: &str = "tls";
const CA_KEY_FILE: &str = "ca.key";
const NODE_CERTIFICATE_FILE: &str = "node.pem";
const NODE_KEY_FILE: &str = "node.key";
/// Before the name of the CA's first machine, in its subject.
const CA_NAME: &str = "Samovar CA of ";
/// Ten years.
const CA_DAYS: i64 = 3653;
/// What the CA's key is for.
const CA_KEY_USAGES: [KeyUsagePurpose; 2] = [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
/// Apple's libraries refuse server certificates that live longer than 825 days.
const NODE_DAYS: i64 = 820;
/// Clocks of clients may be behind by this much.
const BACKDATED: Duration = Duration::hours(24);
/// Domains that no public CA certifies (RFC 6762, RFC 8375, ICANN's `internal`, and what home routers use).
const LOCAL_DOMAINS: [&str; 5] = ["localhost", "local", "home.arpa", "internal", "lan"];
/// Networks that no public CA certifies.
const PRIVATE_NETWORKS: [(IpAddr, u8); 8] = [
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0)), 12),
    (IpAddr::V4(Ipv4Addr::new(192, 168, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
    (IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
    (IpAddr::V6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0)), 7),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
];

/// What a node's certificate is for.
pub(crate) struct Subject {
    names: Vec<String>,
    addresses: Vec<IpAddr>,
}

impl Subject {
    /// The names and addresses of this machine: `localhost`, node and host name, the same under `.local`, loopback, and
    /// the address it listens on unless that is "all".
    pub(crate) fn of(node: &str, listen: IpAddr) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
        let mut names = vec!["localhost".to_owned()];
        for name in [node.to_lowercase(), host].into_iter().filter(|n| is_dns_name(n)) {
            if !name.contains('.') {
                names.push(format!("{name}.local"));
            }
            names.push(name);
        }
        names.sort();
        names.dedup();
        let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        if !listen.is_unspecified() && !addresses.contains(&listen) {
            addresses.push(listen);
        }
        Self { names, addresses }
    }
}

impl Subject {
    /// What every CA of ours permits, whatever the machine was called when it was made.
    fn local(&self) -> Self {
        let is_local = |name: &str| {
            LOCAL_DOMAINS
                .iter()
                .any(|d| name.strip_suffix(d).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
        };
        Self {
            names: self.names.iter().filter(|name| is_local(name)).cloned().collect(),
            addresses: self.addresses.iter().filter(|address| address.is_loopback()).copied().collect(),
        }
    }
}

fn is_dns_name(text: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label) && text.parse::<IpAddr>().is_err()
}

/// Makes CA, node certificate and their keys in a new data directory.
pub(crate) fn make(data: &Path, subject: &Subject) -> Result<()> {
    let ca_key = KeyPair::generate().context("making the CA key")?;
    let ca_params = ca_params(subject)?;
    let ca = ca_params.self_signed(&ca_key).context("signing the CA certificate")?;
    let node_key = KeyPair::generate().context("making the node's TLS key")?;
    let issuer = Issuer::from_params(&ca_params, &ca_key);
    let node = node_params(subject)?.signed_by(&node_key, &issuer).context("signing the node's certificate")?;

    let directory = data.join(DIRECTORY);
    make_directory(&directory)?;
    write_new(&directory.join(CA_KEY_FILE), ca_key.serialize_pem().as_bytes(), Mode::Secret)?;
    write_new(&directory.join(NODE_KEY_FILE), node_key.serialize_pem().as_bytes(), Mode::Secret)?;
    write_new(&directory.join(NODE_CERTIFICATE_FILE), node.pem().as_bytes(), Mode::Secret)?;
    write_new(&data.join(CA_FILE), ca.pem().as_bytes(), Mode::Public)?;
    sync_directory(&directory)
}

fn make_directory(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().mode(0o700).create(path).with_context(|| format!("making {}", path.display()))
}

fn now() -> Result<OffsetDateTime> {
    let seconds = i64::try_from(rt::now_ms() / 1000).context("the clock is beyond any calendar")?;
    OffsetDateTime::from_unix_timestamp(seconds).context("the clock is beyond any calendar")
}

fn ca_params(subject: &Subject) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let name = subject.names.iter().find(|n| *n != "localhost").map_or("localhost", String::as_str);
    params.distinguished_name = ca_name(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = CA_KEY_USAGES.to_vec();
    params.not_before = now()? - BACKDATED;
    params.not_after = now()? + Duration::days(CA_DAYS);
    let names = LOCAL_DOMAINS.into_iter().map(str::to_owned).chain(subject.names.iter().cloned());
    let networks = PRIVATE_NETWORKS.into_iter().chain(subject.addresses.iter().map(|a| (*a, full_prefix(*a))));
    let permitted_subtrees = names
        .map(GeneralSubtree::DnsName)
        .chain(networks.map(|(a, bits)| GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(a, bits))))
        .collect();
    params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    Ok(params)
}

/// The subject of the CA whose first machine is `name`.
fn ca_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, format!("{CA_NAME}{name}"));
    subject
}

fn full_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn node_params(subject: &Subject) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(subject.names.clone()).context("a name of this machine is no DNS name")?;
    params.subject_alt_names.extend(subject.addresses.iter().copied().map(SanType::IpAddress));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Samovar node");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = now()? - BACKDATED;
    params.not_after = now()? + Duration::days(NODE_DAYS);
    Ok(params)
}

/// TLS of the API.
pub(crate) struct Loaded {
    /// TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1, session tickets, client certificates when they are asked for.
    pub(crate) config: Arc<rustls::ServerConfig>,
    /// What it shares with the API about client certificates.
    pub(crate) clients: Arc<ClientKeys>,
}

/// The certificates of a data directory, without any key: what clients see of the node, and the CA.
pub(crate) fn certificates(data: &Path) -> [(&'static str, std::path::PathBuf); 2] {
    [("node", data.join(DIRECTORY).join(NODE_CERTIFICATE_FILE)), ("ca", data.join(CA_FILE))]
}

/// Loads the node's certificate and key.
pub(crate) fn load(data: &Path) -> Result<Loaded> {
    let own = Own::read(data)?;
    let clients = Arc::new(ClientKeys::new(own.hash));
    Ok(Loaded { config: own.config(&clients)?, clients })
}

/// Loads them again, for who shares `clients` already.
pub(crate) fn reload(data: &Path, clients: &Arc<ClientKeys>) -> Result<Arc<rustls::ServerConfig>> {
    let own = Own::read(data)?;
    let hash = own.hash;
    let config = own.config(clients)?;
    clients.renew(hash);
    Ok(config)
}

/// What the node proves itself with.
struct Own {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    /// Of its public key.
    hash: [u8; 32],
}

impl Own {
    fn read(data: &Path) -> Result<Self> {
        let directory = data.join(DIRECTORY);
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read(&path).with_context(|| format!("reading {}; `samovar init` makes it", path.display()))
        };
        let chain = CertificateDer::pem_slice_iter(&read(NODE_CERTIFICATE_FILE)?)
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| {
                format!(
                    "{} holds no certificate in PEM: restore it from a backup",
                    directory.join(NODE_CERTIFICATE_FILE).display()
                )
            })?;
        let key = PrivateKeyDer::from_pem_slice(&read(NODE_KEY_FILE)?).with_context(|| {
            format!("{} holds no private key in PEM: restore it from a backup", directory.join(NODE_KEY_FILE).display())
        })?;
        let hash = chain.first().and_then(key_hash).context("the node's certificate in tls/ is none: restore it")?;
        Ok(Self { chain, key, hash })
    }

    /// TLS with it.
    fn config(self, clients: &Arc<ClientKeys>) -> Result<Arc<rustls::ServerConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = AnyKey { keys: clients.clone(), algorithms: provider.signature_verification_algorithms };
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .context("choosing TLS versions")?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_single_cert(self.chain, self.key)
            .context("the node's certificate and key in tls/ do not fit: restore both from a backup")?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = rustls::crypto::ring::Ticketer::new().context("making session ticket keys")?;
        Ok(Arc::new(config))
    }
}

/// The certificates in use and when each ends, seconds since 1970: `node`, as it is served, and `ca`. One that does not
/// say so is left out: what serves goes on serving.
pub(crate) fn expiries(data: &Path) -> impl Iterator<Item = (&'static str, u64)> {
    certificates(data).into_iter().filter_map(|(certificate, path)| {
        let not_after_s = CertificateDer::from_pem_file(&path).ok().and_then(|der| validity::not_after_s(&der));
        if not_after_s.is_none() {
            tracing::warn!("tls: {} does not say until when it holds", path.display());
        }
        Some((certificate, not_after_s?))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::{ServerName, UnixTime};

    use super::*;

    #[test]
    fn a_node_certificate_holds_for_its_names_only() {
        let data = tempfile::tempdir().expect("a directory");
        let listen = "192.0.2.7".parse().expect("address");
        make(data.path(), &Subject::of("Box-01", listen)).expect("certificates are made");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(data.path().join(CA_FILE)).expect("ca.pem")).expect("a CA");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().expect("a verifier");
        let node = CertificateDer::from_pem_file(data.path().join("tls/node.pem")).expect("node.pem");
        let holds = |name: &'static str| {
            let name = ServerName::try_from(name).expect(name);
            verifier.verify_server_cert(&node, &[], &name, &[], UnixTime::now())
        };
        for name in ["localhost", "box-01", "box-01.local", "127.0.0.1", "::1", "192.0.2.7"] {
            holds(name).unwrap_or_else(|e| panic!("the certificate must hold for {name}: {e}"));
        }
        for name in ["example.com", "192.0.2.8"] {
            assert!(holds(name).is_err(), "the certificate must not hold for {name}");
        }
    }

    #[test]
    fn the_ca_cannot_imitate_others() {
        let subject = Subject::of("box-01", IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let (ca_key, key) = (KeyPair::generate().expect("key"), KeyPair::generate().expect("key"));
        let params = ca_params(&subject).expect("parameters");
        let ca = params.self_signed(&ca_key).expect("signed");
        let forged = Subject { names: vec!["example.com".into()], addresses: vec![] };
        let issuer = Issuer::from_params(&params, &ca_key);
        let forged = node_params(&forged).expect("parameters").signed_by(&key, &issuer).expect("signed");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.der().clone()).expect("a CA");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().expect("a verifier");
        let name = ServerName::try_from("example.com").expect("name");
        let verified = verifier.verify_server_cert(forged.der(), &[], &name, &[], UnixTime::now());
        assert!(verified.is_err(), "name constraints must refuse example.com");
    }

    #[test]
    fn keys_are_readable_by_their_owner_only() {
        let data = tempfile::tempdir().expect("a directory");
        make(data.path(), &Subject::of("a", IpAddr::V4(Ipv4Addr::LOCALHOST))).expect("certificates are made");
        let mode = |name: &str| data.path().join(name).metadata().expect(name).permissions().mode() & 0o777;
        let got = ["ca.pem", "tls", "tls/ca.key", "tls/node.key"].map(mode);
        assert_eq!(got, [0o644, 0o700, 0o600, 0o600]);
        load(data.path()).expect("what was made can be loaded");
    }
}
