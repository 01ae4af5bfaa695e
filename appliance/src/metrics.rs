//! Prometheus metrics: of the listener as it runs, of chain, Raft and store as the node reports them at each scrape.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hyper::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use samovar_node::view::Status;

/// Media type of the exposition.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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
struct RoleLabels {
    role: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

/// All metrics of the process.
pub(crate) struct Metrics {
    registry: Registry,
    /// Whether requests are written to the journal.
    pub(crate) access_log: bool,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabels, Histogram>,
    connections: UGauge,
    refused: Family<ReasonLabels, Counter>,
    cut: Family<ReasonLabels, Counter>,
    handshakes: Family<ResultLabels, Counter>,
    /// Watches that are open.
    pub(crate) watches: UGauge,
    node: NodeGauges,
}

/// What the node reports, copied at each scrape.
#[derive(Default)]
struct NodeGauges {
    height: UGauge,
    size: UGauge,
    block_time: Gauge<f64, AtomicU64>,
    checkpoint_size: UGauge,
    keys: UGauge,
    term: UGauge,
    role: Family<RoleLabels, UGauge>,
    free: UGauge,
    reserve: UGauge,
    store: UGauge,
}

impl Metrics {
    /// Registers everything.
    pub(crate) fn new(access_log: bool) -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            access_log,
            requests: Family::default(),
            // 100 µs to 26 s.
            durations: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.0001, 4.0, 10))),
            connections: Gauge::default(),
            refused: Family::default(),
            cut: Family::default(),
            handshakes: Family::default(),
            watches: Gauge::default(),
            node: NodeGauges::default(),
        };
        metrics.register_listener();
        metrics.register_node();
        metrics
    }

    fn register_listener(&mut self) {
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
        r.register("samovar_connections", "Open connections", self.connections.clone());
        r.register("samovar_connections_refused", "Connections closed at once, by limit", self.refused.clone());
        r.register("samovar_connections_cut", "Connections cut, by the deadline that passed", self.cut.clone());
        r.register("samovar_tls_handshakes", "TLS handshakes, by result", self.handshakes.clone());
        r.register("samovar_watches", "Open watches", self.watches.clone());
    }

    fn register_node(&mut self) {
        let (r, n) = (&mut self.registry, &self.node);
        r.register("samovar_chain_height", "Height of the newest applied block", n.height.clone());
        r.register("samovar_chain_entries", "Entries of the chain log", n.size.clone());
        r.register_with_unit(
            "samovar_chain_block_time",
            "Time of the newest block, since 1970",
            Unit::Seconds,
            n.block_time.clone(),
        );
        r.register("samovar_checkpoint_entries", "Entries covered by the newest checkpoint", n.checkpoint_size.clone());
        r.register("samovar_keys", "Keys that have a value", n.keys.clone());
        r.register("samovar_raft_term", "Raft term", n.term.clone());
        r.register("samovar_raft_role", "1 for the role the node has", n.role.clone());
        let bytes = || Unit::Bytes;
        r.register_with_unit("samovar_store_free", "Free space for the data directory", bytes(), n.free.clone());
        r.register_with_unit("samovar_store_reserve", "Free space kept in reserve", bytes(), n.reserve.clone());
        r.register_with_unit("samovar_store_size", "Space the store takes on disk", bytes(), n.store.clone());
    }

    /// The exposition, with what the node reports now.
    pub(crate) fn exposition(&self, status: &Status) -> Result<String, std::fmt::Error> {
        let n = &self.node;
        n.height.set(status.head.height);
        n.size.set(status.head.size);
        #[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 are far below 2^53")]
        n.block_time.set(status.head.time_ms as f64 / 1000.0);
        n.checkpoint_size.set(status.checkpoint_size);
        n.keys.set(status.keys);
        n.term.set(status.term);
        n.role.clear();
        n.role.get_or_create(&RoleLabels { role: status.role }).set(1);
        n.free.set(status.free_bytes);
        n.reserve.set(status.reserve_bytes);
        n.store.set(status.store_bytes);
        let mut text = String::with_capacity(16 << 10);
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// A request was answered.
    pub(crate) fn request(&self, method: &'static str, route: &'static str, status: StatusCode, took: Duration) {
        self.requests.get_or_create(&RequestLabels { method, route, status: status.as_u16() }).inc();
        self.durations.get_or_create(&RouteLabels { method, route }).observe(took.as_secs_f64());
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

    /// A TLS handshake ended.
    pub(crate) fn handshake(&self, result: &'static str) {
        self.handshakes.get_or_create(&ResultLabels { result }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_prometheus() {
        let metrics = Metrics::new(false);
        metrics.request("GET", "/v1/keys/{key}", StatusCode::OK, Duration::from_millis(3));
        metrics.handshake("done");
        let text = metrics.exposition(&Status { role: "leader", ..Status::default() }).expect("encodes");
        for want in [
            "http_requests_total{method=\"GET\",route=\"/v1/keys/{key}\",status=\"200\"} 1\n",
            "http_request_duration_seconds_count{method=\"GET\",route=\"/v1/keys/{key}\"} 1\n",
            "samovar_tls_handshakes_total{result=\"done\"} 1\n",
            "samovar_raft_role{role=\"leader\"} 1\n",
            "samovar_store_free_bytes 0\n",
            "# EOF\n",
        ] {
            assert!(text.contains(want), "expected {want:?} in\n{text}");
        }
    }
}
