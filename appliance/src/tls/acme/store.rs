//! Account and certificate as files, all secret and each whole or not there. Every one of them is read and written here.
//!
//! `acme-account.json`: directory, contacts, URL and key of the account. `acme.pem`: the directory as a line of text, the
//! private key, the certificate and what links it to its root. `acme.pem.issued`: the same of one that has no entry yet.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use instant_acme::{AccountCredentials, ExternalAccountKey};
use serde::{Deserialize, Serialize};

use super::super::site::Served;
use crate::durable::{remove, sync_directory};
use crate::secrets::{ACME_ACCOUNT, ACME_CERTIFICATE, ACME_ISSUED, Secrets};

/// Before the directory's URL, on the first line.
const DIRECTORY_LINE: &str = "Directory: ";

/// The files of a data directory.
#[derive(Debug, Clone)]
pub(in crate::tls) struct Store {
    secrets: Secrets,
}

/// An account as it is kept.
#[derive(Serialize, Deserialize)]
pub(super) struct SavedAccount {
    pub(super) directory: String,
    /// URIs.
    pub(super) contacts: Vec<String>,
    pub(super) credentials: AccountCredentials,
}

impl Store {
    /// Of a data directory.
    pub(in crate::tls) fn of(secrets: &Secrets) -> Self {
        Self { secrets: secrets.clone() }
    }

    /// The certificate in use, and the directory that it is from.
    pub(in crate::tls) fn certificate(&self) -> Result<Option<(Served, String)>> {
        self.read_certificate(ACME_CERTIFICATE)
    }

    /// One that was issued and is not in use yet.
    pub(in crate::tls) fn issued(&self) -> Result<Option<Served>> {
        match self.read_certificate(ACME_ISSUED) {
            Ok(found) => Ok(found.map(|(served, _)| served)),
            Err(error) => {
                remove(&self.secrets.data().join(ACME_ISSUED))?;
                Err(error.context("removed"))
            }
        }
    }

    /// Keeps one that was issued.
    pub(super) fn put_issued(&self, directory: &str, key_pem: &str, chain_pem: &str) -> Result<()> {
        let text = format!("{DIRECTORY_LINE}{directory}\n{key_pem}\n{chain_pem}");
        self.secrets.write(ACME_ISSUED, text.as_bytes())
    }

    /// Puts the issued one into use.
    pub(in crate::tls) fn take_issued(&self) -> Result<()> {
        let data = self.secrets.data();
        let path = data.join(ACME_CERTIFICATE);
        std::fs::rename(data.join(ACME_ISSUED), &path)
            .with_context(|| format!("putting {} in its place", path.display()))?;
        path.parent().map_or(Ok(()), sync_directory)
    }

    /// The account.
    pub(super) fn account(&self) -> Result<Option<SavedAccount>> {
        let Some(bytes) = self.secrets.read(ACME_ACCOUNT)? else { return Ok(None) };
        // Without it nothing but the account is lost, and another is made.
        match serde_json::from_slice(&bytes) {
            Ok(account) => Ok(Some(account)),
            Err(error) => {
                tracing::warn!("tls: {ACME_ACCOUNT} holds no ACME account ({error}): a new one is made");
                Ok(None)
            }
        }
    }

    /// Keeps the account.
    pub(super) fn put_account(&self, account: &SavedAccount) -> Result<()> {
        self.secrets.write(ACME_ACCOUNT, &serde_json::to_vec(account).context("writing the ACME account")?)
    }

    /// Removes the account, which the authority does not know.
    pub(super) fn forget_account(&self) -> Result<()> {
        remove(&self.secrets.data().join(ACME_ACCOUNT))
    }

    fn read_certificate(&self, name: &str) -> Result<Option<(Served, String)>> {
        let Some(bytes) = self.secrets.read(name)? else { return Ok(None) };
        let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let directory = first.strip_prefix(DIRECTORY_LINE.as_bytes()).unwrap_or_default();
        let directory = String::from_utf8_lossy(directory).into_owned();
        let served = Served::of(&bytes, &bytes, &self.secrets.data().join(name).display().to_string())?;
        Ok(Some((served, directory)))
    }
}

/// The same credentials once more, which have no copy of their own.
pub(super) fn copy(credentials: &AccountCredentials) -> Result<AccountCredentials> {
    let text = serde_json::to_vec(credentials).context("copying the ACME account")?;
    serde_json::from_slice(&text).context("copying the ACME account")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Binding {
    kid: String,
    hmac: String,
}

/// Reads an external account binding: `{"kid": "…", "hmac": "…"}`.
pub(super) fn account_binding(path: &Path) -> Result<ExternalAccountKey> {
    let shown = path.display();
    let bytes = std::fs::read(path).with_context(|| format!("reading acme.account_binding {shown}"))?;
    // The parser's error could quote the key.
    let Ok(Binding { kid, hmac }) = serde_json::from_slice(&bytes) else {
        bail!("acme.account_binding {shown} is not {{\"kid\": \"…\", \"hmac\": \"…\"}}");
    };
    let Ok(key) = URL_SAFE_NO_PAD.decode(hmac.trim_end_matches('=')) else {
        bail!("acme.account_binding {shown}: `hmac` is not base64url");
    };
    Ok(ExternalAccountKey::new(kid, &key))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn store(data: &Path) -> Store {
        std::fs::create_dir(data.join("tls")).expect("a directory");
        Store::of(&Secrets::clear(data))
    }

    /// A crash behind the entry, and one before it, leave what was issued to be found.
    #[test]
    fn what_was_issued_waits_beside_what_is_in_use() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = store(directory.path());
        assert!(store.certificate().expect("read").is_none() && store.issued().expect("read").is_none());
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["box.example".to_owned()]).expect("a name");
        let chain = params.self_signed(&key).expect("signed").pem();
        store.put_issued("https://ca.example/dir", &key.serialize_pem(), &chain).expect("kept");
        assert!(store.certificate().expect("read").is_none(), "it is not in use yet");
        assert!(store.issued().expect("read").is_some_and(|issued| issued.is_for("box.example")));
        let mode = directory.path().join(ACME_ISSUED).metadata().expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "it holds a private key");
        store.take_issued().expect("taken");
        assert!(store.issued().expect("read").is_none());
        let (served, from) = store.certificate().expect("read").expect("in use");
        assert!(served.is_for("box.example") && from == "https://ca.example/dir");
    }

    #[test]
    fn a_damaged_certificate_and_a_damaged_account_are_told_and_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = store(directory.path());
        for name in [ACME_ISSUED, ACME_CERTIFICATE, ACME_ACCOUNT] {
            store.secrets.write(name, b"nonsense").expect("written");
        }
        assert!(store.certificate().is_err() && store.issued().is_err());
        assert!(store.issued().expect("removed").is_none(), "what cannot be used does not stay in the way");
        assert!(store.account().expect("read").is_none(), "another account is made");
    }

    #[test]
    fn a_binding_is_read_and_a_wrong_one_never_quoted() {
        let directory = tempfile::tempdir().expect("a directory");
        let read = |text: &str| {
            let path = directory.path().join("binding");
            crate::durable::replace(&path, text.as_bytes(), crate::durable::Mode::Secret).expect("written");
            account_binding(&path).map(drop).map_err(|e| format!("{e:#}"))
        };
        assert_eq!(read(r#"{"kid":"k","hmac":"c2VjcmV0"}"#), Ok(()));
        for (text, want) in [
            (r#"{"kid":"k"}"#, "is not {\"kid\""),
            (r#"{"kid":"k","hmac":"s e c r e t"}"#, "`hmac` is not base64url"),
            ("secret", "is not {\"kid\""),
        ] {
            let refused = read(text).expect_err(text);
            assert!(refused.contains(want) && !refused.contains("secret"), "{text}: {want:?} expected in {refused:?}");
        }
    }
}
