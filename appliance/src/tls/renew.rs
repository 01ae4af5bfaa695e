//! The node's key and certificate, made again by the CA of the same data directory when they are missing, damaged, or do
//! not hold for clients any more.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use samovar_node::rt;

use super::{
    CA_FILE, CA_KEY_FILE, CA_KEY_USAGES, CA_NAME, DIRECTORY, Loaded, NODE_CERTIFICATE_FILE, NODE_KEY_FILE, Subject,
    ca_name, load, node_params,
};
use crate::durable::{Mode, sync_directory, write_new};

/// The name that every certificate of ours has.
const LOCALHOST: &str = "localhost";

/// The TLS configuration of the API. What is wrong with the node's key and certificate is put right, if the CA's key is
/// there; those before are kept beside, as `.old`. `subject` is asked only then.
pub(crate) fn load_or_renew(data: &Path, subject: impl FnOnce() -> Result<Subject>) -> Result<Loaded> {
    let why = match load(data).and_then(|config| holds(data).map(|()| config)) {
        Ok(config) => return Ok(config),
        Err(why) => why,
    };
    let shown = data.join(DIRECTORY).display().to_string();
    match subject().and_then(|subject| renew(data, &subject)) {
        Ok(()) => {
            tracing::warn!("tls: key and certificate in {shown} were made again by its CA, because {why:#}");
            load(data)
        }
        Err(error) => match load(data) {
            // It serves as before: clients that trust it for another reason are not cut off.
            Ok(config) => {
                tracing::warn!("tls: {why:#}; it cannot be made again ({error:#}): restore {shown} from a backup");
                Ok(config)
            }
            Err(_) => Err(why.context(format!(
                "the node's TLS key and certificate cannot be made again ({error:#}): restore {shown} from a backup"
            ))),
        },
    }
}

/// Whether a client that trusts the CA would accept the node's certificate now.
fn holds(data: &Path) -> Result<()> {
    let path = data.join(DIRECTORY).join(NODE_CERTIFICATE_FILE);
    let node = CertificateDer::from_pem_file(&path).with_context(|| format!("reading {}", path.display()))?;
    verify(&node, roots(data)?, LOCALHOST).with_context(|| format!("{} does not hold under {CA_FILE}", path.display()))
}

/// The names and addresses of `subject` for which clients would refuse the node's certificate now, with the reasons.
///
/// # Errors
/// When a certificate cannot be read.
pub(crate) fn refused_names(data: &Path, subject: &Subject) -> Result<Vec<(String, String)>> {
    let path = data.join(DIRECTORY).join(NODE_CERTIFICATE_FILE);
    let node = CertificateDer::from_pem_file(&path).with_context(|| format!("reading {}", path.display()))?;
    let roots = roots(data)?;
    let names = subject.names.iter().cloned().chain(subject.addresses.iter().map(ToString::to_string));
    Ok(names.filter_map(|name| verify(&node, roots.clone(), &name).err().map(|e| (name, format!("{e:#}")))).collect())
}

fn roots(data: &Path) -> Result<rustls::RootCertStore> {
    let path = data.join(CA_FILE);
    let context = || format!("reading the CA in {}", path.display());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&path).with_context(context)?).with_context(context)?;
    Ok(roots)
}

/// Whether a client that trusts these and asks for `name` would accept the certificate now.
fn verify(node: &CertificateDer<'_>, roots: rustls::RootCertStore, name: &str) -> Result<()> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_millis(rt::now_ms()));
    verifier.verify_server_cert(node, &[], &ServerName::try_from(name)?, &[], now)?;
    Ok(())
}

/// Makes key and certificate for `subject`, or for the local part of it if the CA permits no more.
fn renew(data: &Path, subject: &Subject) -> Result<()> {
    let directory = data.join(DIRECTORY);
    let roots = roots(data)?;
    let issuer = issuer(&directory, &roots)?;
    let key = KeyPair::generate().context("making a TLS key")?;
    let sign = |subject: &Subject| -> Result<rcgen::Certificate> {
        let node = node_params(subject)?.signed_by(&key, &issuer).context("signing a certificate")?;
        verify(node.der(), roots.clone(), LOCALHOST).context("the new certificate does not hold under the CA")?;
        Ok(node)
    };
    let node = sign(subject).or_else(|_| sign(&subject.local()))?;
    replace(&directory.join(NODE_KEY_FILE), key.serialize_pem().as_bytes())?;
    replace(&directory.join(NODE_CERTIFICATE_FILE), node.pem().as_bytes())?;
    sync_directory(&directory)
}

/// The CA as it was when it signed before: its name is read from its certificate, the rest of it never changes.
fn issuer(directory: &Path, roots: &rustls::RootCertStore) -> Result<Issuer<'static, KeyPair>> {
    let path = directory.join(CA_KEY_FILE);
    let pem = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let key = KeyPair::from_pem(&pem).with_context(|| format!("{} holds no private key", path.display()))?;
    let subject = roots.roots.first().map(|root| String::from_utf8_lossy(&root.subject).into_owned());
    // The name is all of the subject, so that it ends where the subject does.
    let name = subject.as_deref().and_then(|subject| subject.split_once(CA_NAME)).map(|(_, name)| name);
    let name = name.ok_or_else(|| anyhow!("{CA_FILE} is not a CA that samovar made"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = ca_name(name);
    params.key_usages = CA_KEY_USAGES.to_vec();
    Ok(Issuer::new(params, key))
}

/// A crash in between leaves a file missing or the two at odds: the next start does this again.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    if path.exists() {
        let old = path.with_added_extension("old");
        std::fs::rename(path, &old).with_context(|| format!("moving {} aside", path.display()))?;
    }
    write_new(path, content, Mode::Secret)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn subject(name: &str) -> Subject {
        Subject::of(name, IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    fn made() -> tempfile::TempDir {
        let data = tempfile::tempdir().expect("a directory");
        super::super::make(data.path(), &subject("box-01")).expect("certificates are made");
        data
    }

    fn node_pem(data: &Path) -> Vec<u8> {
        std::fs::read(data.join("tls/node.pem")).expect("node.pem")
    }

    #[test]
    fn what_holds_is_left_alone() {
        let data = made();
        let before = node_pem(data.path());
        load_or_renew(data.path(), || panic!("nothing is to be made")).expect("it holds");
        assert_eq!(node_pem(data.path()), before);
    }

    #[test]
    fn a_certificate_under_another_ca_is_made_again() {
        let (data, other) = (made(), made());
        for name in ["tls/node.pem", "tls/node.key"] {
            std::fs::copy(other.path().join(name), data.path().join(name)).expect("copied");
        }
        let before = node_pem(data.path());
        load_or_renew(data.path(), || Ok(subject("box-01"))).expect("made again");
        holds(data.path()).expect("it holds for clients");
        assert_ne!(node_pem(data.path()), before);
        assert_eq!(std::fs::read(data.path().join("tls/node.pem.old")).expect("kept"), before);
    }

    #[test]
    fn a_machine_of_another_name_gets_what_its_ca_permits() {
        let data = made();
        std::fs::remove_file(data.path().join("tls/node.key")).expect("removed");
        load_or_renew(data.path(), || Ok(subject("renamed.example"))).expect("made again");
        holds(data.path()).expect("it holds for clients");
    }

    #[test]
    fn without_the_ca_key_what_to_do_is_said() {
        let data = made();
        for name in ["tls/node.key", "tls/ca.key"] {
            std::fs::remove_file(data.path().join(name)).expect("removed");
        }
        let refused = load_or_renew(data.path(), || Ok(subject("box-01"))).err().expect("no key is left");
        let said = format!("{refused:#}");
        assert!(said.contains("restore") && said.contains("ca.key"), "{said}");
    }
}
