//! A ledger with somebody of every role, with and without prefixes, by every kind of credential.

use std::sync::atomic::{AtomicU64, Ordering};

use hyper::Method;
use samovar_tests::{Answer, Client, Daemon, Ends, Settings};
use serde_json::{Value, json};

/// Roles, in the order of the matrix.
pub(super) const ROLES: [&str; 5] = ["admin", "operator", "writer", "reader", "auditor"];
/// Every kind of credential.
pub(super) const KINDS: [Kind; 5] = [Kind::ApiKey, Kind::UserKey, Kind::Session, Kind::Certificate, Kind::Local];
/// The password of everybody here.
pub(super) const PASSWORD: &str = "a samovar in every house";
const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// A kind of credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An API key with a role of its own.
    ApiKey,
    /// An API key that acts for a user.
    UserKey,
    /// A session token.
    Session,
    /// A client certificate.
    Certificate,
    /// The Unix socket.
    Local,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ApiKey => "api-key",
            Self::UserKey => "user-key",
            Self::Session => "session",
            Self::Certificate => "certificate",
            Self::Local => "local",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        KINDS.into_iter().find(|k| k.name() == name)
    }
}

/// Somebody with one credential.
pub(super) struct Person {
    pub(super) kind: Kind,
    /// Place in [`ROLES`].
    pub(super) role: usize,
    /// Whether limited to `in/`.
    pub(super) limited: bool,
    token: Option<String>,
    certificate: Option<(Vec<u8>, Vec<u8>)>,
}

impl Person {
    pub(super) fn name(&self) -> String {
        let limited = if self.limited { ", limited to in/" } else { "" };
        format!("{} by {}{limited}", ROLES[self.role], self.kind.name())
    }
}

/// A key pair and a certificate that nobody signed but itself.
pub(super) struct Identity {
    pub(super) pem: String,
    pub(super) der: (Vec<u8>, Vec<u8>),
    /// SHA-256 of its public key.
    pub(super) hash: String,
}

impl Identity {
    pub(super) fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        let digest = ring::digest::digest(&ring::digest::SHA256, &spki);
        let hash = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        Self { pem: certificate.pem(), der: (certificate.der().to_vec(), key.serialize_der()), hash }
    }
}

/// A running ledger and its admin.
pub(super) struct Ledger {
    pub(super) daemon: Daemon,
    pub(super) admin: Client,
    pub(super) directory: tempfile::TempDir,
}

impl Ledger {
    pub(super) async fn start(toml: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { toml: toml.to_owned(), ..Settings::default() };
        let daemon = Daemon::create(&directory.path().join("data"), settings).await.unwrap();
        let admin = daemon.client().await.unwrap();
        Self { daemon, admin, directory }
    }

    /// A connection with a token, or none.
    pub(super) async fn client(&self, token: Option<&str>) -> Client {
        self.connect(token, Ends::default()).await
    }

    /// A connection of somebody.
    pub(super) async fn connect(&self, token: Option<&str>, ends: Ends) -> Client {
        let ca = self.daemon.data().join("ca.pem");
        Client::connect_as(self.daemon.port(), &ca, token, ends).await.unwrap()
    }

    /// The admin sends JSON and expects a status.
    #[track_caller]
    pub(super) fn admin(
        &mut self,
        method: Method,
        path: &str,
        body: Value,
        status: u16,
    ) -> impl Future<Output = Answer> {
        let (what, at) = (format!("{method} {path} {body}"), std::panic::Location::caller());
        let path = path.to_owned();
        async move {
            let body = if body.is_null() { String::new() } else { body.to_string() };
            let headers = if body.is_empty() { &[][..] } else { &JSON[..] };
            let answer = self.admin.request(method, &path, headers, body).await.unwrap();
            assert_eq!(answer.status, status, "{at}: {what}: expected {status}, got {}", answer.text());
            answer
        }
    }

    /// Makes a user with [`PASSWORD`].
    pub(super) async fn user(&mut self, name: &str, role: &str, prefixes: &[&str]) {
        let body = json!({ "name": name, "role": role, "prefixes": prefixes, "password": PASSWORD });
        self.admin(Method::POST, "/v1/users", body, 201).await;
    }

    /// A login from an address of this machine; the answer.
    pub(super) async fn login(&self, name: &str, password: &str, from: Option<&str>) -> Answer {
        let from = from.map(|a| a.parse().unwrap());
        let mut client = self.connect(None, Ends { from, ..Ends::default() }).await;
        let body = json!({ "user": name, "password": password }).to_string();
        client.request(Method::POST, "/v1/login", &JSON, body).await.unwrap()
    }

    /// The token of a new session.
    pub(super) async fn session(&self, name: &str) -> String {
        let answer = self.login(name, PASSWORD, None).await;
        assert_eq!(answer.status, 200, "a login of {name}: {}", answer.text());
        answer.json().unwrap()["token"].as_str().unwrap().to_owned()
    }

    /// The id and token of a new API key.
    pub(super) async fn api_key(&mut self, body: Value) -> (String, String) {
        let made = self.admin(Method::POST, "/v1/api-keys", body, 201).await.json().unwrap();
        (made["id"].as_str().unwrap().to_owned(), made["token"].as_str().unwrap().to_owned())
    }

    /// The status of `GET /v1/me` with a token.
    pub(super) async fn me(&self, token: &str) -> u16 {
        self.client(Some(token)).await.get("/v1/me").await.unwrap().status
    }

    /// A metric's value.
    pub(super) async fn metric(&mut self, name: &str) -> u64 {
        let text = self.admin.get("/metrics").await.unwrap().text();
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no metric {name}")).parse().unwrap()
    }
}

/// Somebody of every sort.
pub(super) struct People {
    pub(super) ledger: Ledger,
    pub(super) all: Vec<Person>,
    /// An entry with a key within `in/`.
    pub(super) inside: u64,
    /// An entry with a key outside.
    pub(super) outside: u64,
    next: AtomicU64,
}

impl People {
    pub(super) async fn new() -> Self {
        let mut ledger = Ledger::start("[metrics]\nallow = []\n").await;
        let mut entries = Vec::new();
        for key in ["/v1/keys/in/k", "/v1/keys/out/k"] {
            let put = ledger.admin.put(key, "v").await.unwrap().json().unwrap();
            entries.push(put["transaction"].as_u64().unwrap());
        }
        let mut all = vec![person(Kind::Local, 0, false)];
        for limited in [false, true] {
            for role in 0..ROLES.len() {
                all.extend(of_role(&mut ledger, role, limited).await);
            }
        }
        let wait = format!("/v1/transactions/{}/receipt?wait=quorum", entries[1]);
        assert_eq!(ledger.admin.get(&wait).await.unwrap().status, 200, "a checkpoint covers both entries");
        Self { ledger, all, inside: entries[0], outside: entries[1], next: AtomicU64::new(0) }
    }

    /// Another number each time.
    pub(super) fn unique(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A connection of somebody, or of nobody.
    pub(super) async fn connect(&self, person: Option<&Person>) -> Client {
        let Some(person) = person else { return self.ledger.client(None).await };
        if person.kind == Kind::Local {
            return Client::local(&self.ledger.daemon.data().join("samovar.sock")).await.unwrap();
        }
        let ends = Ends { certificate: person.certificate.clone(), ..Ends::default() };
        self.ledger.connect(person.token.as_deref(), ends).await
    }
}

fn person(kind: Kind, role: usize, limited: bool) -> Person {
    Person { kind, role, limited, token: None, certificate: None }
}

/// One person for each kind of credential that a role can have.
async fn of_role(ledger: &mut Ledger, role: usize, limited: bool) -> Vec<Person> {
    let (name, prefixes) = (ROLES[role], if limited { &["in/"][..] } else { &[] });
    let user = if limited { format!("{name}-in") } else { name.to_owned() };
    ledger.user(&user, name, prefixes).await;
    let own = ledger.api_key(json!({ "name": user, "role": name, "prefixes": prefixes })).await.1;
    let users = ledger.api_key(json!({ "name": user, "user": user })).await.1;
    let identity = Identity::new();
    let body = json!({ "name": "laptop", "user": user, "key": identity.hash });
    ledger.admin(Method::POST, "/v1/certificates", body, 201).await;
    let session = ledger.session(&user).await;
    vec![
        Person { token: Some(own), ..person(Kind::ApiKey, role, limited) },
        Person { token: Some(users), ..person(Kind::UserKey, role, limited) },
        Person { token: Some(session), ..person(Kind::Session, role, limited) },
        Person { certificate: Some(identity.der), ..person(Kind::Certificate, role, limited) },
    ]
}
