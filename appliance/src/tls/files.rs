//! CA, keys and certificates as files: loaded, tended, replaced. Whatever a crash leaves between two steps is put right by
//! [`Files::tend`], which runs at every start and then again and again.
//!
//! `ca.pem` holds the CA, and during a roll-over the one before it too. `tls/` holds `ca.key`, `node.key`, `node.pem`, and
//! during a roll-over `ca-cross.pem`: the new CA, signed by the old one, which is sent along with the node's certificate. The
//! old CA's key is not kept.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};

use super::authority::{Authority, CA_DAYS, Fresh, NODE_DAYS, Subject, Times, accepts};
use super::peers::node_of;
use super::request::{self, Requested};
use super::validity::{self, Validity};
use super::{CA_FILE, DIRECTORY, NODE_CERTIFICATE_FILE};
use crate::durable::{Mode, remove, replace};
use crate::secrets::{CA_KEY, CA_KEY_NEXT, Secrets, TLS_KEY};

/// The new CA, signed by the old one.
const CROSS_FILE: &str = "ca-cross.pem";
/// What the names of files end with that were replaced because they did not hold.
const OLD: &str = "old";
/// Bytes of base64 on a line of PEM (RFC 7468, 2).
const PEM_LINE: usize = 64;
const DAY_S: u64 = 86_400;

/// The files of a data directory.
#[derive(Debug, Clone)]
pub(super) struct Files {
    secrets: Secrets,
}

/// A CA that takes the place of another: what is made before anything is replaced.
pub(super) struct NextAuthority {
    next: Authority,
    cross: CertificateDer<'static>,
    before: CertificateDer<'static>,
    node: Fresh,
}

impl NextAuthority {
    /// The certificate of the new CA.
    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.next.certificate
    }
}

impl Files {
    /// Of a data directory.
    pub(super) fn of(secrets: &Secrets) -> Self {
        Self { secrets: secrets.clone() }
    }

    fn data(&self, name: &str) -> PathBuf {
        self.secrets.data().join(name)
    }

    fn tls(&self, name: &str) -> PathBuf {
        self.data(DIRECTORY).join(name)
    }

    /// Makes all of it in a new data directory.
    pub(super) fn make(&self, subject: &Subject, times: Times) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt as _;
        let authority = Authority::make(subject, times)?;
        let node = authority.certify(subject, times, |_, _| Ok(()))?;
        let directory = self.data(DIRECTORY);
        let made = std::fs::DirBuilder::new().mode(0o700).create(&directory);
        made.with_context(|| format!("making {}", directory.display()))?;
        self.secrets.write(CA_KEY, authority.key_pem().as_bytes())?;
        self.put_node(&node)?;
        self.put_roots(std::slice::from_ref(&authority.certificate))
    }

    /// Makes the key of a node that joins, in a new data directory; its certificate request, in PEM.
    pub(super) fn make_request(&self) -> Result<String> {
        use std::os::unix::fs::DirBuilderExt as _;
        let key = rcgen::KeyPair::generate().context("making a TLS key")?;
        let directory = self.data(DIRECTORY);
        let made = std::fs::DirBuilder::new().mode(0o700).create(&directory);
        made.with_context(|| format!("making {}", directory.display()))?;
        self.secrets.write(TLS_KEY, key.serialize_pem().as_bytes())?;
        request::make(&key)
    }

    /// Keeps what a node that joins got: its certificate, and the CAs.
    pub(super) fn accept(&self, certificate: &str, roots: &str) -> Result<()> {
        replace(&self.tls(NODE_CERTIFICATE_FILE), certificate.as_bytes(), Mode::Secret)?;
        replace(&self.data(CA_FILE), roots.as_bytes(), Mode::Public)?;
        super::Own::read(self)?.check()?;
        self.hold(Times::wall())
    }

    /// A certificate for the key of a request, in PEM with how it follows from the CAs; and the CAs.
    pub(super) fn certify_request(&self, request: &str, subject: &Subject, times: Times) -> Result<(String, String)> {
        let requested = Requested::read(request).context("the request")?;
        let (roots, judges) = (self.roots()?, self.judges(times)?);
        let between: Vec<_> = self.cross().into_iter().collect();
        let judge = |leaf: &CertificateDer<'_>, name: &ServerName<'_>| {
            judges.iter().try_for_each(|root| accepts(root, leaf, &between, name, times))
        };
        let certificate = self.authority(&roots)?.certify_key(&requested, subject, times, judge)?;
        Ok((pem(&certificate), roots.iter().map(pem).collect()))
    }

    /// The CAs in PEM.
    pub(super) fn roots_pem(&self) -> Result<String> {
        Ok(self.roots()?.iter().map(pem).collect())
    }

    /// The CA's private key in PEM, if this node has it.
    pub(super) fn authority_key(&self) -> Result<Option<String>> {
        self.pem(CA_KEY)
    }

    /// Keeps the CA's private key, which another voter gave.
    pub(super) fn take_authority_key(&self, key: &str) -> Result<()> {
        Authority::of(key, &self.roots()?).context("what a peer gave as the CA's key")?;
        self.secrets.write(CA_KEY, key.as_bytes())
    }

    /// The CAs that clients trust: the one in use first.
    pub(super) fn roots(&self) -> Result<Vec<CertificateDer<'static>>> {
        let path = self.data(CA_FILE);
        let roots = certificates(&path).with_context(|| format!("reading the CA in {}", path.display()))?;
        if roots.is_empty() {
            bail!("{} holds no certificate", path.display());
        }
        Ok(roots)
    }

    /// What the node sends in a handshake: its certificate, and during a roll-over how it follows from the old CA.
    pub(super) fn chain(&self) -> Result<Vec<CertificateDer<'static>>> {
        let path = self.tls(NODE_CERTIFICATE_FILE);
        let mut chain =
            certificates(&path).with_context(|| format!("reading {}; `samovar init` makes it", path.display()))?;
        if chain.is_empty() {
            bail!("{} holds no certificate in PEM: restore it from a backup", path.display());
        }
        chain.extend(self.cross());
        Ok(chain)
    }

    fn cross(&self) -> Option<CertificateDer<'static>> {
        certificates(&self.tls(CROSS_FILE)).ok().and_then(|all| all.into_iter().next())
    }

    /// Whether clients may trust either of two CAs.
    pub(super) fn is_rolling_over(&self) -> bool {
        self.roots().is_ok_and(|roots| roots.len() > 1)
    }

    /// The CAs that must accept the node's certificate: the one in use, and the one before while its word for it holds.
    fn judges(&self, times: Times) -> Result<Vec<CertificateDer<'static>>> {
        let mut roots = self.roots()?;
        let word = self.cross().and_then(|cross| validity::of(&cross));
        if word.is_none_or(|life| life.not_after_s < times.latest_s()) {
            roots.truncate(1);
        }
        Ok(roots)
    }

    fn authority(&self, roots: &[CertificateDer<'static>]) -> Result<Authority> {
        let pem = self.pem(CA_KEY)?.with_context(|| format!("{} is missing", self.data(CA_KEY).display()))?;
        Authority::of(&pem, roots).with_context(|| self.data(CA_KEY).display().to_string())
    }

    /// Whether clients would accept the node's certificate now, whichever of the CAs they know.
    pub(super) fn hold(&self, times: Times) -> Result<()> {
        let chain = self.chain()?;
        let (leaf, between) = chain.split_first().context("the node has no certificate")?;
        let name = ServerName::try_from("localhost")?;
        self.judges(times)?
            .iter()
            .try_for_each(|root| accepts(root, leaf, between, &name, times))
            .with_context(|| format!("{} does not hold under {CA_FILE}", self.tls(NODE_CERTIFICATE_FILE).display()))
    }

    /// For which of these names and addresses one of the CAs refuses the node's certificate now, and why.
    pub(super) fn refused(&self, subject: &Subject, times: Times) -> Result<Vec<(String, String)>> {
        let (chain, judges) = (self.chain()?, self.judges(times)?);
        let (leaf, between) = chain.split_first().context("the node has no certificate")?;
        let judge = |text: &str| {
            let name = ServerName::try_from(text)?;
            judges.iter().try_for_each(|root| accepts(root, leaf, between, &name, times))
        };
        Ok(subject.texts().filter_map(|text| judge(&text).err().map(|e| (text, format!("{e:#}")))).collect())
    }

    /// Puts right what does not hold, or soon will not; says what was done and why.
    pub(super) fn tend(&self, subject: &Subject, times: Times) -> Result<Vec<String>> {
        self.settle()?;
        let mut done = Vec::new();
        if let Ok(roots) = self.roots()
            && let Ok(authority) = self.authority(&roots)
            && let Some(why) = is_due(&authority.certificate, CA_DAYS, times)
        {
            let before = authority.certificate.clone();
            let renewed = authority.renewed(subject, times)?.certificate;
            let others = roots.into_iter().filter(|root| *root != before);
            self.put_roots(&std::iter::once(renewed).chain(others).collect::<Vec<_>>())?;
            done.push(format!("the CA's certificate was made again with its old key, because {why}"));
        }
        let why = match self.loads().and_then(|()| self.hold(times)) {
            Err(why) => Some(format!("{why:#}")),
            Ok(()) => self.chain()?.first().and_then(|leaf| {
                let named = subject.node().is_none_or(|node| node_of(leaf) == Some(node));
                let unnamed = (!named).then(|| "it does not name the node to peers".to_owned());
                is_due(leaf, NODE_DAYS, times).or(unnamed)
            }),
        };
        if let Some(why) = why {
            let node = self.fresh_node(subject, times).with_context(|| format!("{why}; it cannot be made again"))?;
            for path in self.of_node() {
                set_aside(&path)?;
            }
            self.put_node(&node)?;
            done.push(format!("the node's key and certificate were made again by its CA, because {why}"));
        }
        Ok(done)
    }

    /// Whether key and certificate fit each other.
    fn loads(&self) -> Result<()> {
        super::Own::read(self)?.check()
    }

    /// Ends what a crash left half done.
    fn settle(&self) -> Result<()> {
        if let Some(pem) = self.pem(CA_KEY_NEXT)? {
            let next = self.data(CA_KEY_NEXT);
            if Authority::of(&pem, &self.roots()?).is_ok() {
                std::fs::rename(&next, self.data(CA_KEY)).context("putting the new CA's key in its place")?;
            } else {
                // No client ever heard of it.
                remove(&next)?;
                remove(&self.tls(CROSS_FILE))?;
            }
        }
        if !self.is_rolling_over() {
            remove(&self.tls(CROSS_FILE))?;
        }
        Ok(())
    }

    /// A new key and certificate for the node, accepted under every CA that clients may know.
    pub(super) fn fresh_node(&self, subject: &Subject, times: Times) -> Result<Fresh> {
        let (roots, judges) = (self.roots()?, self.judges(times)?);
        let between: Vec<_> = self.cross().into_iter().collect();
        let judge = |leaf: &CertificateDer<'_>, name: &ServerName<'_>| {
            judges.iter().try_for_each(|root| accepts(root, leaf, &between, name, times))
        };
        self.authority(&roots)?.certify(subject, times, judge)
    }

    /// Replaces the node's key and certificate; the key before is gone for good.
    pub(super) fn replace_node(&self, node: &Fresh) -> Result<()> {
        self.put_node(node)?;
        self.of_node().iter().try_for_each(|path| remove(&path.with_added_extension(OLD)))
    }

    /// Key and certificate of the node.
    fn of_node(&self) -> [PathBuf; 2] {
        [self.data(TLS_KEY), self.tls(NODE_CERTIFICATE_FILE)]
    }

    /// Makes a CA that is to take the place of the one in use.
    pub(super) fn next_authority(&self, subject: &Subject, times: Times) -> Result<NextAuthority> {
        let old = self.authority(&self.roots()?)?;
        let next = Authority::make(subject, times)?;
        let cross = old.vouch(&next, subject, times)?;
        let judge = |leaf: &CertificateDer<'_>, name: &ServerName<'_>| {
            let between = std::slice::from_ref(&cross);
            accepts(&next.certificate, leaf, between, name, times)?;
            accepts(&old.certificate, leaf, between, name, times)
        };
        let node = next.certify(subject, times, judge)?;
        Ok(NextAuthority { before: old.certificate, next, cross, node })
    }

    /// Begins the roll-over. Crash order: the new key beside the old one and the old CA's word for it; `ca.pem`, which decides
    /// that it happened; the new key in its place; the node's certificate, which `tend` would make again.
    pub(super) fn roll_over(&self, made: &NextAuthority) -> Result<()> {
        let NextAuthority { next, cross, before, node } = made;
        self.secrets.write(CA_KEY_NEXT, next.key_pem().as_bytes())?;
        replace(&self.tls(CROSS_FILE), pem(cross).as_bytes(), Mode::Secret)?;
        self.put_roots(&[next.certificate.clone(), before.clone()])?;
        std::fs::rename(self.data(CA_KEY_NEXT), self.data(CA_KEY)).context("replacing the CA's key")?;
        self.replace_node(node)
    }

    /// Ends the roll-over: the old CA counts no more. Crash order: `ca.pem`, which decides; then what it makes needless.
    pub(super) fn finish(&self) -> Result<()> {
        let roots = self.roots()?;
        self.put_roots(roots.get(..1).unwrap_or(&roots))?;
        remove(&self.tls(CROSS_FILE))
    }

    fn put_roots(&self, roots: &[CertificateDer<'_>]) -> Result<()> {
        let text: String = roots.iter().map(pem).collect();
        replace(&self.data(CA_FILE), text.as_bytes(), Mode::Public)
    }

    /// A crash in between leaves the two at odds: `tend` makes both again.
    fn put_node(&self, node: &Fresh) -> Result<()> {
        self.secrets.write(TLS_KEY, node.key.serialize_pem().as_bytes())?;
        replace(&self.tls(NODE_CERTIFICATE_FILE), pem(&node.certificate).as_bytes(), Mode::Secret)
    }

    /// The node's private key in PEM, and the path of its file.
    pub(super) fn node_key(&self) -> Result<(Vec<u8>, PathBuf)> {
        let path = self.data(TLS_KEY);
        let pem = self.secrets.read(TLS_KEY)?;
        let pem = pem.with_context(|| format!("{} is missing; `samovar init` makes it", path.display()))?;
        Ok((pem, path))
    }

    fn pem(&self, name: &str) -> Result<Option<String>> {
        let content = self.secrets.read(name)?;
        Ok(content.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    Ok(CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>()?)
}

/// Why a certificate is to be renewed, if it is: out of its time, past two thirds of its life (less up to a thirtieth,
/// by its own hash, so that nodes made together do not renew together), or made to live long by a clock that was wrong.
fn is_due(certificate: &CertificateDer<'_>, days: u32, times: Times) -> Option<String> {
    let Some(life) = validity::of(certificate) else { return Some("it does not say until when it holds".to_owned()) };
    if times.earliest_s() < life.not_before_s || life.not_after_s < times.latest_s() {
        return Some("it does not hold at this time".to_owned());
    }
    if times.earliest_s() >= renewal_s(certificate, life) {
        return Some("two thirds of its life are over".to_owned());
    }
    let longest_s = (u64::from(days) + 2) * DAY_S;
    (life.not_after_s.saturating_sub(times.latest_s()) > longest_s)
        .then(|| "a clock that was wrong had made it live too long".to_owned())
}

/// When two thirds of a certificate's life are over, less up to a thirtieth by its own hash; seconds since 1970.
pub(super) fn renewal_s(certificate: &CertificateDer<'_>, life: Validity) -> u64 {
    let length_s = life.not_after_s.saturating_sub(life.not_before_s);
    let jitter_s = length_s / 30 * u64::from(digest(&SHA256, certificate).as_ref()[0]) / 255;
    life.not_before_s + length_s / 3 * 2 - jitter_s
}

/// PEM as RFC 7468 has it.
fn pem(certificate: &CertificateDer<'_>) -> String {
    let base64 = STANDARD.encode(certificate);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in base64.as_bytes().chunks(PEM_LINE) {
        text.extend(line.iter().map(|b| char::from(*b)));
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}

/// What did not hold may be somebody's own, and is kept beside.
fn set_aside(path: &Path) -> Result<()> {
    match std::fs::rename(path, path.with_added_extension(OLD)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("moving {} aside", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
