//! Prometheus metrics: of the listener as it runs, of chain, Raft, store, process and machine as they are at each scrape.
//!
//! Labels take few values, all of them ours: a client can make no series. What can be counted before it first happens
//! begins at 0, so that a rate over it is 0 and not missing.

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hyper::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use samovar_node::view::Status;
use samovar_node::{Error, Outcome};

mod journal;
mod machine;
mod reported;

pub(crate) use journal::CountLines;
use machine::Machine;
pub(crate) use reported::PeerFigures;
use reported::Reported;

/// Media type of the exposition.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds of the classes of request times, in seconds: finest where a durable write lies, and with the 0.5 and 1 s that
/// the alerts ask for among them.
const DURATION_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

type UGauge = Gauge<u64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    route: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    method: &'static str,
    route: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CertificateLabels {
    certificate: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

/// All metrics of the process.
pub(crate) struct Metrics {
    registry: Registry,
    machine: Machine,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabels, Histogram>,
    in_flight: UGauge,
    transactions: Family<ResultLabels, Counter>,
    connections: UGauge,
    connections_max: UGauge,
    refused: Family<ReasonLabels, Counter>,
    cut: Family<ReasonLabels, Counter>,
    shed: Family<ReasonLabels, Counter>,
    put_off: UGauge,
    handshakes: Family<ResultLabels, Counter>,
    access_omitted: Counter,
    logins: Family<ResultLabels, Counter>,
    /// Runs of argon2.
    pub(crate) password_hashes: Counter,
    certificates: Family<CertificateLabels, UGauge>,
    acme_orders: Family<ResultLabels, Counter>,
    acme_failed: UGauge,
    /// Watches that are open.
    pub(crate) watches: UGauge,
}

/// A request being answered; counted until dropped, whether it was answered or its client went away.
pub(crate) struct InFlight(UGauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Registers everything. `data`: the data directory, whose file system is reported.
    pub(crate) fn new(data: &Path) -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            machine: Machine::new(data),
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
            in_flight: Gauge::default(),
            transactions: Family::default(),
            connections: Gauge::default(),
            connections_max: Gauge::default(),
            refused: Family::default(),
            cut: Family::default(),
            shed: Family::default(),
            put_off: Gauge::default(),
            handshakes: Family::default(),
            access_omitted: Counter::default(),
            logins: Family::default(),
            password_hashes: Counter::default(),
            certificates: Family::default(),
            acme_orders: Family::default(),
            acme_failed: Gauge::default(),
            watches: Gauge::default(),
        };
        metrics.register();
        metrics.begin_at_zero();
        metrics
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        let build = Family::<BuildLabels, UGauge>::default();
        build.get_or_create(&BuildLabels { version: env!("CARGO_PKG_VERSION") }).set(1);
        r.register("samovar_build_info", "Version of the daemon", build);
        // prometheus-client adds the suffixes `_total` and the unit.
        r.register("http_requests", "Requests answered", self.requests.clone());
        r.register_with_unit(
            "http_request_duration",
            "Time from the end of a request's header to its answer",
            Unit::Seconds,
            self.durations.clone(),
        );
        r.register("http_requests_in_flight", "Requests being answered", self.in_flight.clone());
        let help = "Transactions of clients, by what became of them";
        r.register("samovar_transactions", help, self.transactions.clone());
        r.register("samovar_connections", "Open connections", self.connections.clone());
        r.register("samovar_connections_max", "Most connections that may be open", self.connections_max.clone());
        r.register("samovar_connections_refused", "Connections closed at once, by limit", self.refused.clone());
        r.register("samovar_connections_cut", "Connections cut, by the deadline that passed", self.cut.clone());
        r.register("samovar_requests_shed", "Requests refused because there was too much to do", self.shed.clone());
        r.register(
            "samovar_connections_put_off",
            "Connections not read because there is too much to do",
            self.put_off.clone(),
        );
        r.register("samovar_tls_handshakes", "TLS handshakes, by result", self.handshakes.clone());
        let help = "Access records not written because their second had its share";
        r.register("samovar_access_records_omitted", help, self.access_omitted.clone());
        r.register("samovar_logins", "Logins, by result", self.logins.clone());
        r.register("samovar_password_hashes", "Runs of argon2", self.password_hashes.clone());
        let help = "End of a certificate's validity, since 1970";
        r.register_with_unit("samovar_certificate_expiry_timestamp", help, Unit::Seconds, self.certificates.clone());
        let help = "Certificates ordered from an ACME authority, by what became of the order";
        r.register("samovar_acme_orders", help, self.acme_orders.clone());
        let help = "When an order failed last, since 1970; 0 once one succeeds";
        r.register_with_unit("samovar_acme_failure_timestamp", help, Unit::Seconds, self.acme_failed.clone());
        r.register("samovar_watches", "Open watches", self.watches.clone());
    }

    fn begin_at_zero(&self) {
        for result in ["committed", "refused", "failed"] {
            drop(self.transactions.get_or_create(&ResultLabels { result }));
        }
        for result in ["granted", "refused", "not_checked"] {
            drop(self.logins.get_or_create(&ResultLabels { result }));
        }
        for result in ["done", "failed", "timeout"] {
            drop(self.handshakes.get_or_create(&ResultLabels { result }));
        }
        for result in ["issued", "failed"] {
            drop(self.acme_orders.get_or_create(&ResultLabels { result }));
        }
        for reason in ["address", "total"] {
            drop(self.refused.get_or_create(&ReasonLabels { reason }));
        }
        for reason in ["put_off", "too_old"] {
            drop(self.shed.get_or_create(&ReasonLabels { reason }));
        }
        for reason in ["evicted", "header", "idle", "response", "stop", "write"] {
            drop(self.cut.get_or_create(&ReasonLabels { reason }));
        }
    }

    /// The exposition, with what the node reports now and knows of its peers.
    pub(crate) fn exposition(&self, status: &Status, peers: Vec<PeerFigures>) -> Result<String, std::fmt::Error> {
        self.page(Reported { status: status.clone(), machine: self.machine.look(), peers })
    }

    fn page(&self, figures: Reported) -> Result<String, std::fmt::Error> {
        let mut reported = Registry::default();
        reported.register_collector(Box::new(figures));
        let mut text = String::with_capacity(32 << 10);
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &reported)?;
        encode_eof(&mut text)?;
        Ok(text)
    }

    /// A request begins; keep what is returned until it is answered.
    pub(crate) fn begin(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// A request was answered.
    pub(crate) fn request(&self, method: &'static str, route: &'static str, status: StatusCode, took: Duration) {
        self.requests.get_or_create(&RequestLabels { method, route, status: status.as_u16() }).inc();
        self.durations.get_or_create(&RouteLabels { method, route }).observe(took.as_secs_f64());
    }

    /// The node is done with a transaction.
    pub(crate) fn transaction(&self, outcome: &Result<Outcome, Error>) {
        let result = match outcome {
            Ok(Outcome::Committed(_)) => "committed",
            Ok(Outcome::Refused(_)) => "refused",
            Err(_) => "failed",
        };
        self.transactions.get_or_create(&ResultLabels { result }).inc();
    }

    /// A certificate that is in use holds until then, seconds since 1970. `certificate` is `node` or `ca`.
    pub(crate) fn certificate(&self, certificate: &'static str, not_after_s: u64) {
        self.certificates.get_or_create(&CertificateLabels { certificate }).set(not_after_s);
    }

    /// The certificate for the site's names holds until then, seconds since 1970, if there is one.
    pub(crate) fn site_certificate(&self, not_after_s: Option<u64>) {
        match not_after_s {
            Some(not_after_s) => self.certificate("site", not_after_s),
            None => drop(self.certificates.remove(&CertificateLabels { certificate: "site" })),
        }
    }

    /// An order at an ACME authority ended at this time, seconds since 1970.
    pub(crate) fn acme_order(&self, issued: bool, now_s: u64) {
        let result = if issued { "issued" } else { "failed" };
        self.acme_orders.get_or_create(&ResultLabels { result }).inc();
        self.acme_failed.set(if issued { 0 } else { now_s });
    }

    /// So many connections may be open.
    pub(crate) fn connections_max(&self, most: usize) {
        self.connections_max.set(most as u64);
    }

    /// So many connections are open.
    pub(crate) fn connections(&self, open: usize) {
        self.connections.set(open as u64);
    }

    /// A connection was closed at once.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// A connection was cut.
    pub(crate) fn cut(&self, reason: &'static str) {
        self.cut.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// A request was refused because there is too much to do.
    pub(crate) fn shed(&self, reason: &'static str) {
        self.shed.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// So many connections are not read because there is too much to do.
    pub(crate) fn put_off(&self, connections: usize) {
        self.put_off.set(connections as u64);
    }

    /// A login ended.
    pub(crate) fn login(&self, result: &'static str) {
        self.logins.get_or_create(&ResultLabels { result }).inc();
    }

    /// An access record was left out.
    pub(crate) fn access_record_omitted(&self) {
        self.access_omitted.inc();
    }

    /// A TLS handshake ended.
    pub(crate) fn handshake(&self, result: &'static str) {
        self.handshakes.get_or_create(&ResultLabels { result }).inc();
    }
}

#[cfg(test)]
mod tests;
