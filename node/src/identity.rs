//! Who this node is: `node.json`, and the private keys of log and cosigner under `keys/`.
//!
//! Log key and cosigning key are two keys and neither is the TLS key (that one is the appliance's). The public halves
//! stand in `node.json`, so a damaged or exchanged key file is seen at start.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::durable;
use crate::error::Error;
use crate::note::{Scheme, Signer, VerifierKey};
use crate::policy::Policy;
use crate::rt;
use crate::view::LogInfo;

const FORMAT: u32 = 1;
const SEED_BYTES: usize = 32;

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
}

/// The private keys.
pub(crate) struct Keys {
    pub log: Signer,
    pub cosigner: Signer,
}

fn identity_path(data: &Path) -> PathBuf {
    data.join("node.json")
}

fn key_path(data: &Path, which: &str) -> PathBuf {
    data.join("keys").join(which)
}

impl Identity {
    /// Makes keys and identity of a new ledger.
    pub(crate) fn create(disk: &dyn Disk, data: &Path, name: &str, origin: &str) -> Result<Self, Error> {
        if durable::read(disk, &identity_path(data))?.is_some() {
            return Err(Error::Invalid(format!("{} already holds a ledger", data.display())));
        }
        let keys = data.join("keys");
        disk.create_directory(&keys).map_err(|e| Error::io(format!("making {}", keys.display()), &e))?;
        let log = make_key(disk, data, "log", origin, Scheme::Ed25519)?;
        let cosigner = make_key(disk, data, "cosigner", &format!("{origin}/{name}"), Scheme::Cosignature)?;
        let identity = Self {
            format: FORMAT,
            node: 1,
            name: name.to_owned(),
            origin: origin.to_owned(),
            log: log.verifier_key().to_string(),
            cosigner: cosigner.verifier_key().to_string(),
            begun: false,
        };
        identity.save(disk, data)?;
        Ok(identity)
    }

    pub(crate) fn save(&self, disk: &dyn Disk, data: &Path) -> Result<(), Error> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        durable::replace(disk, &identity_path(data), &text)
    }

    /// Reads identity and keys, and checks that they belong together.
    pub(crate) fn load(disk: &dyn Disk, data: &Path) -> Result<(Self, Keys), Error> {
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
        let log = load_key(disk, data, "log", &identity.log)?;
        let cosigner = load_key(disk, data, "cosigner", &identity.cosigner)?;
        Ok((identity, Keys { log, cosigner }))
    }

    /// Keys and policy as a verifier needs them.
    pub(crate) fn log_info(&self, keys: &Keys) -> LogInfo {
        let cosigner = keys.cosigner.verifier_key().clone();
        LogInfo {
            origin: self.origin.clone(),
            vkey: self.log.clone(),
            cosigners: vec![self.cosigner.clone()],
            policy: Policy::of_cluster(keys.log.verifier_key(), &[(self.name.clone(), cosigner)]),
        }
    }
}

fn make_key(disk: &dyn Disk, data: &Path, which: &str, name: &str, scheme: Scheme) -> Result<Signer, Error> {
    let mut seed = [0; SEED_BYTES];
    rt::fill_random(&mut seed);
    let signer = Signer::from_seed(name, scheme, &seed)
        .map_err(|e| Error::Invalid(format!("{name:?} cannot name a key: {e}")))?;
    durable::replace(disk, &key_path(data, which), &seed)?;
    Ok(signer)
}

fn load_key(disk: &dyn Disk, data: &Path, which: &str, vkey: &str) -> Result<Signer, Error> {
    let path = key_path(data, which);
    let damaged = |what: &str| Error::Corrupt(format!("{} {what}: restore it from a backup", path.display()));
    let public = VerifierKey::parse(vkey).map_err(|e| Error::Corrupt(format!("node.json: key of the {which}: {e}")))?;
    let bytes = durable::read(disk, &path)?.ok_or_else(|| damaged("is missing"))?;
    let seed: [u8; SEED_BYTES] = bytes.try_into().map_err(|_| damaged("has the wrong length"))?;
    let signer = Signer::from_seed(public.name(), public.scheme(), &seed).map_err(|e| damaged(&e.to_string()))?;
    if *signer.verifier_key() != public {
        return Err(damaged("does not belong to the public key in node.json"));
    }
    Ok(signer)
}
