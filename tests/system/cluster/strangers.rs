//! Who has no business at a port: clients at that of the peers, nodes at that of the API.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

use super::*;

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Asks the port for peers as somebody; the status, or nothing if the connection was refused.
async fn ask(port: u16, ca: &std::path::Path, pair: Option<Pair>, tls12: bool) -> Option<u16> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    let versions: &[_] = if tls12 { &[&rustls::version::TLS12] } else { &[&rustls::version::TLS13] };
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let config = match pair {
        Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
        None => config.with_no_client_auth(),
    };
    let tcp = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.ok()?;
    stream.write_all(b"GET /v1/report HTTP/1.1\r\nhost: samovar\r\nconnection: close\r\n\r\n").await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    answer.get(9..12)?.parse().ok()
}

fn of_node(data: &std::path::Path) -> Pair {
    let chain = CertificateDer::pem_file_iter(data.join("tls/node.pem")).unwrap().map(Result::unwrap).collect();
    (chain, PrivateKeyDer::from_pem_file(data.join("tls/node.key")).unwrap())
}

fn self_signed(uri: Option<&str>) -> Pair {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.subject_alt_names.extend(uri.map(|uri| rcgen::SanType::URI(uri.try_into().unwrap())));
    let certificate = params.self_signed(&key).unwrap();
    (vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
}

fn peers_port(nodes: &Nodes, place: usize) -> u16 {
    let config = fs::read_to_string(nodes.all[place].data().with_extension("toml")).unwrap();
    config.rsplit_once(':').unwrap().1.trim().trim_end_matches('"').parse().unwrap()
}

#[tokio::test]
async fn nobody_but_a_member_is_answered_at_the_port_for_peers() {
    let mut nodes = Nodes::new(3).await;
    let other = Nodes::one().await;
    let (port, ca) = (peers_port(&nodes, 0), nodes.all[0].data().join("ca.pem"));
    let own = of_node(nodes.all[1].data());
    assert_eq!(ask(port, &ca, Some((own.0.clone(), own.1.clone_key())), false).await, Some(200), "a member");
    assert_eq!(ask(port, &ca, Some((own.0, own.1)), true).await, None, "TLS 1.2");
    assert_eq!(ask(port, &ca, None, false).await, None, "without a certificate");
    assert_eq!(ask(port, &ca, Some(self_signed(None)), false).await, None, "a client's certificate");
    let forged = self_signed(Some("urn:samovar:node:2"));
    assert_eq!(ask(port, &ca, Some(forged), false).await, None, "one that names a node, by nobody's word");
    let foreign = of_node(other.all[0].data());
    assert_eq!(ask(port, &ca, Some(foreign), false).await, None, "a node of another ledger");
    // A certificate of the CA that names no node: none is ever made, so one is made with its key.
    let key = rcgen::KeyPair::from_pem(&fs::read_to_string(nodes.all[0].data().join("tls/ca.key")).unwrap()).unwrap();
    let root = CertificateDer::from_pem_file(&ca).unwrap();
    let nameless = signed_by(&key, &root);
    assert_eq!(ask(port, &ca, Some(nameless), false).await, None, "one of the CA that names no node");

    let removed = of_node(nodes.all[2].data());
    let copy = || (removed.0.clone(), removed.1.clone_key());
    assert_eq!(ask(port, &ca, Some(copy()), false).await, Some(200), "a member yet");
    assert!(nodes.command(&["node", "remove", "box-03"]).status.success());
    nodes.all[2].kill().unwrap();
    let begun = Instant::now();
    while ask(port, &ca, Some(copy()), false).await != Some(403) {
        assert!(begun.elapsed() < FAILOVER_WITHIN, "a node that was removed is refused");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A certificate of the ledger's CA without the name of a node.
fn signed_by(ca: &rcgen::KeyPair, root: &CertificateDer<'_>) -> Pair {
    let subject = String::from_utf8_lossy(root).into_owned();
    let at = subject.find("Samovar CA of ").unwrap();
    let name: String = subject[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || " -".contains(*c)).collect();
    let mut issuer = rcgen::CertificateParams::default();
    issuer.distinguished_name = rcgen::DistinguishedName::new();
    issuer.distinguished_name.push(rcgen::DnType::CommonName, name);
    let issuer = rcgen::Issuer::new(issuer, ca);
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    (vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
}

#[tokio::test]
async fn a_node_s_certificate_is_nobody_at_the_api() {
    let nodes = Nodes::new(2).await;
    let (chain, key) = of_node(nodes.all[1].data());
    let hash = {
        let pair = rcgen::KeyPair::from_pem(&fs::read_to_string(nodes.all[1].data().join("tls/node.key")).unwrap());
        let spki = rcgen::PublicKeyData::subject_public_key_info(&pair.unwrap());
        let digest = ring::digest::digest(&ring::digest::SHA256, &spki);
        digest.as_ref().iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    let mut admin = nodes.client(0).await;
    send(&mut admin, Method::POST, "/v1/users", &json!({ "name": "mallory", "role": "admin" }), 201).await;
    let body = json!({ "name": "a node", "user": "mallory", "key": hash });
    // Known to be a node's, since that node has shown it here.
    let refused = send(&mut admin, Method::POST, "/v1/certificates", &body, 409).await;
    assert!(refused.text().contains("key-of-a-node"), "{}", refused.text());
    let PrivateKeyDer::Pkcs8(key) = key else { panic!("a key of the node is PKCS#8") };
    let ends = Ends { certificate: Some((chain[0].to_vec(), key.secret_pkcs8_der().to_vec())), ..Ends::default() };
    let ca = nodes.all[0].data().join("ca.pem");
    let mut client = Client::connect_as(nodes.all[0].port(), &ca, None, ends).await.unwrap();
    let answer = client.get("/v1/me").await.unwrap();
    assert_eq!(answer.status, 401, "the key {hash} is a node's: {}", answer.text());
}
