//! `[tls] source` and `[acme]`: which certificate is shown under the site's own names. Each value is a type that checks
//! itself, so that a wrong one is refused with its line.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hyper::Uri;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::units::as_text;
use super::{AcmeSection, TlsSection};
use crate::tls::{AcmeSettings, SiteSource, is_dns_name};

/// Most names of one certificate that are ordered: Let's Encrypt takes 100, and each handshake carries them.
const NAMES_MAX: usize = 32;

/// Where the certificate for the site's names comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Source {
    /// The ledger's own CA alone.
    Local,
    /// Files that the site keeps.
    Files,
    /// A certificate authority that speaks ACME (RFC 8555).
    Acme,
}

/// How a name is proved to the authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ChallengeKind {
    /// A file over HTTP on port 80 (RFC 8555, 8.3).
    #[serde(rename = "http-01")]
    Http01,
    /// A certificate in a handshake on port 443 (RFC 8737).
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

impl ChallengeKind {
    /// As the field calls it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
        }
    }
}

/// A DNS name in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name(String);

/// A URL with `https`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpsUrl(String);

/// A mail address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mail(String);

impl FromStr for Name {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("*.") {
            return Err(format!("`{text}`: neither http-01 nor tls-alpn-01 proves a wildcard; write each name out"));
        }
        if !is_dns_name(text) || text == "localhost" {
            return Err(format!(
                "`{text}` is no host name that an authority certifies; write one such as \"box.example\""
            ));
        }
        Ok(Self(text.to_lowercase()))
    }
}

impl FromStr for HttpsUrl {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let url = text.parse::<Uri>().ok().filter(|uri| uri.scheme_str() == Some("https") && uri.host().is_some());
        let url = url.filter(|uri| uri.authority().is_some_and(|a| !a.as_str().contains('@')));
        url.map(|_| Self(text.to_owned()))
            .ok_or_else(|| format!("`{text}` is no https URL; write one such as \"https://ca.example/acme/directory\""))
    }
}

impl FromStr for Mail {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let good = |local: &str, domain: &str| {
            !local.is_empty()
                && is_dns_name(domain)
                && text.bytes().all(|b| b.is_ascii_graphic() && !b"?,<>\"".contains(&b))
        };
        match text.split_once('@') {
            Some((local, domain)) if good(local, domain) => Ok(Self(text.to_owned())),
            _ => Err(format!("`{text}` is no mail address; write one such as \"ops@example.org\"")),
        }
    }
}

macro_rules! displayed {
    ($($name:ty),*) => { $(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )* };
}
displayed!(Name, HttpsUrl, Mail);
as_text!(Name, HttpsUrl, Mail);

/// The directory of Let's Encrypt.
pub(super) fn lets_encrypt() -> HttpsUrl {
    HttpsUrl("https://acme-v02.api.letsencrypt.org/directory".to_owned())
}

/// Checks that what belongs together is there.
pub(super) fn check(tls: &TlsSection, acme: &AcmeSection) -> Result<SiteSource, String> {
    let (certificate, key) = (file("tls.certificate", &tls.certificate)?, file("tls.key", &tls.key)?);
    let roots = file("acme.roots", &acme.roots)?;
    let account_binding = file("acme.account_binding", &acme.account_binding)?;
    if acme.names.len() > NAMES_MAX {
        return Err(format!("acme.names has {} names, at most {NAMES_MAX} can be", acme.names.len()));
    }
    let mut names: Vec<String> = acme.names.iter().map(ToString::to_string).collect();
    names.sort_unstable();
    names.dedup();
    match tls.source {
        Source::Local => Ok(SiteSource::Local),
        Source::Files => match (certificate, key) {
            (Some(certificate), Some(key)) => Ok(SiteSource::Files { certificate, key }),
            (None, _) => Err(missing("tls.certificate", "files", "the file with the certificate and what follows it")),
            (_, None) => Err(missing("tls.key", "files", "the file with the private key")),
        },
        Source::Acme if names.is_empty() => Err(missing("acme.names", "acme", "the names to order")),
        Source::Acme if acme.challenges.is_empty() => {
            Err(missing("acme.challenges", "acme", "\"http-01\", \"tls-alpn-01\" or both"))
        }
        Source::Acme if !acme.terms_agreed => {
            Err("acme.terms_agreed is false: read the terms of service that the directory names, then set it to true"
                .into())
        }
        Source::Acme => Ok(SiteSource::Acme(AcmeSettings {
            directory: acme.directory.to_string(),
            names,
            contacts: acme.contacts.iter().map(ToString::to_string).collect(),
            challenges: acme.challenges.clone(),
            roots,
            account_binding,
        })),
    }
}

fn missing(key: &str, source: &str, what: &str) -> String {
    format!("{key} is not set, and tls.source is \"{source}\": name {what}")
}

/// The file that a key names, if it names one.
pub(super) fn file(key: &str, path: &Path) -> Result<Option<PathBuf>, String> {
    if !path.as_os_str().is_empty() && path.is_relative() {
        return Err(format!("{key}: `{}` is no absolute path; write it from / on", path.display()));
    }
    Ok((!path.as_os_str().is_empty()).then(|| path.to_owned()))
}

/// No file.
pub(super) fn none() -> PathBuf {
    PathBuf::new()
}
