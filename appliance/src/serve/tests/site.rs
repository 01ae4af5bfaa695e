//! A certificate of the site's own, from files: who is shown it, and what becomes of bad ones.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};

use super::*;

/// The site's own authority.
struct Authority {
    params: CertificateParams,
    key: KeyPair,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { params, key: KeyPair::generate().expect("a key") }
    }

    fn root(&self) -> CertificateDer<'static> {
        self.params.self_signed(&self.key).expect("signed").der().clone()
    }

    /// Puts a certificate and its key where the configuration says.
    fn certify(&self, name: &str, to: &Path) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let signed = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).expect("signed");
        write(&to.join("site.pem"), &signed.pem());
        write(&to.join("site.key"), &key.serialize_pem());
    }
}

fn write(path: &Path, text: &str) {
    let mut file = std::fs::File::create(path).expect("made");
    file.write_all(text.as_bytes()).expect("written");
}

/// What a client is shown who trusts this root alone and asks for this name: the protocol, or why it refuses.
fn shown(daemon: &Daemon, root: CertificateDer<'static>, name: &'static str, alpn: &[&str]) -> Result<Option<String>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let mut tls = rustls::ClientConnection::new(Arc::new(config), ServerName::try_from(name)?)?;
    let mut socket = TcpStream::connect(daemon.address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    while tls.is_handshaking() {
        tls.complete_io(&mut socket)?;
    }
    Ok(tls.alpn_protocol().map(|protocol| String::from_utf8_lossy(protocol).into_owned()))
}

fn ca(daemon: &Daemon) -> CertificateDer<'static> {
    use rustls::pki_types::pem::PemObject as _;
    CertificateDer::from_pem_file(daemon.data.path().join("ca.pem")).expect("ca.pem")
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "{what} was expected within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_sites_own_certificate_is_shown_under_its_name_alone() {
    let daemon = Daemon::start();
    let files = tempfile::tempdir().expect("a directory");
    let site = Authority::new();
    site.certify("box.example", files.path());
    let at = files.path().display();
    let source = format!("[tls]\nsource = \"files\"\ncertificate = \"{at}/site.pem\"\nkey = \"{at}/site.key\"\n");
    assert!(shown(&daemon, site.root(), "box.example", &[]).is_err(), "nothing is configured yet");
    daemon.reload(&source);
    eventually("the site's certificate under its name", || shown(&daemon, site.root(), "box.example", &[]).is_ok());
    for name in ["localhost", "test.local", "127.0.0.1"] {
        shown(&daemon, ca(&daemon), name, &[]).unwrap_or_else(|e| panic!("{name} is the ledger's CA's: {e:#}"));
    }
    assert!(shown(&daemon, site.root(), "localhost", &[]).is_err(), "the site's is for its own name");
    let status = || daemon.ask("GET /v1/status", &[], "").json()["tls"]["site"].clone();
    eventually("its entry", || {
        let size = daemon.ask("GET /v1/status", &[], "").json()["size"].as_u64().expect("a size");
        (0..size).any(|n| daemon.ask(&format!("GET /v1/transactions/{n}"), &[], "").body.contains("~tls/site"))
    });
    assert_eq!((status()["served"].as_bool(), status()["names"][0].as_str()), (Some(true), Some("box.example")));
    let metrics = daemon.ask("GET /metrics", &[], "").body;
    assert!(metrics.contains("samovar_certificate_expiry_timestamp_seconds{certificate=\"site\"}"), "{metrics}");

    // A key that does not fit: the reload is refused, and what was in force stays.
    let before = status()["not_after_s"].clone();
    write(&files.path().join("site.key"), &KeyPair::generate().expect("a key").serialize_pem());
    daemon.reload(&format!("{source}[metrics]\nallow = [\"192.0.2.0/24\"]\n"));
    daemon.reload(&format!("{source}[metrics]\nallow = [\"192.0.2.0/24\"]\n"));
    assert_eq!(daemon.ask_as("GET /metrics", &[], "").status, 200, "nothing of a bad reload counts");
    shown(&daemon, site.root(), "box.example", &[]).expect("the good one goes on to be shown");
    assert_eq!(status()["not_after_s"], before);

    // Another one, and then none.
    site.certify("other.example", files.path());
    daemon.reload(&source);
    eventually("the new one", || shown(&daemon, site.root(), "other.example", &[]).is_ok());
    assert!(shown(&daemon, site.root(), "box.example", &[]).is_err(), "the one before is gone");
    daemon.reload("");
    eventually("none", || shown(&daemon, site.root(), "other.example", &[]).is_err());
    assert_eq!(status()["source"], "local");
}

#[test]
fn ordinary_clients_never_get_the_protocol_of_the_challenge() {
    let daemon = Daemon::start();
    assert!(shown(&daemon, ca(&daemon), "localhost", &["acme-tls/1"]).is_err(), "alone, it is refused");
    for (offered, want) in [(&["acme-tls/1", "h2"][..], "h2"), (&["acme-tls/1", "http/1.1"][..], "http/1.1")] {
        let chosen = shown(&daemon, ca(&daemon), "localhost", offered).expect("served");
        assert_eq!(chosen.as_deref(), Some(want), "{offered:?}");
    }
}
