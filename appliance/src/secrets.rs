//! The secret files of a data directory. Every one of them is read and written here, sealed if there is a key-encryption key
//! (KEK), and where that comes from.
//!
//! Not among them are `admin.token`, which is handed to a person, and the salts and values of the ledger itself.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use samovar_node::disk::OsDisk;
use samovar_node::seal::{self, KEK_BYTES, Kek, NODE_FILES, Role, Seal, SecretFile};
use samovar_node::{Error, rt};

use crate::auth::{hex, unhex};
use crate::durable::{self, Mode};

/// Names of the credentials that systemd passes.
pub(crate) const CREDENTIAL: &str = "samovar.kek";
const CREDENTIAL_OLD: &str = "samovar.kek.old";
/// Where systemd keeps the credentials of the unit, for root to look at.
const UNIT_CREDENTIALS: &str = "/run/credentials/samovar.service";
/// What is done about a KEK that is missing or not the right one.
const GIVE_IT: &str = "give the daemon that key, by the credential samovar.kek or by node.kek; if it is lost, the file's secret \
                       is lost with it (docs/operate/sealing.md)";

/// The CA's private key; `.next` while a roll-over begins.
pub(crate) const CA_KEY: &str = "tls/ca.key";
pub(crate) const CA_KEY_NEXT: &str = "tls/ca.key.next";
/// The node's private key for TLS; `.old` once it did not hold.
pub(crate) const TLS_KEY: &str = "tls/node.key";
/// The key that signs session tokens.
pub(crate) const SESSION_KEY: &str = "session.key";
/// The account at an ACME authority, with its key.
pub(crate) const ACME_ACCOUNT: &str = "tls/acme-account.json";
/// A certificate that an ACME authority issued, with its private key; `.issued` while it has no entry.
pub(crate) const ACME_CERTIFICATE: &str = "tls/acme.pem";
pub(crate) const ACME_ISSUED: &str = "tls/acme.pem.issued";

const CA_ROLE: Role = Role("ca-key");
const TLS_ROLE: Role = Role("tls-key");
const ACME_ROLE: Role = Role("acme-certificate");

/// Every secret file and what it is for. Files that take each other's place have one role; what lies beside them in the
/// open (`node.json`, `ca.pem`, `node.pem`) says which is which.
pub(crate) const FILES: [SecretFile; 13] = [
    NODE_FILES[0],
    NODE_FILES[1],
    NODE_FILES[2],
    NODE_FILES[3],
    NODE_FILES[4],
    (CA_KEY, CA_ROLE),
    (CA_KEY_NEXT, CA_ROLE),
    (TLS_KEY, TLS_ROLE),
    ("tls/node.key.old", TLS_ROLE),
    (SESSION_KEY, Role("session-key")),
    (ACME_ACCOUNT, Role("acme-account")),
    (ACME_CERTIFICATE, ACME_ROLE),
    (ACME_ISSUED, ACME_ROLE),
];

/// Files that hold KEKs, as they are configured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KekFiles {
    /// The KEK in force.
    pub(crate) current: Option<PathBuf>,
    /// The one before it.
    pub(crate) old: Option<PathBuf>,
}

impl KekFiles {
    /// With what systemd passed to this process, for what is not configured.
    pub(crate) fn or_credentials(&self) -> Self {
        self.or_in(std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from).as_deref())
    }

    /// With what systemd passed to the unit, as far as this user may see it.
    pub(crate) fn or_credentials_of_unit(&self) -> Self {
        self.or_in(Some(Path::new(UNIT_CREDENTIALS)))
    }

    fn or_in(&self, directory: Option<&Path>) -> Self {
        let passed = |name: &str| directory.map(|d| d.join(name)).filter(|path| path.exists());
        Self {
            current: self.current.clone().or_else(|| passed(CREDENTIAL)),
            old: self.old.clone().or_else(|| passed(CREDENTIAL_OLD)),
        }
    }

    /// Reads them, for a data directory.
    pub(crate) fn read(&self, data: &Path) -> Result<Seal> {
        let (current, old) = (self.current.as_deref(), self.old.as_deref());
        if let (None, Some(old)) = (current, old) {
            bail!(
                "{} is a former key-encryption key, and there is none to follow it: give that one too",
                old.display()
            );
        }
        let read = |path: Option<&Path>| path.map(|path| read_kek(path, data)).transpose();
        Ok(Seal::new(read(current)?, read(old)?))
    }
}

/// Reads a KEK: 64 hex digits. `data` is what it is to protect.
pub(crate) fn read_kek(path: &Path, data: &Path) -> Result<Kek> {
    let shown = path.display();
    let inside =
        |path: &Path| path.canonicalize().ok().zip(data.canonicalize().ok()).is_some_and(|(p, d)| p.starts_with(d));
    if inside(path) {
        bail!("the key-encryption key {shown} lies in the data directory that it is to protect: keep it elsewhere");
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("reading the key-encryption key {shown}"))?;
    // Never quoted: it may be a key with a slip of the pen in it.
    unhex(text.trim()).and_then(|bytes| Kek::of(&bytes)).with_context(|| {
        format!(
            "{shown} is no key-encryption key, which is {} hex digits: make one with `samovar kek new FILE`",
            2 * KEK_BYTES
        )
    })
}

/// A new KEK, as it stands in its file.
pub(crate) fn new_kek() -> String {
    let mut bytes = [0; KEK_BYTES];
    rt::fill_random(&mut bytes);
    hex(&bytes) + "\n"
}

/// The secret files of one data directory. Clones are cheap.
#[derive(Debug, Clone)]
pub(crate) struct Secrets {
    data: PathBuf,
    seal: Seal,
}

impl Secrets {
    /// Of a data directory, with a seal.
    pub(crate) fn new(data: &Path, seal: Seal) -> Self {
        Self { data: data.to_owned(), seal }
    }

    /// Of a data directory, and everything in the clear.
    #[cfg(test)]
    pub(crate) fn clear(data: &Path) -> Self {
        Self::new(data, Seal::default())
    }

    /// Brings every file under the KEK in force; the names of those that were not. Who calls it has the directory's lock.
    pub(crate) fn settle(&self) -> Result<Vec<&'static str>> {
        self.seal.settle(&OsDisk, &self.data, &FILES).map_err(|error| match error {
            Error::Invalid(_) => anyhow!("{error}: {GIVE_IT}"),
            _ => anyhow!("{error}"),
        })
    }

    /// The data directory.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// How its files are sealed.
    pub(crate) fn seal(&self) -> &Seal {
        &self.seal
    }

    /// The content of a file of [`FILES`], if it is there.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.data.join(name);
        match std::fs::read(&path) {
            Ok(stored) => Ok(Some(self.seal.open(&path, role(name)?, stored)?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Replaces a file of [`FILES`], durably.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        durable::replace(&self.data.join(name), &self.seal.close(role(name)?, content)?, Mode::Secret)
    }
}

fn role(name: &str) -> Result<Role> {
    let found = FILES.iter().find(|(file, _)| *file == name).map(|(_, role)| *role);
    found.with_context(|| format!("{name} is not among the secret files"))
}

/// Whether an error is that a file's KEK is not to be had here.
pub(crate) fn is_sealed(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(Error::Invalid(_))))
}

/// Under which KEK each secret file lies that is there, in the order of [`FILES`].
///
/// # Errors
/// When one cannot be read.
pub(crate) fn keks_in(data: &Path) -> std::io::Result<Vec<(&'static str, Option<String>)>> {
    let mut found = Vec::new();
    for (name, _) in FILES {
        match std::fs::read(data.join(name)) {
            Ok(stored) => found.push((name, seal::kek_of(&stored).map(str::to_owned))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
