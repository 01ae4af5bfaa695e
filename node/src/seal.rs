//! Files that hold secrets, sealed under a key-encryption key (KEK) that is kept elsewhere.
//!
//! A sealed file is a line of text, `samovar sealed 1 ID\n` with the id of the KEK, a random nonce of 12 bytes, and
//! AES-256-GCM of the content (NIST SP 800-38D) with its tag of 16 bytes. The additional data is that line and the
//! [`Role`], so that no file passes for another. A file that does not begin with the line is in the clear.
//!
//! [`Seal::settle`] brings files to the KEK in force, one by one, and is done again after a crash: at each point a file is
//! whole, under the KEK before or under the new one.

use std::fmt::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};

use crate::disk::{Disk, File};
use crate::durable;
use crate::error::Error;
use crate::rt;

/// Bytes of a KEK.
pub const KEK_BYTES: usize = 32;
/// What a sealed file begins with; the id of its KEK and a newline follow.
const MARK: &str = "samovar sealed 1 ";
/// Keeps the id of a KEK apart from every other hash.
const ID_DOMAIN: &[u8] = b"samovar key-encryption key v1\0";
/// Bytes of the hash that are the id, which is written in hex.
const ID_BYTES: usize = 8;
/// Ends the name of a file that is being written, after its extension ([`durable::replace`] sets it in its place).
const NEW: &str = "new";

/// What a secret file is for. It is bound into the sealed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role(pub &'static str);

/// A secret file: its name below the data directory, and its role.
pub type SecretFile = (&'static str, Role);

/// The log's private key.
pub(crate) const LOG_KEY: Role = Role("log-key");
/// The node's private key for cosignatures.
pub(crate) const COSIGNING_KEY: Role = Role("cosigning-key");
/// The secret files of the node. The log key that is to follow has the role of the one that it follows: `node.json` and the
/// chain log say which is which.
pub const NODE_FILES: [SecretFile; 5] = [
    ("keys/log", LOG_KEY),
    ("keys/log.next", LOG_KEY),
    ("keys/cosigner", COSIGNING_KEY),
    ("keys/log.recovered", LOG_KEY),
    ("keys/cosigner.recovered", COSIGNING_KEY),
];

/// A key-encryption key.
pub struct Kek {
    id: String,
    key: LessSafeKey,
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kek({})", self.id)
    }
}

impl Kek {
    /// The KEK of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8; KEK_BYTES]) -> Option<Self> {
        let hash = digest(&SHA256, &[ID_DOMAIN, bytes].concat());
        let id = hash.as_ref().iter().take(ID_BYTES).fold(String::new(), |mut id, byte| {
            let _ = write!(id, "{byte:02x}");
            id
        });
        Some(Self { id, key: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).ok()?) })
    }

    /// Names the KEK without giving it away: 16 hex digits of a hash.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    fn line(&self) -> String {
        format!("{MARK}{}\n", self.id)
    }

    fn close(&self, role: Role, content: &[u8]) -> Result<Vec<u8>, Error> {
        let mut nonce = [0; NONCE_LEN];
        rt::fill_random(&mut nonce);
        let line = self.line();
        let mut body = content.to_vec();
        let aad = Aad::from([line.as_bytes(), role.0.as_bytes()].concat());
        let sealed = self.key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut body);
        sealed.map_err(|_| Error::Invalid(format!("the {} is too large to be sealed", role.0)))?;
        Ok([line.as_bytes(), &nonce, &body].concat())
    }

    fn open(&self, role: Role, stored: &[u8]) -> Option<Vec<u8>> {
        let line = self.line();
        let (nonce, body) = stored.strip_prefix(line.as_bytes())?.split_first_chunk::<NONCE_LEN>()?;
        let mut body = body.to_vec();
        let aad = Aad::from([line.as_bytes(), role.0.as_bytes()].concat());
        let length = self.key.open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut body).ok()?.len();
        body.truncate(length);
        Some(body)
    }
}

/// The id of the KEK that a file's content is sealed under; `None`: it is in the clear.
#[must_use]
pub fn kek_of(stored: &[u8]) -> Option<&str> {
    let id = stored.strip_prefix(MARK.as_bytes())?.get(..2 * ID_BYTES)?;
    std::str::from_utf8(id).ok().filter(|id| id.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Under which KEK secret files are written, and which others they may be read by. By default none: they are in the clear.
#[derive(Debug, Clone, Default)]
pub struct Seal {
    current: Option<Arc<Kek>>,
    former: Option<Arc<Kek>>,
}

impl Seal {
    /// Writes under `current`; `None`: in the clear. What lies under `former` can still be read.
    #[must_use]
    pub fn new(current: Option<Kek>, former: Option<Kek>) -> Self {
        Self { current: current.map(Arc::new), former: former.map(Arc::new) }
    }

    /// Id of the KEK under which files are written.
    #[must_use]
    pub fn kek_id(&self) -> Option<&str> {
        self.current.as_deref().map(Kek::id)
    }

    /// What is to be stored for this content.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a content of more than 64 GiB.
    pub fn close(&self, role: Role, content: &[u8]) -> Result<Vec<u8>, Error> {
        self.current.as_ref().map_or_else(|| Ok(content.to_vec()), |kek| kek.close(role, content))
    }

    /// The content of what is stored; `path` is what errors call it. What is in the clear is taken as it is.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is sealed under another KEK than those given; [`Error::Corrupt`] when it was changed, or
    /// sealed in another role.
    pub fn open(&self, path: &Path, role: Role, stored: Vec<u8>) -> Result<Vec<u8>, Error> {
        let Some(id) = kek_of(&stored) else { return Ok(stored) };
        let given = || self.current.iter().chain(&self.former);
        let Some(kek) = given().find(|kek| kek.id == id) else {
            let ids: Vec<&str> = given().map(|kek| kek.id()).collect();
            let given =
                if ids.is_empty() { "none was given".to_owned() } else { format!("given was {}", ids.join(", ")) };
            let path = path.display();
            return Err(Error::Invalid(format!("{path} is sealed under the key-encryption key {id}, {given}")));
        };
        kek.open(role, &stored).ok_or_else(|| {
            let path = path.display();
            Error::Corrupt(format!("{path} is damaged, or was sealed as another file: restore it from a backup"))
        })
    }

    /// Brings files to the KEK in force, and gives the names of those that were not under it. What a file held in the clear is
    /// overwritten, as far as the file system lets.
    ///
    /// A file that is under the right KEK is not opened: who reads it says what is wrong with it.
    ///
    /// # Errors
    /// As [`Seal::open`] for a file under another KEK, before any file is changed; [`Error::Io`] when one cannot be read or
    /// written.
    pub fn settle(&self, disk: &dyn Disk, data: &Path, files: &[SecretFile]) -> Result<Vec<&'static str>, Error> {
        let mut due = Vec::new();
        for (name, role) in files {
            let path = data.join(name);
            discard(disk, &path.with_added_extension(NEW))?;
            let Some(stored) = durable::read(disk, &path)? else { continue };
            if kek_of(&stored) != self.kek_id() {
                due.push((*name, *role, self.open(&path, *role, stored)?));
            }
        }
        for (name, role, content) in &due {
            self.replace(disk, &data.join(name), &self.close(*role, content)?)?;
        }
        Ok(due.into_iter().map(|(name, ..)| name).collect())
    }

    /// Crash order: a whole new file, then its name, then the end of what was there before.
    fn replace(&self, disk: &dyn Disk, path: &Path, stored: &[u8]) -> Result<(), Error> {
        let new = path.with_added_extension(NEW);
        let directory = path.parent().unwrap_or(Path::new("."));
        let replaced = (|| {
            let before = disk.open(path, false)?;
            let file = disk.open(&new, true)?;
            file.set_length(0)?;
            file.write_at(stored, 0)?;
            file.sync()?;
            disk.rename(&new, path)?;
            disk.sync_directory(directory)?;
            if self.current.is_some() {
                zero(before.as_ref())?;
            }
            Ok(())
        })();
        replaced.map_err(|e: std::io::Error| Error::io(format!("sealing {}", path.display()), &e))
    }
}

/// Removes what a crash left of a file that was being written.
fn discard(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    let discarded = (|| {
        let file = match disk.open(path, false) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        zero(file.as_ref())?;
        disk.remove(path)?;
        disk.sync_directory(path.parent().unwrap_or(Path::new(".")))
    })();
    discarded.map_err(|e| Error::io(format!("removing {}", path.display()), &e))
}

/// Writes zeros over a file, durably.
pub(crate) fn zero(file: &dyn File) -> std::io::Result<()> {
    let length = usize::try_from(file.length()?).unwrap_or(0);
    file.write_at(&vec![0; length], 0)?;
    file.sync()
}

#[cfg(test)]
mod tests;
