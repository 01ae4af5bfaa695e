//! Who this node is: `node.json`, and the private keys of log and cosigner under `keys/`.
//!
//! Log key and cosigning key are two keys and neither is the TLS key (that one is the appliance's). The public halves
//! stand in `node.json`, so a damaged or exchanged key file is seen at start. The files are sealed if there is a
//! key-encryption key ([`crate::seal`]).
//!
//! A new log key lies in `keys/log.next` from before the entry that names it until the key before is destroyed
//! ([`crate::log_key`] says when which of the two signs). Of the two files `node.json` names the one in force, so that at
//! every crash point exactly one fits.

use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::durable;
use crate::error::Error;
use crate::note::{Scheme, Signer, VerifierKey};
use crate::policy::Policy;
use crate::rt;
use crate::seal::{COSIGNING_KEY, LOG_KEY, Role, Seal, zero};
use crate::view::LogInfo;

const FORMAT: u32 = 1;
pub(crate) const SEED_BYTES: usize = 32;

/// Bits of the id that are a hash of the origin; the number of the epoch lies above them.
const ORIGIN_BITS: u32 = 48;

/// Names a cluster: the number of its epoch, and a hash of its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClusterId(pub u64);

impl ClusterId {
    pub(crate) fn of(epoch: u64, origin: &str) -> Self {
        let hash = digest(&SHA256, origin.as_bytes());
        let hash = hash.as_ref().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        Self(epoch << ORIGIN_BITS | hash >> (u64::BITS - ORIGIN_BITS))
    }

    pub(crate) fn epoch(self) -> u64 {
        self.0 >> ORIGIN_BITS
    }
}

/// The file `node.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    pub format: u32,
    /// Id in the cluster.
    pub node: u64,
    /// Name of the node.
    pub name: String,
    /// Origin line of the log.
    pub origin: String,
    /// Verifier key of the log.
    pub log: String,
    /// Verifier key of this node's cosignatures.
    pub cosigner: String,
    /// Whether the log has been begun; until then an empty raft log is no loss.
    pub begun: bool,
    /// Whether the node joined a cluster that another began: its raft log comes from its peers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub joined: bool,
    /// Number of the epoch: one more than the recoveries of the ledger.
    #[serde(default = "first_epoch", skip_serializing_if = "is_first_epoch")]
    pub epoch: u64,
}

const fn first_epoch() -> u64 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_first_epoch(epoch: &u64) -> bool {
    *epoch == first_epoch()
}

/// What a node must know to join a cluster. Holds the log key: whoever has it can sign in the cluster's name.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admission {
    /// The id that the cluster gave it.
    pub(crate) node: u64,
    /// Origin line of the log.
    pub(crate) origin: String,
    /// Private half of the log key.
    pub(crate) log_seed: [u8; SEED_BYTES],
    /// As in [`Identity`].
    #[serde(default = "first_epoch", skip_serializing_if = "is_first_epoch")]
    pub(crate) epoch: u64,
}

/// The private keys.
pub(crate) struct Keys {
    /// The one that `node.json` names.
    pub log: Signer,
    /// The one in `keys/log.next`.
    pub next: Option<Signer>,
    pub cosigner: Signer,
}

/// Where identity and keys lie, and how the keys are sealed.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub disk: &'a dyn Disk,
    pub data: &'a Path,
    pub seal: &'a Seal,
}

const LOG: &str = "log";
const NEXT: &str = "log.next";
const COSIGNER: &str = "cosigner";
/// Of the epoch that a recovery is to begin.
const LOG_RECOVERED: &str = "log.recovered";
const COSIGNER_RECOVERED: &str = "cosigner.recovered";

fn role(which: &str) -> Role {
    if matches!(which, COSIGNER | COSIGNER_RECOVERED) { COSIGNING_KEY } else { LOG_KEY }
}

fn identity_path(data: &Path) -> PathBuf {
    data.join("node.json")
}

fn key_path(data: &Path, which: &str) -> PathBuf {
    data.join("keys").join(which)
}

impl Identity {
    /// Makes keys and identity of a new ledger.
    pub(crate) fn create(place: Place<'_>, name: &str, origin: &str) -> Result<Self, Error> {
        let (origin, epoch) = (origin.to_owned(), first_epoch());
        Self::make(place, name, &Admission { node: 1, origin, log_seed: draw_seed(), epoch }, false)
    }

    /// Makes the identity of a node that joins a cluster, with a cosigning key of its own.
    pub(crate) fn join(place: Place<'_>, name: &str, admission: &Admission) -> Result<Self, Error> {
        Self::make(place, name, admission, true)
    }

    fn make(place: Place<'_>, name: &str, admission: &Admission, joined: bool) -> Result<Self, Error> {
        let Place { disk, data, .. } = place;
        if durable::read(disk, &identity_path(data))?.is_some() {
            return Err(Error::Invalid(format!("{} already holds a ledger", data.display())));
        }
        let keys = data.join("keys");
        disk.create_directory(&keys).map_err(|e| Error::io(format!("making {}", keys.display()), &e))?;
        let Admission { node, origin, log_seed, epoch } = admission;
        let log = keep_key(place, LOG, origin, Scheme::Ed25519, log_seed)?;
        let cosigner = keep_key(place, COSIGNER, &format!("{origin}/{name}"), Scheme::Cosignature, &draw_seed())?;
        let identity = Self {
            format: FORMAT,
            node: *node,
            name: name.to_owned(),
            origin: origin.clone(),
            log: log.verifier_key().to_string(),
            cosigner: cosigner.verifier_key().to_string(),
            begun: false,
            joined,
            epoch: *epoch,
        };
        identity.save(disk, data)?;
        Ok(identity)
    }

    /// What this node tells one that joins. The caller sees to it that nobody else reads it.
    pub(crate) fn admission(&self, place: Place<'_>, node: u64) -> Result<Admission, Error> {
        let log_seed = read_seed(place, LOG)?.ok_or_else(|| damaged(place.data, LOG, "is missing"))?;
        Ok(Admission { node, origin: self.origin.clone(), log_seed, epoch: self.epoch })
    }

    pub(crate) fn save(&self, disk: &dyn Disk, data: &Path) -> Result<(), Error> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        durable::replace(disk, &identity_path(data), &text)
    }

    /// Reads identity and keys, and checks that they belong together.
    pub(crate) fn load(place: Place<'_>) -> Result<(Self, Keys), Error> {
        let Place { disk, data, .. } = place;
        let identity = Self::read(disk, data)?;
        let (named, cosigner) = (public(LOG, &identity.log)?, public(COSIGNER, &identity.cosigner)?);
        let next = match read_seed(place, NEXT)? {
            Some(seed) => Some(signer(data, NEXT, &named, seed)?),
            None => None,
        };
        let keys = match next {
            // The last step of a hand-over is still to be done: `settle` does it.
            Some(next) if *next.verifier_key() == named => {
                Keys { log: next, next: None, cosigner: load_key(place, COSIGNER, &cosigner)? }
            }
            next => Keys { log: load_key(place, LOG, &named)?, next, cosigner: load_key(place, COSIGNER, &cosigner)? },
        };
        Ok((identity, keys))
    }

    /// Reads `node.json` alone.
    pub(crate) fn read(disk: &dyn Disk, data: &Path) -> Result<Self, Error> {
        let path = identity_path(data);
        let Some(text) = durable::read(disk, &path)? else {
            return Err(Error::Invalid(format!(
                "{} holds no ledger: make one with `samovar init --data {}`",
                data.display(),
                data.display()
            )));
        };
        let identity: Self = serde_json::from_slice(&text)
            .map_err(|e| Error::Corrupt(format!("{} is damaged ({e}): restore it from a backup", path.display())))?;
        if identity.format != FORMAT {
            let found = identity.format;
            return Err(Error::Corrupt(format!("{} has format {found}, this version reads {FORMAT}", path.display())));
        }
        Ok(identity)
    }

    /// Names the cluster in messages.
    pub(crate) fn cluster(&self) -> ClusterId {
        ClusterId::of(self.epoch, &self.origin)
    }

    /// Keys and policy as a verifier needs them.
    pub(crate) fn log_info(&self, keys: &Keys) -> LogInfo {
        let cosigner = keys.cosigner.verifier_key().clone();
        LogInfo {
            origin: self.origin.clone(),
            vkey: keys.log.verifier_key().to_string(),
            cosigners: vec![self.cosigner.clone()],
            policy: Policy::of_cluster(keys.log.verifier_key(), &[(self.name.clone(), cosigner)]),
        }
    }
}

fn draw_seed() -> [u8; SEED_BYTES] {
    let mut seed = [0; SEED_BYTES];
    rt::fill_random(&mut seed);
    seed
}

/// Makes a key of a seed, and its file, durably.
fn keep_key(
    place: Place<'_>,
    which: &str,
    name: &str,
    scheme: Scheme,
    seed: &[u8; SEED_BYTES],
) -> Result<Signer, Error> {
    let signer = Signer::from_seed(name, scheme, seed)
        .map_err(|e| Error::Invalid(format!("{name:?} cannot name a key: {e}")))?;
    write_seed(place, which, seed)?;
    Ok(signer)
}

/// Makes the log key that is to follow and its file, durably. The chain log does not name it yet.
pub(crate) fn make_next(place: Place<'_>, origin: &str, seed: &[u8; SEED_BYTES]) -> Result<Signer, Error> {
    keep_key(place, NEXT, origin, Scheme::Ed25519, seed)
}

/// Makes log key and cosigning key of an epoch that a recovery is to begin, and their files; gives the public halves.
pub(crate) fn make_recovered(place: Place<'_>, origin: &str, name: &str) -> Result<(VerifierKey, VerifierKey), Error> {
    let log = keep_key(place, LOG_RECOVERED, origin, Scheme::Ed25519, &draw_seed())?;
    let cosigner = keep_key(place, COSIGNER_RECOVERED, &format!("{origin}/{name}"), Scheme::Cosignature, &draw_seed())?;
    Ok((log.verifier_key().clone(), cosigner.verifier_key().clone()))
}

/// Puts the keys of a recovery in the places of those before, which are destroyed. May be cut anywhere, and is then done again.
pub(crate) fn take_recovered(disk: &dyn Disk, data: &Path) -> Result<(), Error> {
    for (new, old) in [(LOG_RECOVERED, LOG), (COSIGNER_RECOVERED, COSIGNER)] {
        let (new, old) = (key_path(data, new), key_path(data, old));
        if durable::read(disk, &new)?.is_some() {
            overwrite(disk, &old)?;
            let renamed = disk.rename(&new, &old).and_then(|()| disk.sync_directory(&data.join("keys")));
            renamed.map_err(|e| Error::io(format!("replacing {}", old.display()), &e))?;
        }
    }
    if has_next(disk, data)? { discard_next(disk, data) } else { Ok(()) }
}

/// The private half of the log key in force, or of the one that is to follow.
pub(crate) fn log_seed(place: Place<'_>, follows: bool) -> Result<Option<[u8; SEED_BYTES]>, Error> {
    read_seed(place, if follows { NEXT } else { LOG })
}

/// Removes a log key that no entry names.
pub(crate) fn discard_next(disk: &dyn Disk, data: &Path) -> Result<(), Error> {
    let path = key_path(data, NEXT);
    overwrite(disk, &path)?;
    let removed = disk.remove(&path).and_then(|()| disk.sync_directory(&data.join("keys")));
    removed.map_err(|e| Error::io(format!("removing {}", path.display()), &e))
}

/// Puts the next log key in the place of the one before, which is destroyed: from here on `node.json` names the new one.
/// May be cut anywhere, and is then done again.
pub(crate) fn take_next(disk: &dyn Disk, data: &Path, log: &VerifierKey) -> Result<(), Error> {
    let identity = Identity::read(disk, data)?;
    Identity { log: log.to_string(), ..identity }.save(disk, data)?;
    let (path, next) = (key_path(data, LOG), key_path(data, NEXT));
    overwrite(disk, &path)?;
    let renamed = disk.rename(&next, &path).and_then(|()| disk.sync_directory(&data.join("keys")));
    renamed.map_err(|e| Error::io(format!("replacing {}", path.display()), &e))
}

/// Whether `keys/log.next` is there.
pub(crate) fn has_next(disk: &dyn Disk, data: &Path) -> Result<bool, Error> {
    Ok(durable::read(disk, &key_path(data, NEXT))?.is_some())
}

/// Writes zeros over a key before its name goes: as far as the file system lets, nothing of it stays on the disk.
fn overwrite(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    let zeroed = disk.open(path, true).and_then(|file| zero(file.as_ref()));
    zeroed.map_err(|e| Error::io(format!("destroying {}", path.display()), &e))
}

fn public(which: &str, vkey: &str) -> Result<VerifierKey, Error> {
    VerifierKey::parse(vkey)
        .map_err(|e| Error::Corrupt(format!("node.json: key of the {which}: {e}; restore the file from a backup")))
}

fn damaged(data: &Path, which: &str, what: &str) -> Error {
    Error::Corrupt(format!("{} {what}: restore it from a backup", key_path(data, which).display()))
}

fn write_seed(place: Place<'_>, which: &str, seed: &[u8; SEED_BYTES]) -> Result<(), Error> {
    let Place { disk, data, seal } = place;
    durable::replace(disk, &key_path(data, which), &seal.close(role(which), seed)?)
}

fn read_seed(place: Place<'_>, which: &str) -> Result<Option<[u8; SEED_BYTES]>, Error> {
    let Place { disk, data, seal } = place;
    let path = key_path(data, which);
    let Some(stored) = durable::read(disk, &path)? else { return Ok(None) };
    let seed = seal.open(&path, role(which), stored)?;
    seed.try_into().map(Some).map_err(|_| damaged(data, which, "has the wrong length"))
}

/// The key of a seed, under the name and of the kind of `like`.
fn signer(data: &Path, which: &str, like: &VerifierKey, seed: [u8; SEED_BYTES]) -> Result<Signer, Error> {
    Signer::from_seed(like.name(), like.scheme(), &seed).map_err(|e| damaged(data, which, &e.to_string()))
}

fn load_key(place: Place<'_>, which: &str, public: &VerifierKey) -> Result<Signer, Error> {
    let data = place.data;
    let seed = read_seed(place, which)?.ok_or_else(|| damaged(data, which, "is missing"))?;
    let signer = signer(data, which, public, seed)?;
    if signer.verifier_key() != public {
        return Err(damaged(data, which, "does not belong to the public key in node.json"));
    }
    Ok(signer)
}
