//! What is signed: the ledger's CA, certificates of the node, and a CA that is passed on to the next. All of it lives from
//! before the earliest time that may be the true one until after the latest, so that it holds whichever is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData, SanType, SerialNumber,
};
use ring::digest::{SHA256, digest};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use samovar_node::{Node, rt};
use time::{Duration, OffsetDateTime};

use super::clients::key_hash;
use super::peers::NODE_URI;
use super::validity::{self, Validity};

/// Before the name of the CA's first machine, in its subject.
const CA_NAME: &str = "Samovar CA of ";
/// Ten years.
pub(super) const CA_DAYS: u32 = 3653;
/// What the CA's key is for.
const CA_KEY_USAGES: [KeyUsagePurpose; 2] = [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
/// With the day before it is less than the 366 days that Mozilla's TLS configuration allows, and than Apple's 825.
pub(super) const NODE_DAYS: u32 = 364;
/// Clocks of clients may be behind by this much.
const BACKDATED: Duration = Duration::hours(24);
/// Random bytes of a serial number; RFC 5280 (4.1.2.2) allows 20 and wants it positive.
const SERIAL_BYTES: usize = 16;
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

/// Between which times the true one lies, as far as this machine can know; milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    /// The earlier of wall clock and the node's sure time.
    earliest_ms: u64,
    /// The later of the two.
    latest_ms: u64,
}

impl Times {
    /// As a node has them: its wall clock may be behind the chain, or ahead of what is believed.
    pub(crate) fn of(node: &Node) -> Self {
        let clock = node.clock();
        Self::between(clock.wall_ms, clock.sure_ms)
    }

    /// By the wall clock alone, before there is a node.
    pub(crate) fn wall() -> Self {
        Self::between(rt::now_ms(), rt::now_ms())
    }

    /// Between two times, whichever is the earlier.
    pub(super) fn between(one_ms: u64, other_ms: u64) -> Self {
        Self { earliest_ms: one_ms.min(other_ms), latest_ms: one_ms.max(other_ms) }
    }

    pub(super) fn earliest_s(self) -> u64 {
        self.earliest_ms / 1000
    }

    pub(super) fn latest_s(self) -> u64 {
        self.latest_ms / 1000
    }

    /// From when until when what is made now is to hold.
    fn life(self, days: u32) -> Result<(OffsetDateTime, OffsetDateTime)> {
        let time = |seconds: u64| {
            let seconds = i64::try_from(seconds).context("the clock is beyond any calendar")?;
            OffsetDateTime::from_unix_timestamp(seconds).context("the clock is beyond any calendar")
        };
        let end = time(self.latest_s())?.checked_add(Duration::days(days.into()));
        Ok((time(self.earliest_s())? - BACKDATED, end.context("the clock is beyond any calendar")?))
    }
}

/// What a node's certificate is for.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    /// Id of the node that the certificate names to its peers; none for judging names.
    node: Option<u64>,
}

impl Subject {
    /// The names and addresses of this machine: `localhost`, node and host name, the same under `.local`, loopback, the
    /// address it listens on unless that is "all", and what is `configured`, names or addresses.
    pub(crate) fn of(node: &str, listen: IpAddr, configured: &[String]) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
        let mut names = vec!["localhost".to_owned()];
        for name in [node.to_lowercase(), host].into_iter().filter(|n| is_dns_name(n)) {
            if !name.contains('.') {
                names.push(format!("{name}.local"));
            }
            names.push(name);
        }
        let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        addresses.extend(Some(listen).filter(|a| !a.is_unspecified()));
        for text in configured {
            match text.parse() {
                Ok(address) => addresses.push(address),
                Err(_) => names.push(text.to_lowercase()),
            }
        }
        names.sort_unstable();
        names.dedup();
        addresses.sort_unstable();
        addresses.dedup();
        Self { names, addresses, node: None }
    }

    /// Of names and addresses as [`Subject::texts`] gives them.
    pub(crate) fn of_texts(texts: &[String]) -> Self {
        let mut subject = Self { names: Vec::new(), addresses: Vec::new(), node: None };
        for text in texts {
            match text.parse() {
                Ok(address) => subject.addresses.push(address),
                Err(_) => subject.names.push(text.clone()),
            }
        }
        subject
    }

    /// The same, for the node with this id.
    pub(crate) fn of_node(self, node: u64) -> Self {
        Self { node: Some(node), ..self }
    }

    /// Id of the node.
    pub(super) fn node(&self) -> Option<u64> {
        self.node
    }

    /// Each name and address by itself.
    fn each(&self) -> impl Iterator<Item = Self> {
        let node = self.node;
        let names = self.names.iter().map(move |name| Self { names: vec![name.clone()], addresses: Vec::new(), node });
        let addresses = self.addresses.iter();
        names.chain(addresses.map(move |address| Self { names: Vec::new(), addresses: vec![*address], node }))
    }

    /// Each name and address as text.
    pub(crate) fn texts(&self) -> impl Iterator<Item = String> {
        self.names.iter().cloned().chain(self.addresses.iter().map(ToString::to_string))
    }

    /// What it is called first.
    fn server_name(&self) -> Result<ServerName<'static>> {
        match (self.names.first(), self.addresses.first()) {
            (Some(name), _) => ServerName::try_from(name.clone()).context("a name of this machine is no DNS name"),
            (None, Some(address)) => Ok(ServerName::from(*address)),
            (None, None) => Err(anyhow!("the CA permits none of the names and addresses of this machine")),
        }
    }

    fn params(&self, times: Times) -> Result<CertificateParams> {
        let names = CertificateParams::new(self.names.clone());
        let mut params = names.context("a name of this machine is no DNS name")?;
        params.subject_alt_names.extend(self.addresses.iter().copied().map(SanType::IpAddress));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Samovar node");
        params.serial_number = Some(serial());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // A client towards its peers, and towards nobody else.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if let Some(node) = self.node {
            let uri = format!("{NODE_URI}{node}").try_into().context("a node's id is no URI")?;
            params.subject_alt_names.push(SanType::URI(uri));
        }
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = times.life(NODE_DAYS)?;
        Ok(params)
    }
}

/// Whether a text can be a DNS name (RFC 1123, 2.1).
pub(crate) fn is_dns_name(text: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label) && text.parse::<IpAddr>().is_err()
}

/// Random, so that no issuer ever signs two certificates of one number.
fn serial() -> SerialNumber {
    let mut bytes = [0; SERIAL_BYTES];
    rt::fill_random(&mut bytes);
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// A CA with its key.
pub(super) struct Authority {
    /// In its subject, after [`CA_NAME`].
    name: String,
    key: KeyPair,
    /// Its own certificate, self-signed.
    pub(super) certificate: CertificateDer<'static>,
}

/// A key with the certificate that the CA gave it.
pub(super) struct Fresh {
    pub(super) key: KeyPair,
    pub(super) certificate: CertificateDer<'static>,
}

impl Authority {
    /// A new CA, named after the first name of `subject` and a random word: of two CAs of one machine no client shall
    /// take one for the other.
    pub(super) fn make(subject: &Subject, times: Times) -> Result<Self> {
        let mut word = [0; 4];
        rt::fill_random(&mut word);
        let first = subject.names.iter().find(|n| *n != "localhost").map_or("localhost", String::as_str);
        let name = format!("{first} {:08x}", u32::from_be_bytes(word));
        Self::signed(name, KeyPair::generate().context("making the CA key")?, subject, times)
    }

    fn signed(name: String, key: KeyPair, subject: &Subject, times: Times) -> Result<Self> {
        let signed = ca_params(&name, subject, times)?.self_signed(&key).context("signing the CA certificate")?;
        Ok(Self { name, key, certificate: signed.der().clone() })
    }

    /// The CA with this key, whose certificate is one of these.
    pub(super) fn of(key_pem: &str, certificates: &[CertificateDer<'static>]) -> Result<Self> {
        let key = KeyPair::from_pem(key_pem).context("holds no private key")?;
        let hash = digest(&SHA256, &key.subject_public_key_info());
        let own = certificates.iter().find(|c| key_hash(c).is_some_and(|h| h == hash.as_ref()));
        let certificate = own.context("is not the key of a CA in ca.pem")?.clone();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.clone()).context("a certificate in ca.pem is no CA's")?;
        let subject = roots.roots.first().map(|root| String::from_utf8_lossy(&root.subject).into_owned());
        // The name is all of the subject, so that it ends where the subject does.
        let name = subject.as_deref().and_then(|subject| subject.split_once(CA_NAME)).map(|(_, name)| name.to_owned());
        let Some(name) = name else { bail!("is not the key of a CA that samovar made") };
        Ok(Self { name, key, certificate })
    }

    /// The same CA, name and key, with a certificate that begins to live now: who trusts the one before goes on to.
    pub(super) fn renewed(self, subject: &Subject, times: Times) -> Result<Self> {
        Self::signed(self.name, self.key, subject, times)
    }

    /// Its private key.
    pub(super) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// The next CA as this one vouches for it, as long as this one lives: for clients that know only this one.
    pub(super) fn vouch(&self, next: &Self, subject: &Subject, times: Times) -> Result<CertificateDer<'static>> {
        let mut params = ca_params(&next.name, subject, times)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.use_authority_key_identifier_extension = true;
        let Validity { not_after_s, .. } = validity::of(&self.certificate).context("the CA does not say its end")?;
        let end = OffsetDateTime::from_unix_timestamp(i64::try_from(not_after_s)?)?;
        params.not_after = params.not_after.min(end);
        let signed = params.signed_by(&next.key, &self.issuer()).context("signing the next CA")?;
        Ok(signed.der().clone())
    }

    /// A new key with a certificate for what `judge` lets pass of the names and addresses of `subject`.
    pub(super) fn certify(
        &self,
        subject: &Subject,
        times: Times,
        judge: impl Fn(&CertificateDer<'_>, &ServerName<'_>) -> Result<()>,
    ) -> Result<Fresh> {
        let key = KeyPair::generate().context("making a TLS key")?;
        let certificate = self.certify_key(&key, subject, times, judge)?;
        Ok(Fresh { key, certificate })
    }

    /// A certificate for a key, for what `judge` lets pass of the names and addresses of `subject`.
    pub(super) fn certify_key(
        &self,
        key: &impl PublicKeyData,
        subject: &Subject,
        times: Times,
        judge: impl Fn(&CertificateDer<'_>, &ServerName<'_>) -> Result<()>,
    ) -> Result<CertificateDer<'static>> {
        let issuer = self.issuer();
        let sign = |subject: &Subject| -> Result<Certificate> {
            let name = subject.server_name()?;
            let signed = subject.params(times)?.signed_by(key, &issuer).context("signing a certificate")?;
            judge(signed.der(), &name).context("the new certificate does not hold under the CA")?;
            Ok(signed)
        };
        let signed = sign(subject).or_else(|_| {
            let mut permitted = Subject { names: Vec::new(), addresses: Vec::new(), node: subject.node };
            for one in subject.each().filter(|one| sign(one).is_ok()) {
                permitted.names.extend(one.names);
                permitted.addresses.extend(one.addresses);
            }
            tracing::warn!(?permitted, "the CA does not permit all names and addresses of this machine: see rotate ca");
            sign(&permitted)
        })?;
        Ok(signed.der().clone())
    }

    fn issuer(&self) -> Issuer<'static, &KeyPair> {
        let mut params = CertificateParams::default();
        params.distinguished_name = ca_name(&self.name);
        params.key_usages = CA_KEY_USAGES.to_vec();
        Issuer::new(params, &self.key)
    }
}

/// May sign one CA below it, which is what a roll-over needs.
fn ca_params(name: &str, subject: &Subject, times: Times) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = ca_name(name);
    params.serial_number = Some(serial());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = CA_KEY_USAGES.to_vec();
    (params.not_before, params.not_after) = times.life(CA_DAYS)?;
    let names = LOCAL_DOMAINS.into_iter().map(str::to_owned).chain(subject.names.iter().cloned());
    let networks = PRIVATE_NETWORKS.into_iter().chain(subject.addresses.iter().map(|a| (*a, full_prefix(*a))));
    let permitted_subtrees = names
        .map(GeneralSubtree::DnsName)
        .chain(networks.map(|(a, bits)| GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(a, bits))))
        .collect();
    params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    Ok(params)
}

fn ca_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, format!("{CA_NAME}{name}"));
    subject
}

fn full_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Whether a client that knows this root alone would accept the certificate now, whichever time is the true one.
pub(super) fn accepts(
    root: &CertificateDer<'_>,
    leaf: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
    name: &ServerName<'_>,
    times: Times,
) -> Result<()> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.clone().into_owned()).context("a certificate in ca.pem is no CA's")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
    for seconds in [times.earliest_s(), times.latest_s()] {
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        verifier.verify_server_cert(leaf, between, name, &[], now)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_holds_for_the_names_of_the_machine_only() {
        let subject = Subject::of("Box-01", "192.0.2.7".parse().expect("address"), &["box.example".to_owned()]);
        let ca = Authority::make(&subject, Times::wall()).expect("a CA");
        let node = ca.certify(&subject, Times::wall(), |_, _| Ok(())).expect("certified").certificate;
        let holds = |name: &'static str| {
            accepts(&ca.certificate, &node, &[], &ServerName::try_from(name).expect(name), Times::wall())
        };
        for name in ["localhost", "box-01", "box-01.local", "127.0.0.1", "::1", "192.0.2.7", "box.example"] {
            holds(name).unwrap_or_else(|e| panic!("the certificate must hold for {name}: {e}"));
        }
        for name in ["example.com", "192.0.2.8"] {
            assert!(holds(name).is_err(), "the certificate must not hold for {name}");
        }
    }

    #[test]
    fn the_ca_cannot_imitate_others() {
        let subject = Subject::of("box-01", IpAddr::V4(Ipv4Addr::UNSPECIFIED), &[]);
        let ca = Authority::make(&subject, Times::wall()).expect("a CA");
        let holds = |forged: Subject| {
            let name = forged.server_name().expect("a name");
            let signed = ca.certify(&forged, Times::wall(), |_, _| Ok(())).expect("signed").certificate;
            accepts(&ca.certificate, &signed, &[], &name, Times::wall())
        };
        let of = |text: &str| match text.parse() {
            Ok(address) => Subject { names: Vec::new(), addresses: vec![address], node: None },
            Err(_) => Subject { names: vec![text.to_owned()], addresses: Vec::new(), node: None },
        };
        for good in ["printer.local", "a.internal", "10.1.2.3", "172.31.0.1", "169.254.0.9", "fe80::1", "fd00::1"] {
            holds(of(good)).unwrap_or_else(|e| panic!("{good} is local, the CA may certify it: {e}"));
        }
        for bad in ["example.com", "local.example.com", "8.8.8.8", "172.32.0.1", "2001:db8::1"] {
            assert!(holds(of(bad)).is_err(), "name constraints must refuse {bad}");
        }
    }
}
