//! Where a client command finds its node: flags, then environment, then a data directory on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::Uri;
use hyper::header::HeaderValue;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};

use super::{Error, anybody};
use crate::serve::{ADMIN_TOKEN_FILE, SOCKET_FILE};

/// Data directory that is looked at when nothing else is said, as the packaged service uses it.
pub(crate) const DATA_DEFAULT: &str = "/var/lib/samovar";
/// Port of the API when the URL names none.
const PORT_DEFAULT: u16 = 8443;
/// Longest token file, in bytes: a bound against `--token-file` on something else.
const TOKEN_BYTES_MAX: usize = 4096;

/// How to reach a node.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Node")]
pub(crate) struct Target {
    /// URL of the node, `https://HOST:8443`
    #[arg(long, value_name = "URL", env = "SAMOVAR_URL", hide_env_values = true)]
    pub(crate) url: Option<String>,
    /// Certificate of the authority that signs the node's certificate (the `ca.pem` of its data directory)
    #[arg(long, value_name = "FILE", env = "SAMOVAR_CA", hide_env_values = true)]
    pub(crate) ca: Option<PathBuf>,
    /// File with the API key
    #[arg(long, value_name = "FILE", env = "SAMOVAR_TOKEN_FILE", hide_env_values = true)]
    pub(crate) token_file: Option<PathBuf>,
    /// Data directory of a node on this machine: gives URL and certificate where they are not given, and the API key
    /// together with the certificate; without the key, root and the node's own user need none
    /// [default: /var/lib/samovar, if there is a node]
    #[arg(long, value_name = "DIR", env = "SAMOVAR_DATA", hide_env_values = true)]
    pub(crate) data: Option<PathBuf>,
}

/// A target whose parts were read and checked.
pub(super) struct Resolved {
    pub(super) url: String,
    pub(super) authority: HeaderValue,
    pub(super) way: Way,
    pub(super) bearer: Option<HeaderValue>,
}

impl Resolved {
    /// The node at a URL, whose host and port these are.
    fn over_tls(
        url: &str,
        (host, port): (String, u16),
        tls: Arc<rustls::ClientConfig>,
        bearer: Option<HeaderValue>,
    ) -> Result<Self, Error> {
        let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let wrong = |_| Error::Usage(format!("URL {url}: {host} is neither a host name nor an address"));
        let server_name = ServerName::try_from(host.clone()).map_err(wrong)?;
        Ok(Self {
            url: format!("https://{authority}"),
            authority: HeaderValue::from_str(&authority).map_err(|e| Error::Usage(format!("URL {url}: {e}")))?,
            way: Way::Tls { host, port, server_name, tls },
            bearer,
        })
    }

    /// Whoever answers at a URL.
    pub(super) fn unchecked(url: &str) -> Result<Self, Error> {
        let tls = anybody::tls_config().map_err(|e| Error::Setup(e.to_string()))?;
        Self::over_tls(url, parse_url(url)?, tls, None)
    }

    /// The node behind a Unix socket.
    pub(super) fn local(socket: PathBuf) -> Self {
        Self {
            url: format!("unix:{}", socket.display()),
            authority: HeaderValue::from_static("localhost"),
            way: Way::Local(socket),
            bearer: None,
        }
    }
}

/// How connections are made.
pub(super) enum Way {
    /// TCP and TLS.
    Tls { host: String, port: u16, server_name: ServerName<'static>, tls: Arc<rustls::ClientConfig> },
    /// The Unix socket of a node on this machine, which knows root and its own user by the kernel.
    Local(PathBuf),
}

impl Target {
    /// Reads the files that the target names.
    pub(super) fn resolve(&self) -> Result<Resolved, Error> {
        let data = self.data_directory();
        if let Some(socket) = data.as_ref().and_then(|dir| self.local_socket(dir)) {
            return Ok(Resolved::local(socket));
        }
        let url = match (&self.url, &data) {
            (Some(url), _) => url.clone(),
            (None, Some(dir)) => local_url(dir)?,
            (None, None) => {
                return Err(Error::Usage(
                    "no node is named: pass --url and --ca, or --data with the data directory of a \
                                         node on this machine (or set SAMOVAR_URL and SAMOVAR_CA, or SAMOVAR_DATA)"
                        .into(),
                ));
            }
        };
        let (host, port) = parse_url(&url)?;
        let ca = self.ca.clone().or_else(|| data.as_ref().map(|d| d.join("ca.pem"))).ok_or_else(|| {
            Error::Usage("no certificate authority is given: pass --ca with a copy of the node's ca.pem".into())
        })?;
        let token = match (&self.token_file, &data) {
            (Some(file), _) => Some(read_token(file)?),
            // Only to nodes of that directory's own authority: a key must not go to another ledger by mistake.
            (None, Some(dir)) if self.ca.is_none() && dir.join(ADMIN_TOKEN_FILE).exists() => {
                Some(read_token(&dir.join(ADMIN_TOKEN_FILE))?)
            }
            _ => None,
        };
        Resolved::over_tls(&url, (host, port), tls_config(&ca)?, token.map(|t| bearer(&t)).transpose()?)
    }

    /// The socket of the node of a data directory, when nothing else is said and its API key is not there (any more).
    fn local_socket(&self, data: &Path) -> Option<PathBuf> {
        let said = self.url.is_some() || self.ca.is_some() || self.token_file.is_some();
        let socket = data.join(SOCKET_FILE);
        (!said && !data.join(ADMIN_TOKEN_FILE).exists() && socket.exists()).then_some(socket)
    }

    /// The Unix socket of the node of the data directory.
    pub(super) fn socket(&self) -> Result<PathBuf, Error> {
        let unnamed =
            || Error::Usage("this is done on the node's own machine: pass --data with its data directory".into());
        let socket = self.data_directory().ok_or_else(unnamed)?.join(SOCKET_FILE);
        if socket.exists() {
            Ok(socket)
        } else {
            Err(Error::Setup(format!("there is no {}: is the node running?", socket.display())))
        }
    }

    fn data_directory(&self) -> Option<PathBuf> {
        self.data.clone().or_else(|| {
            let default = Path::new(DATA_DEFAULT);
            (self.url.is_none() && default.join("url").exists()).then(|| default.to_owned())
        })
    }
}

/// The URL that a running node writes into its data directory.
fn local_url(data: &Path) -> Result<String, Error> {
    read_text(&data.join("url")).map_err(|e| match data.join("ca.pem").exists() {
        true => Error::Unreachable {
            url: format!("the node of {}", data.display()),
            reason: format!("it was never started; run: samovar serve --data {}", data.display()),
        },
        false => Error::Setup(format!("{e}; is that a data directory? `samovar init` makes one")),
    })
}

/// Host (without brackets) and port of an `https` URL that has no path.
fn parse_url(text: &str) -> Result<(String, u16), Error> {
    let wrong = |why: &str| Error::Usage(format!("URL {text}: {why}; it looks like https://HOST:{PORT_DEFAULT}"));
    let uri: Uri = text.parse().map_err(|_| wrong("cannot be read"))?;
    if uri.scheme_str() != Some("https") {
        return Err(wrong("does not begin with https://"));
    }
    if uri.path() != "/" || uri.query().is_some() {
        return Err(wrong("has a path"));
    }
    let authority = uri.authority().ok_or_else(|| wrong("names no host"))?;
    if authority.as_str().contains('@') {
        return Err(wrong("carries a user name: an API key goes into a file named by --token-file"));
    }
    if authority.host().is_empty() {
        return Err(wrong("names no host"));
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok((host, authority.port_u16().unwrap_or(PORT_DEFAULT)))
}

fn read_text(path: &Path) -> Result<String, Error> {
    let text = fs::read_to_string(path).map_err(|e| Error::Setup(format!("{}: {e}", path.display())))?;
    Ok(text.trim().to_owned())
}

fn read_token(path: &Path) -> Result<String, Error> {
    let token = read_text(path)?;
    let fit = !token.is_empty() && token.len() <= TOKEN_BYTES_MAX && token.bytes().all(|b| b.is_ascii_graphic());
    if fit { Ok(token) } else { Err(Error::Setup(format!("{}: holds no API key on one line", path.display()))) }
}

fn bearer(token: &str) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| Error::Setup("the API key cannot be sent in a header".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// TLS that trusts this one authority and nothing that the machine trusts.
fn tls_config(ca: &Path) -> Result<Arc<rustls::ClientConfig>, Error> {
    let setup = |e: &dyn std::fmt::Display| Error::Setup(format!("{}: {e}", ca.display()));
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|e| setup(&pem_error(&e)))? {
        roots.add(certificate.map_err(|e| setup(&pem_error(&e)))?).map_err(|e| setup(&e))?;
    }
    if roots.is_empty() {
        return Err(setup(&"holds no certificate"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| setup(&e))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn pem_error(error: &rustls::pki_types::pem::Error) -> String {
    match error {
        rustls::pki_types::pem::Error::Io(e) => e.to_string(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let good = [
            ("https://box-01", ("box-01", 8443)),
            ("https://127.0.0.1:9443/", ("127.0.0.1", 9443)),
            ("https://[::1]:8443", ("::1", 8443)),
        ];
        for (text, (host, port)) in good {
            let parsed = parse_url(text).unwrap_or_else(|e| panic!("{text} is a URL of a node: {e}"));
            assert_eq!(parsed, (host.to_owned(), port), "{text}");
        }
        for text in
            ["", "box-01:8443", "http://box-01", "https://box/v1", "https://u:p@box", "https://b/?x", "https://:1"]
        {
            assert!(matches!(parse_url(text), Err(Error::Usage(_))), "{text} is refused");
        }
    }

    #[test]
    fn names_what_is_missing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let target = Target { data: Some(dir.path().to_owned()), ..Target::default() };
        let said = target.resolve().err().expect("an empty directory is no node").to_string();
        assert!(said.contains("samovar init"), "says what makes a data directory, said: {said}");
        fs::File::create(dir.path().join("ca.pem")).expect("create");
        let error = target.resolve().err().expect("a node that never ran has no URL");
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("samovar serve --data"), "says how to start the node, said: {error}");

        let target = Target { url: Some("https://localhost".into()), ..Target::default() };
        let said = target.resolve().err().expect("without an authority nothing is trusted").to_string();
        assert!(said.contains("--ca"), "names the flag, said: {said}");

        let ca = dir.path().join("ca.pem");
        std::io::Write::write_all(&mut fs::File::create(&ca).expect("create"), b"no certificate").expect("write");
        let target = Target { url: Some("https://localhost".into()), ca: Some(ca), ..Target::default() };
        let said = target.resolve().err().expect("not a certificate").to_string();
        assert!(said.contains("ca.pem: holds no certificate"), "names the file, said: {said}");
    }

    #[test]
    fn local_key_goes_to_its_own_ledger_only() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let key = rcgen::KeyPair::generate().expect("key");
        let ca =
            rcgen::CertificateParams::new(Vec::new()).and_then(|p| p.self_signed(&key)).expect("certificate").pem();
        for (name, content) in
            [("url", "https://[::1]:9443\n"), ("ca.pem", &ca), ("admin.token", "t\n"), ("o.pem", &ca)]
        {
            let file = fs::File::create(dir.path().join(name));
            file.and_then(|mut f| std::io::Write::write_all(&mut f, content.as_bytes())).expect("write");
        }
        let local = Target { data: Some(dir.path().to_owned()), ..Target::default() };
        let resolved = local.resolve().unwrap_or_else(|e| panic!("a data directory says everything: {e}"));
        assert_eq!((resolved.url.as_str(), resolved.bearer.is_some()), ("https://[::1]:9443", true));
        let other = Target { ca: Some(dir.path().join("o.pem")), url: Some("https://other".into()), ..local };
        let resolved = other.resolve().unwrap_or_else(|e| panic!("{e}"));
        assert!(resolved.bearer.is_none(), "under another authority the local key is not sent");
    }

    #[test]
    fn without_a_key_the_socket_is_asked() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let socket = dir.path().join(SOCKET_FILE);
        fs::File::create(&socket).expect("create");
        let local = Target { data: Some(dir.path().to_owned()), ..Target::default() };
        let resolved = local.resolve().unwrap_or_else(|e| panic!("{e}"));
        assert!(matches!(resolved.way, Way::Local(path) if path == socket), "nothing was said and no key is there");
        let said = Target { token_file: Some("t".into()), ..local.clone() };
        assert!(said.resolve().is_err(), "a token file that was named is read");
        fs::File::create(dir.path().join(ADMIN_TOKEN_FILE)).expect("create");
        assert!(local.resolve().is_err(), "a key that is there is used");
    }

    #[test]
    fn tokens_are_one_line() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("t");
        let long = "x".repeat(TOKEN_BYTES_MAX + 1);
        for (content, fit) in [("abc\n", true), ("", false), ("a b", false), ("a\nb\n", false), (long.as_str(), false)]
        {
            std::io::Write::write_all(&mut fs::File::create(&path).expect("create"), content.as_bytes())
                .expect("write");
            assert_eq!(read_token(&path).is_ok(), fit, "content {content:.20?}");
        }
        assert!(bearer("abc").expect("a token").is_sensitive(), "a token is never shown in a debug print");
    }
}
