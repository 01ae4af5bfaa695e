//! Prometheus metrics: of the listener as it runs, of chain, Raft and store as the node reports them at each scrape.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
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
type Seconds = Counter<f64, AtomicU64>;

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
struct StageLabels {
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

/// All metrics of the process.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabels, Histogram>,
    connections: UGauge,
    refused: Family<ReasonLabels, Counter>,
    cut: Family<ReasonLabels, Counter>,
    handshakes: Family<ResultLabels, Counter>,
    access_omitted: Counter,
    logins: Family<ResultLabels, Counter>,
    /// Runs of argon2.
    pub(crate) password_hashes: Counter,
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
    data: UGauge,
    checkpoints: Counter,
    apply: Family<StageLabels, Seconds>,
    rows: Counter,
    clock_synchronised: UGauge,
    clock_doubted: UGauge,
    clock_held: UGauge,
    raft_log: RaftLogGauges,
}

/// What the raft log reports.
#[derive(Default)]
struct RaftLogGauges {
    frames: Counter,
    bytes: Counter,
    size: UGauge,
    fsyncs: Counter,
    fsync: Seconds,
    fsync_max: Gauge<f64, AtomicU64>,
}

impl NodeGauges {
    /// Copies the node's sums; they only grow while the process lives, as counters must.
    fn work(&self, status: &Status) {
        let set = |counter: &Counter, sum: u64| counter.inner().store(sum, Relaxed);
        let seconds = |counter: &Seconds, sum: Duration| counter.inner().store(sum.as_secs_f64().to_bits(), Relaxed);
        let (apply, log) = (&status.apply, &status.raft_log);
        for (stage, ns) in [
            ("decode", apply.decode_ns),
            ("transactions", apply.transactions_ns),
            ("state_map", apply.state_map_ns),
            ("rows", apply.rows_ns),
        ] {
            seconds(&self.apply.get_or_create(&StageLabels { stage }), Duration::from_nanos(ns));
        }
        set(&self.rows, apply.rows);
        set(&self.checkpoints, status.checkpoint_rounds);
        set(&self.raft_log.frames, log.frames);
        set(&self.raft_log.bytes, log.bytes);
        self.raft_log.size.set(log.segment_bytes);
        set(&self.raft_log.fsyncs, log.fsyncs);
        seconds(&self.raft_log.fsync, log.fsync_time);
        self.raft_log.fsync_max.set(log.fsync_time_max.as_secs_f64());
    }
}

impl Metrics {
    /// Registers everything.
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            // 100 µs to 26 s.
            durations: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.0001, 4.0, 10))),
            connections: Gauge::default(),
            refused: Family::default(),
            cut: Family::default(),
            handshakes: Family::default(),
            access_omitted: Counter::default(),
            logins: Family::default(),
            password_hashes: Counter::default(),
            watches: Gauge::default(),
            node: NodeGauges::default(),
        };
        metrics.register_listener();
        metrics.register_node();
        metrics.register_work();
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
        let omitted = "Access records not written because their second had its share";
        r.register("samovar_access_records_omitted", omitted, self.access_omitted.clone());
        r.register("samovar_logins", "Logins, by result", self.logins.clone());
        r.register("samovar_password_hashes", "Runs of argon2", self.password_hashes.clone());
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
        let synchronised = "1 when the machine says that its clock is synchronised";
        r.register("samovar_clock_synchronised", synchronised, n.clock_synchronised.clone());
        let doubted = "1 when the clock is not believed: unsynchronised, and more than a day past the newest block";
        r.register("samovar_clock_doubted", doubted, n.clock_doubted.clone());
        let held = "1 when the newest block has an earlier one's time because the clock was doubted";
        r.register("samovar_clock_held", held, n.clock_held.clone());
        r.register("samovar_checkpoint_entries", "Entries covered by the newest checkpoint", n.checkpoint_size.clone());
        r.register("samovar_keys", "Keys that have a value", n.keys.clone());
        r.register("samovar_raft_term", "Raft term", n.term.clone());
        r.register("samovar_raft_role", "1 for the role the node has", n.role.clone());
        let bytes = || Unit::Bytes;
        r.register_with_unit("samovar_store_free", "Free space for the data directory", bytes(), n.free.clone());
        r.register_with_unit("samovar_store_reserve", "Free space kept in reserve", bytes(), n.reserve.clone());
        r.register_with_unit("samovar_store_size", "Space the store takes on disk", bytes(), n.store.clone());
        let all = "Space that store, salts, state map and raft log take on disk";
        r.register_with_unit("samovar_data", all, bytes(), n.data.clone());
    }

    /// What a write costs: sums since start.
    fn register_work(&mut self) {
        let (r, n) = (&mut self.registry, &self.node);
        let log = &n.raft_log;
        r.register("samovar_checkpoints", "Checkpoints published; each was signed and cosigned", n.checkpoints.clone());
        r.register_with_unit("samovar_apply", "CPU time of apply, by stage", Unit::Seconds, n.apply.clone());
        r.register("samovar_store_rows", "Rows written to the store by apply", n.rows.clone());
        r.register("samovar_raft_log_frames", "Batches written to the raft log", log.frames.clone());
        r.register("samovar_raft_log_written_bytes", "Bytes written to the raft log", log.bytes.clone());
        r.register_with_unit("samovar_raft_log_size", "Space of the raft log's files", Unit::Bytes, log.size.clone());
        r.register("samovar_raft_log_fsyncs", "Calls of fdatasync on the raft log", log.fsyncs.clone());
        r.register_with_unit("samovar_raft_log_fsync", "Time in them", Unit::Seconds, log.fsync.clone());
        r.register_with_unit("samovar_raft_log_fsync_max", "The longest one", Unit::Seconds, log.fsync_max.clone());
    }

    /// The exposition, with what the node reports now.
    pub(crate) fn exposition(&self, status: &Status) -> Result<String, std::fmt::Error> {
        let n = &self.node;
        n.height.set(status.head.height);
        n.size.set(status.head.size);
        #[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 are far below 2^53")]
        n.block_time.set(status.head.time_ms as f64 / 1000.0);
        n.clock_synchronised.set(status.clock.synchronised.into());
        n.clock_doubted.set(status.clock.doubted.into());
        n.clock_held.set(status.clock.held.into());
        n.checkpoint_size.set(status.checkpoint_size);
        n.keys.set(status.keys);
        n.term.set(status.term);
        n.role.clear();
        n.role.get_or_create(&RoleLabels { role: status.role }).set(1);
        n.free.set(status.free_bytes);
        n.reserve.set(status.reserve_bytes);
        n.store.set(status.store_bytes);
        n.data.set(status.data_bytes);
        n.work(status);
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

    /// An access record was left out.
    pub(crate) fn access_record_omitted(&self) {
        self.access_omitted.inc();
    }

    /// A login ended.
    pub(crate) fn login(&self, result: &'static str) {
        self.logins.get_or_create(&ResultLabels { result }).inc();
    }

    /// A TLS handshake ended.
    pub(crate) fn handshake(&self, result: &'static str) {
        self.handshakes.get_or_create(&ResultLabels { result }).inc();
    }
}

#[cfg(test)]
mod tests {
    use samovar_node::view::{ApplyStages, ClockStatus, RaftLogStatus};

    use super::*;

    #[test]
    fn names_follow_prometheus() {
        let metrics = Metrics::new();
        metrics.request("GET", "/v1/keys/{key}", StatusCode::OK, Duration::from_millis(3));
        metrics.handshake("done");
        let apply = ApplyStages { state_map_ns: 250_000_000, ..ApplyStages::default() };
        let raft_log = RaftLogStatus { fsyncs: 7, fsync_time: Duration::from_millis(1500), ..RaftLogStatus::default() };
        let clock = ClockStatus { doubted: true, ..ClockStatus::default() };
        let status = Status { role: "leader", checkpoint_rounds: 3, apply, raft_log, clock, ..Status::default() };
        let text = metrics.exposition(&status).expect("encodes");
        for want in [
            "http_requests_total{method=\"GET\",route=\"/v1/keys/{key}\",status=\"200\"} 1\n",
            "http_request_duration_seconds_count{method=\"GET\",route=\"/v1/keys/{key}\"} 1\n",
            "samovar_tls_handshakes_total{result=\"done\"} 1\n",
            "samovar_raft_role{role=\"leader\"} 1\n",
            "samovar_store_free_bytes 0\n",
            "samovar_apply_seconds_total{stage=\"state_map\"} 0.25\n",
            "samovar_raft_log_fsyncs_total 7\n",
            "samovar_raft_log_fsync_seconds_total 1.5\n",
            "samovar_checkpoints_total 3\n",
            "samovar_clock_synchronised 0\n",
            "samovar_clock_doubted 1\n",
            "# EOF\n",
        ] {
            assert!(text.contains(want), "expected {want:?} in\n{text}");
        }
    }
}
