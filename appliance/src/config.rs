//! The configuration: [`ConfigFile`] as it is written (TOML), [`Config`] as it was checked.
//!
//! Every key has a default that is safe on the smallest machine, so an empty file is valid. The field docs below are the
//! only description of a key: the reference page and the sample file are made from them (`reference`, `sample`).

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::auth::LIFE_MS_MAX;
use crate::bucket::Quota;
use crate::http::{Limits, is_origin};
use crate::quota::Quotas;
use crate::secrets::KekFiles;
use crate::tls::{SiteSource, is_dns_name};

mod level;
mod nearest;
mod peers;
#[cfg(test)]
mod reference;
mod site;
mod units;

pub(crate) use level::Level;
pub(crate) use peers::is_host_and_port;
pub(crate) use site::ChallengeKind;
pub(crate) use units::{Network, Size, Span};

/// Where the configuration lies when none is named.
pub(crate) const DEFAULT_PATH: &str = "/etc/samovar/samovar.toml";
/// Configuration that `init --listen` leaves in the data directory.
pub(crate) const DATA_FILE: &str = "samovar.toml";

/// Most names that can be configured for a certificate: it is sent in every handshake.
const TLS_NAMES_MAX: usize = 32;

/// A key of the file, for the reference page and for "did you mean".
#[cfg_attr(not(test), allow(dead_code, reason = "the documentation is made by the tests"))]
pub(crate) struct Field {
    pub(crate) section: &'static str,
    pub(crate) key: &'static str,
    pub(crate) doc: &'static [&'static str],
}

/// Declares the sections once: structs, defaults, and the table the documentation is made from.
macro_rules! sections {
    ($( $(#[doc = $section_doc:literal])* $section:ident: $name:ident {
        $( $(#[doc = $doc:literal])* $key:ident: $type:ty = $default:expr, )*
    } )*) => {
        /// The file as written.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(crate) struct ConfigFile {
            $( $(#[doc = $section_doc])* pub(crate) $section: $name, )*
        }
        $(
            $(#[doc = $section_doc])*
            #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
            #[serde(deny_unknown_fields, default)]
            pub(crate) struct $name {
                $( $(#[doc = $doc])* pub(crate) $key: $type, )*
            }
            impl Default for $name {
                fn default() -> Self {
                    Self { $( $key: $default, )* }
                }
            }
        )*
        /// Sections with what they are about, in the order of the file.
        pub(crate) const SECTIONS: &[(&str, &[&str])] = &[ $( (stringify!($section), &[$($section_doc),*]), )* ];
        /// Every key, in the order of the file.
        pub(crate) const FIELDS: &[Field] = &[ $( $(
            Field { section: stringify!($section), key: stringify!($key), doc: &[$($doc),*] },
        )* )* ];
    };
}

sections! {
    /// The node and where its data lies.
    node: NodeSection {
        /// Data directory, made by `samovar init`. It belongs to the user that runs the daemon (mode 0700).
        data: PathBuf = PathBuf::from("/var/lib/samovar"),
        /// File with the key-encryption key under which private keys lie sealed in the data directory (absolute path;
        /// `samovar kek new FILE` makes one). Under systemd the credential `samovar.kek` does the same without a file in the
        /// clear. Without either they are protected by their mode (0600) alone.
        kek: PathBuf = site::none(),
        /// File with the key-encryption key before it. What is sealed under that one is brought under the one in force at
        /// the start (credential `samovar.kek.old`).
        kek_old: PathBuf = site::none(),
        /// File with the generation id of the virtual machine (absolute path), which the hypervisor changes when it puts the machine
        /// back from a snapshot or copies it. A node with peers whose id has changed since its last start takes no part in
        /// votes and must join as a new one. By default the credential `samovar.vm-generation`, or what QEMU's firmware
        /// shows if the daemon may read it.
        vm_generation: PathBuf = site::none(),
    }
    /// Addresses to listen on.
    listen: ListenSection {
        /// Address and port of the API over HTTPS. `[::]:8443` listens on IPv6 and IPv4.
        api: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 8443)),
        /// Origins whose pages may call the API from a browser (CORS), such as `https://app.example`: scheme, host and,
        /// unless it is the scheme's own, port. None by default. A page needs a token all the same.
        cors_origins: Vec<String> = Vec::new(),
    }
    /// The other nodes of the cluster. A node without peers does not listen for any: it begins to when it makes a join token
    /// (`samovar node token`), and at each start once it has peers.
    peers: PeersSection {
        /// Address and port for peers (TLS 1.3, certificates of nodes only). Clients have no business there.
        listen: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 8444)),
        /// Where peers reach this node, `HOST:PORT`. By default the address of `listen`, or the machine's host name if
        /// that is all addresses.
        address: String = String::new(),
    }
    /// The certificate that the node shows its clients. The ledger's own CA signs it.
    tls: TlsSection {
        /// Host names and addresses of this node beside those it knows: `localhost`, its own and the machine's name, both
        /// also under `.local`, loopback, and the address it listens on. They come into the next certificate (`samovar rotate
        /// node`); names that are neither local nor known to the CA need a new one (`samovar rotate ca`).
        names: Vec<String> = Vec::new(),
        /// Where a certificate for the site's names comes from, beside the one of the ledger's own CA, which goes on to be shown
        /// under every other name and address: `local` (there is none), `files` (the two below) or `acme` (section `[acme]`).
        source: site::Source = site::Source::Local,
        /// With `files`: the certificate and those that link it to its root, in that order (PEM, absolute path). Read again at a
        /// reload and within a minute of a change.
        certificate: PathBuf = site::none(),
        /// With `files`: its private key (PEM, absolute path). The user that runs the daemon must be able to read it, and nobody else should.
        key: PathBuf = site::none(),
    }
    /// A certificate from an authority that speaks ACME (RFC 8555), such as Let's Encrypt or the site's own. Ordered, and
    /// renewed at two thirds of its life, if `tls.source` is `acme`. The authority connects to port 80 or 443 of each name:
    /// `systemctl enable samovar-acme.socket`.
    acme: AcmeSection {
        /// Host names to order, each of which must lead to this node.
        names: Vec<site::Name> = Vec::new(),
        /// URL of the authority's directory.
        directory: site::HttpsUrl = site::lets_encrypt(),
        /// Whether the site agrees to the authority's terms of service. Without that nothing is ordered.
        terms_agreed: bool = false,
        /// Mail addresses for the authority, if something is wrong with the account.
        contacts: Vec<site::Mail> = Vec::new(),
        /// How names are proved: `http-01` (the authority asks on port 80) or `tls-alpn-01` (on port 443). After a failure the
        /// next one of the list is tried.
        challenges: Vec<ChallengeKind> = vec![ChallengeKind::Http01],
        /// File with the roots that the directory's own certificate must lead to (PEM, absolute path), instead of the system's.
        roots: PathBuf = site::none(),
        /// File with the external account binding that some authorities want (absolute path; RFC 8555, 7.3.4):
        /// `{"kid": "…", "hmac": "…"}`, the key in base64url. Read when the account is made.
        account_binding: PathBuf = site::none(),
        /// Addresses to answer challenges at, beside the sockets that systemd passes. For tests, and for a redirection of the
        /// ports 80 and 443: those need a privilege that the daemon does not have.
        listen: Vec<SocketAddr> = Vec::new(),
    }
    /// The chain log and who may read it.
    chain: ChainSection {
        /// Whether checkpoint and tiles are served without a token. They hold key names, sizes, media types, times and
        /// author ids, never values.
        public: bool = false,
    }
    /// Storage.
    store: StoreSection {
        /// Free space kept in reserve: below it writes are refused (507), reads go on.
        reserve: Size = Size(128 << 20),
        /// Most writes that may wait for a block; more are refused (429).
        queue: usize = 4096,
        /// Page cache of the store; it takes about twice that in memory.
        cache: Size = Size(4 << 20),
    }
    /// Blobs: large values, in files of their own.
    blobs: BlobsSection {
        /// Longest blob (413), at most 4GiB.
        size: Size = Size(4 << 30),
        /// How long a blob is kept that no key names, from its upload or the start of the daemon. Longer than anybody needs
        /// between the upload and the transaction that names it.
        keep_unnamed: Span = Span::seconds(24 * 3600),
    }
    /// Users and their sessions.
    auth: AuthSection {
        /// How long a session lasts after a login: one second to 24 hours.
        session_life: Span = Span::seconds(3600),
    }
    /// Bounds of the HTTPS listener, and how many requests it takes. What happens at each of them stands in docs/reference/api.md.
    limits: LimitsSection {
        /// Open connections. At the limit the longest idle connection makes room; if none is idle, the new one is closed.
        connections: usize = 2048,
        /// Open connections of one address (IPv6: of one /64 network); more are closed at once.
        connections_per_address: usize = 512,
        /// Time for the TLS handshake.
        handshake_timeout: Span = Span::seconds(10),
        /// Time from the first byte of a request to the end of its header.
        header_timeout: Span = Span::seconds(10),
        /// How long a connection may stay without a request.
        idle_timeout: Span = Span::seconds(60),
        /// Age after which an HTTP/2 connection is asked to go away, so that nothing collects in it.
        connection_lifetime: Span = Span::seconds(3600),
        /// Time for the whole body of a request (408).
        body_deadline: Span = Span::seconds(60),
        /// Least rate of a body, per second, after the first five seconds (408).
        body_rate: Size = Size(1 << 10),
        /// Time for the work of one request (503).
        request_deadline: Span = Span::seconds(30),
        /// How long a client may accept no byte of its answer before its connection is cut.
        write_timeout: Span = Span::seconds(30),
        /// Time for a client to take one whole answer (watches excepted).
        response_deadline: Span = Span::seconds(300),
        /// Concurrent requests of one HTTP/2 connection.
        streams: u32 = 100,
        /// Bytes of a request's header (431).
        header_size: Size = Size(32 << 10),
        /// Number of header fields (431; HTTP/1.1 only, in HTTP/2 their size is what counts).
        headers: usize = 64,
        /// Bytes of a request target (414).
        uri_size: Size = Size(8 << 10),
        /// Watches (`/v1/watch`) that may be open at once (503).
        watches: usize = 256,
        /// How long requests in flight may take to finish when the daemon stops.
        stop_deadline: Span = Span::seconds(20),
        /// Requests of one principal (429), `REQUESTS/TIME`: so many at once, and as many again in each such time. This
        /// node counts for itself, as for the five below.
        api: Quota = per_second(20_000),
        /// The same of one address (IPv6: of one /64 network), whoever asks. Behind a proxy or NAT many are one address.
        api_per_address: Quota = per_second(40_000),
        /// Requests of one principal that bring values (`PUT /v1/keys/…`, `POST /v1/transactions`, `POST /v1/blobs`).
        upload: Quota = per_second(20_000),
        /// The same of one address.
        upload_per_address: Quota = per_second(40_000),
        /// Changes of their own password by one principal.
        login: Quota = Quota { requests: 60, window: Duration::from_secs(60) },
        /// Logins, good ones and failed, from one address.
        login_per_address: Quota = Quota { requests: 300, window: Duration::from_secs(60) },
    }
    /// Prometheus metrics.
    metrics: MetricsSection {
        /// Networks that may read `/metrics` without a token; others need one with the right to.
        allow: Vec<Network> = Network::loopback(),
    }
    /// Updates, if this machine is the appliance.
    update: UpdateSection {
        /// Where the image's updater keeps its state, the steps of updates and the socket that takes orders.
        directory: PathBuf = PathBuf::from(crate::update::DIRECTORY),
    }
    /// What the daemon writes to the journal.
    journal: JournalSection {
        /// Least level: `error`, `warn`, `info`, `debug` or `trace`.
        level: Level = Level::Info,
        /// Whether to write a record for every request: who, which route, status, sizes, time; never a path or a secret.
        /// Answers of 500 and above are always written.
        access: bool = true,
        /// Most access records per second, so that a flood of requests is no flood of the journal. What is left out is
        /// counted (`samovar_access_records_omitted_total`).
        access_rate: u32 = 200,
    }
}

/// Longest blob that may be configured, in bytes: what the memory of an upload is reckoned for.
const BLOB_BYTES_MAX: u64 = 4 << 30;

const fn per_second(requests: u32) -> Quota {
    Quota { requests, window: Duration::from_secs(1) }
}

/// The configuration, checked.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Data directory.
    pub(crate) data: PathBuf,
    /// Where the generation id of the virtual machine is read, if that is configured.
    pub(crate) vm_generation: Option<PathBuf>,
    /// Where the key-encryption keys lie, if that is not left to systemd.
    pub(crate) kek: KekFiles,
    /// Address of the API.
    pub(crate) listen: SocketAddr,
    /// Address for peers.
    pub(crate) peers_listen: SocketAddr,
    /// Where peers are told to reach this node, `HOST:PORT`.
    pub(crate) peers_address: String,
    /// More names and addresses of the node's certificate.
    pub(crate) tls_names: Vec<String>,
    /// Where the certificate for the site's names comes from.
    pub(crate) site: SiteSource,
    /// Addresses to answer ACME challenges at.
    pub(crate) acme_listen: Vec<SocketAddr>,
    /// Whether the log is public.
    pub(crate) public: bool,
    /// Bytes kept free.
    pub(crate) reserve_bytes: u64,
    /// Most waiting writes.
    pub(crate) queue_max: usize,
    /// Bytes of the store's page cache.
    pub(crate) cache_bytes: u64,
    /// Longest blob, in bytes.
    pub(crate) blob_bytes_max: u64,
    /// How long a blob is kept that no key names.
    pub(crate) unnamed_blob_age: Duration,
    /// Bounds of the listener.
    pub(crate) limits: Limits,
    /// How long a session lasts, in milliseconds.
    pub(crate) session_life_ms: u64,
    /// How many requests are taken.
    pub(crate) quotas: Quotas,
    /// Networks that may read metrics.
    pub(crate) metrics_allow: Vec<Network>,
    /// Where the updater of the image keeps its files, if there is one.
    pub(crate) updates: PathBuf,
    /// Least level of the journal.
    pub(crate) level: Level,
}

/// What is wrong with a configuration file; `Display` is one line that names file, line, column and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}; name another file with --config")]
    Read {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A key is unknown, or a value is not what its key takes.
    #[error("{path}:{line}:{column}: {message}")]
    Syntax {
        /// The file.
        path: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong, and the nearest key.
        message: String,
    },
    /// Keys that do not go together.
    #[error("{path}: {message}")]
    Inconsistent {
        /// The file.
        path: String,
        /// What does not go together.
        message: String,
    },
}

impl Config {
    /// Reads the configuration: `file` if it is named, else `samovar.toml` in the named data directory, else the one in
    /// `/etc`, else the defaults. `data` overrides `node.data`.
    pub(crate) fn load(file: Option<&Path>, data: Option<&Path>) -> Result<Self, ConfigError> {
        let mut config = match Self::file(file, data) {
            Some(path) => {
                let name = path.display().to_string();
                let text = std::fs::read_to_string(&path)
                    .map_err(|source| ConfigError::Read { path: name.clone(), source })?;
                Self::parse(&name, &text)?
            }
            None => Self::parse("(defaults)", "")?,
        };
        if let Some(data) = data {
            config.data = data.to_owned();
        }
        Ok(config)
    }

    /// The file that [`Config::load`] reads, if it reads any.
    pub(crate) fn file(file: Option<&Path>, data: Option<&Path>) -> Option<PathBuf> {
        let candidates = [data.map(|d| d.join(DATA_FILE)), Some(PathBuf::from(DEFAULT_PATH))];
        file.map(Path::to_owned).or_else(|| candidates.into_iter().flatten().find(|p| p.exists()))
    }

    /// Parses and checks the text of a file; `path` is what errors call it.
    pub(crate) fn parse(path: &str, text: &str) -> Result<Self, ConfigError> {
        let file: ConfigFile = toml::from_str(text).map_err(|e| syntax_error(path, text, &e))?;
        file.check().map_err(|message| ConfigError::Inconsistent { path: path.to_owned(), message })
    }
}

impl ConfigFile {
    fn check(self) -> Result<Config, String> {
        let access_records_max = if self.journal.access { self.journal.access_rate } else { 0 };
        let mut limits = self.limits.check(access_records_max)?;
        if let Some(origin) = self.listen.cors_origins.iter().find(|origin| !is_origin(origin)) {
            return Err(format!(
                "listen.cors_origins: `{origin}` is no origin; write one such as \"https://app.example\""
            ));
        }
        limits.cors_origins = self.listen.cors_origins;
        if self.store.queue == 0 {
            return Err("store.queue is 0: no write could ever be taken; leave it out for the default".into());
        }
        if !(1 << 20..=1 << 30).contains(&self.store.cache.0) {
            return Err(format!("store.cache is {}, it must lie between 1MiB and 1GiB", self.store.cache));
        }
        if self.tls.names.len() > TLS_NAMES_MAX {
            return Err(format!("tls.names has {} names, at most {TLS_NAMES_MAX} can be", self.tls.names.len()));
        }
        if let Some(wrong) = self.tls.names.iter().find(|n| !is_dns_name(n) && n.parse::<IpAddr>().is_err()) {
            return Err(format!("tls.names: `{wrong}` is neither a host name nor an address"));
        }
        if !self.peers.address.is_empty() && !is_host_and_port(&self.peers.address) {
            return Err(format!("peers.address: `{}` is no HOST:PORT, such as box-02:8444", self.peers.address));
        }
        let site = site::check(&self.tls, &self.acme)?;
        let kek = KekFiles {
            current: site::file("node.kek", &self.node.kek)?,
            old: site::file("node.kek_old", &self.node.kek_old)?,
        };
        if !(1..=BLOB_BYTES_MAX).contains(&self.blobs.size.0) {
            return Err(format!("blobs.size is {}, it must lie between 1B and 4GiB", self.blobs.size));
        }
        let life = self.auth.session_life;
        let session_life_ms = u64::try_from(life.0.as_millis()).unwrap_or(u64::MAX);
        if !(1000..=LIFE_MS_MAX).contains(&session_life_ms) {
            return Err(format!("auth.session_life is {life}, it must lie between 1s and 24h"));
        }
        Ok(Config {
            vm_generation: site::file("node.vm_generation", &self.node.vm_generation)?,
            data: self.node.data,
            kek,
            listen: self.listen.api,
            peers_listen: self.peers.listen,
            peers_address: self.peers.reached(),
            tls_names: self.tls.names,
            site,
            acme_listen: self.acme.listen,
            public: self.chain.public,
            reserve_bytes: self.store.reserve.0,
            queue_max: self.store.queue,
            cache_bytes: self.store.cache.0,
            blob_bytes_max: self.blobs.size.0,
            unnamed_blob_age: self.blobs.keep_unnamed.0,
            limits,
            session_life_ms,
            quotas: Quotas {
                principal: [self.limits.api, self.limits.login, self.limits.upload],
                network: [self.limits.api_per_address, self.limits.login_per_address, self.limits.upload_per_address],
            },
            metrics_allow: self.metrics.allow,
            updates: self.update.directory,
            level: self.journal.level,
        })
    }
}

impl LimitsSection {
    fn check(&self, access_records_max: u32) -> Result<Limits, String> {
        let l = self;
        let counts = [
            ("connections", l.connections),
            ("connections_per_address", l.connections_per_address),
            ("streams", l.streams as usize),
            ("headers", l.headers),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, n)| *n == 0) {
            return Err(format!("limits.{key} is 0: nothing could be served; leave it out for the default"));
        }
        let times = [
            ("handshake_timeout", l.handshake_timeout),
            ("header_timeout", l.header_timeout),
            ("idle_timeout", l.idle_timeout),
            ("body_deadline", l.body_deadline),
            ("request_deadline", l.request_deadline),
            ("write_timeout", l.write_timeout),
            ("response_deadline", l.response_deadline),
            ("connection_lifetime", l.connection_lifetime),
        ];
        if let Some((key, _)) = times.iter().find(|(_, t)| t.0 < Duration::from_millis(100)) {
            return Err(format!("limits.{key} is below 100ms: clients could not keep to it"));
        }
        let header_bytes = bounded("header_size", l.header_size, 8 << 10, 1 << 20)?;
        let uri_bytes = bounded("uri_size", l.uri_size, 2 << 10, u64::try_from(header_bytes).unwrap_or(u64::MAX))?;
        Ok(Limits {
            connections_max: l.connections,
            connections_per_address_max: l.connections_per_address,
            handshake_timeout: l.handshake_timeout.0,
            header_timeout: l.header_timeout.0,
            idle_timeout: l.idle_timeout.0,
            connection_lifetime: l.connection_lifetime.0,
            body_deadline: l.body_deadline.0,
            body_rate_min: l.body_rate.0.max(1),
            request_deadline: l.request_deadline.0,
            write_timeout: l.write_timeout.0,
            response_deadline: l.response_deadline.0,
            streams_max: l.streams,
            header_bytes_max: header_bytes,
            headers_max: l.headers,
            uri_bytes_max: uri_bytes,
            watches_max: l.watches,
            stop_deadline: l.stop_deadline.0,
            access_records_max,
            cors_origins: Vec::new(),
        })
    }
}

fn bounded(key: &str, size: Size, least: u64, most: u64) -> Result<usize, String> {
    if size.0 < least || size.0 > most {
        return Err(format!("limits.{key} is {size}, it must lie between {} and {}", Size(least), Size(most)));
    }
    usize::try_from(size.0).map_err(|_| format!("limits.{key} is {size}, more than this machine can address"))
}

/// Turns an error of the TOML parser into one line with place and nearest key.
fn syntax_error(path: &str, text: &str, error: &toml::de::Error) -> ConfigError {
    let offset = error.span().map_or(0, |s| s.start.min(text.len()));
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
    let message = error.message();
    let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
    let message = match unknown {
        Some(key) => nearest::explain(key),
        None => message.replace('\n', " "),
    };
    ConfigError::Syntax { path: path.to_owned(), line, column, message }
}

#[cfg(test)]
mod tests;
