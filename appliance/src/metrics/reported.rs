//! What is not counted as it happens but asked for at each scrape: the node's report of itself, and the machine.

use std::fmt::Result;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;
use samovar_node::rt;
use samovar_node::view::{FSYNC_BOUNDS, Status};

use super::journal;
use super::machine::{Figures, Process};
use crate::peers::Calls;

/// Every role that a node can have: one sample each, so that a query for a role never finds nothing.
const ROLES: [&str; 5] = ["leader", "follower", "candidate", "learner", "stopped"];

type Count = fn(&Calls) -> u64;

/// What is counted of the calls to a peer.
const CALLS: [(&str, &str, Count); 3] = [
    ("samovar_peer_calls_answered", "Calls to the node that it answered", |calls| calls.answered),
    ("samovar_peer_calls_not_sent", "Calls that surely did not reach the node", |calls| calls.not_sent),
    ("samovar_peer_calls_unanswered", "Calls to the node that got no answer", |calls| calls.no_answer),
];

/// The figures of one scrape.
#[derive(Debug)]
pub(super) struct Reported {
    pub(super) status: Status,
    pub(super) machine: Figures,
    pub(super) peers: Vec<PeerFigures>,
}

/// What is known of another node of the cluster.
#[derive(Debug, Clone)]
pub(crate) struct PeerFigures {
    /// Its name.
    pub(crate) name: String,
    /// Whether it was heard of lately.
    pub(crate) live: bool,
    /// How long ago that was; nothing if it never was.
    pub(crate) contact: Option<Duration>,
    /// Blocks behind the highest known.
    pub(crate) trails: Option<u64>,
    /// How calls to it ended.
    pub(crate) calls: Calls,
}

impl Collector for Reported {
    fn encode(&self, encoder: DescriptorEncoder) -> Result {
        let mut page = Page(encoder);
        self.chain(&mut page)?;
        self.raft(&mut page)?;
        self.work(&mut page)?;
        self.store(&mut page)?;
        self.archive(&mut page)?;
        self.blobs(&mut page)?;
        self.peers(&mut page)?;
        self.host(&mut page)?;
        if let Some(process) = &self.machine.process {
            process_figures(process, &mut page)?;
        }
        page.counters(
            "samovar_journal_lines",
            "Lines written to the journal, by level",
            "level",
            &journal::lines_by_level(),
        )
    }
}

impl Reported {
    fn chain(&self, page: &mut Page) -> Result {
        let (status, head) = (&self.status, &self.status.head);
        page.gauge("samovar_chain_height", "Height of the newest applied block", head.height)?;
        page.gauge("samovar_chain_entries", "Entries of the chain log", head.size)?;
        let help = "Time of the newest block, since 1970";
        page.gauge("samovar_chain_block_timestamp_seconds", help, seconds_of_ms(head.time_ms))?;
        let help = "Entries covered by the newest checkpoint";
        page.gauge("samovar_checkpoint_entries", help, status.checkpoint_size)?;
        let help = "Checkpoints published; each was signed and cosigned";
        page.counter("samovar_checkpoints", help, status.checkpoint_rounds)?;
        let help = "1 while the node's state is not known to be that of its peers: it then answers nothing";
        page.gauge("samovar_state_diverged", help, u64::from(status.divergence.is_some()))?;
        let help = "Checkpoints that peers showed and the log key did not sign";
        page.counter("samovar_forged_checkpoints", help, status.forged_checkpoints)?;
        page.gauge("samovar_keys", "Keys that have a value", status.keys)?;
        let help = "1 when the machine says that its clock is synchronised";
        page.gauge("samovar_clock_synchronised", help, u64::from(status.clock.synchronised))?;
        let help = "1 when the clock is not believed: unsynchronised, and more than a day past the newest block";
        page.gauge("samovar_clock_doubted", help, u64::from(status.clock.doubted))?;
        let help = "1 when the newest block has an earlier one's time because the clock was doubted";
        page.gauge("samovar_clock_held", help, u64::from(status.clock.held))
    }

    fn raft(&self, page: &mut Page) -> Result {
        let status = &self.status;
        page.gauge("samovar_raft_term", "Raft term", status.term)?;
        page.gauges(
            "samovar_raft_role",
            "1 for the role that the node has",
            "role",
            &ROLES.map(|role| (role, u64::from(role == status.role))),
        )?;
        let help = "1 while the node knows a leader";
        page.gauge("samovar_raft_leader_known", help, u64::from(status.leader.is_some()))?;
        page.gauge("samovar_raft_voters", "Voters of the cluster", status.voters)?;
        page.gauge("samovar_raft_log_index", "Index of the last entry in the raft log", status.raft_index)?;
        page.gauge("samovar_raft_applied_index", "Index of the last applied raft entry", status.applied_index)
    }

    /// What writes cost: sums since start, and what waits.
    fn work(&self, page: &mut Page) -> Result {
        let (status, log, apply) = (&self.status, &self.status.raft_log, &self.status.apply);
        page.gauge("samovar_writes_waiting", "Writes that wait for a block", status.waiting_writes)?;
        page.gauge("samovar_writes_waiting_max", "Most writes that may wait", status.waiting_writes_max)?;
        let stages = [
            ("decode", apply.decode_ns),
            ("transactions", apply.transactions_ns),
            ("state_map", apply.state_map_ns),
            ("archive", apply.archive_ns),
            ("rows", apply.rows_ns),
        ];
        let stages = stages.map(|(stage, ns)| (stage, Duration::from_nanos(ns).as_secs_f64()));
        page.counters("samovar_apply_seconds", "CPU time of apply, by stage", "stage", &stages)?;
        page.counter("samovar_apply_entries", "Entries written by apply, block entries included", apply.entries)?;
        page.counter("samovar_store_rows", "Rows written to the store by apply", apply.rows)?;
        page.counter("samovar_raft_log_frames", "Batches written to the raft log", log.frames)?;
        page.counter("samovar_raft_log_written_bytes", "Bytes written to the raft log", log.bytes)?;
        let buckets = FSYNC_BOUNDS.map(|bound| bound.as_secs_f64()).into_iter().chain([f64::MAX]);
        let buckets: Vec<_> = buckets.zip(log.fsyncs_by_time).collect();
        let help = "How long fdatasync of the raft log took";
        page.histogram("samovar_raft_log_fsync_duration_seconds", help, log.fsync_time, &buckets)?;
        let help = "Age of the write to disk under way with its fdatasync, 0 if there is none";
        let age = log.write_in_flight.unwrap_or_default().as_secs_f64();
        page.gauge("samovar_raft_log_write_in_flight_seconds", help, age)
    }

    fn store(&self, page: &mut Page) -> Result {
        let status = &self.status;
        page.gauge("samovar_store_free_bytes", "Free space for the data directory", status.free_bytes)?;
        let help = "Free space kept in reserve: below it writes are refused";
        page.gauge("samovar_store_reserve_bytes", help, status.reserve_bytes)?;
        if let Some(bytes) = self.machine.filesystem_bytes {
            page.gauge("samovar_store_filesystem_bytes", "Size of the file system of the data directory", bytes)?;
        }
        page.gauge("samovar_store_size_bytes", "Space the store takes on disk", status.store_bytes)?;
        page.gauge("samovar_raft_log_size_bytes", "Space of the raft log's files", status.raft_log.segment_bytes)?;
        let help = "Space that store, archive, salts, state map and raft log take on disk";
        page.gauge("samovar_data_bytes", help, status.data_bytes)?;
        let help = "Damaged stores that were set aside and not removed";
        page.gauge("samovar_store_set_aside", help, status.stores_set_aside.len() as u64)
    }

    fn archive(&self, page: &mut Page) -> Result {
        let archive = &self.status.archive;
        page.gauge("samovar_archive_size_bytes", "Space the archive takes on disk", archive.bytes)?;
        page.counter("samovar_archive_scrubbed_bytes", "Bytes of the archive read again", archive.scrubbed_bytes)?;
        let help = "Damaged segments of the archive found";
        page.counter("samovar_archive_damaged_segments", help, archive.damaged_segments)?;
        let help = "Segments of the archive made again from the store";
        page.counter("samovar_archive_repaired_segments", help, archive.repaired_segments)?;
        let help = "When the archive was last read again as a whole, since 1970; 0: not since the start";
        page.gauge("samovar_archive_scrub_passed_seconds", help, seconds_of_ms(archive.scrub_passed_ms))
    }

    fn blobs(&self, page: &mut Page) -> Result {
        let blobs = &self.status.blobs;
        page.gauge("samovar_blobs", "Blobs that are here whole", blobs.count)?;
        page.gauge("samovar_blobs_size_bytes", "Bytes of the blobs that are here", blobs.bytes)?;
        page.gauge("samovar_blobs_unnamed", "Blobs that no value names; they go in time", blobs.unnamed)?;
        let help = "Blobs that values name and that are damaged or not here";
        page.gauge("samovar_blobs_missing", help, blobs.missing)?;
        page.counter("samovar_blobs_scrubbed_bytes", "Bytes of blobs read again", blobs.scrubbed_bytes)?;
        page.counter("samovar_blobs_damaged", "Blobs found damaged", blobs.damaged)?;
        let help = "When all blobs were last read again, since 1970; 0: not since the start";
        page.gauge("samovar_blobs_scrub_passed_seconds", help, seconds_of_ms(blobs.scrub_passed_ms))
    }

    /// One sample for each other node: a cluster has few.
    fn peers(&self, page: &mut Page) -> Result {
        let live: Vec<_> = self.peers.iter().map(|p| (p.name.as_str(), u64::from(p.live))).collect();
        page.gauges("samovar_peer_live", "1 when the node was heard of within three seconds", "peer", &live)?;
        let contact = |p: &PeerFigures| Some((p.name.clone(), p.contact?.as_secs_f64()));
        let contact: Vec<_> = self.peers.iter().filter_map(contact).collect();
        let contact: Vec<_> = contact.iter().map(|(name, age)| (name.as_str(), *age)).collect();
        let help = "How long ago the node was last heard of";
        page.gauges("samovar_peer_contact_age_seconds", help, "peer", &contact)?;
        let trails: Vec<_> = self.peers.iter().filter_map(|p| Some((p.name.as_str(), p.trails?))).collect();
        let help = "Blocks that the node is behind the highest known here, by its last report";
        page.gauges("samovar_peer_behind_blocks", help, "peer", &trails)?;
        for (name, help, count) in CALLS {
            let calls: Vec<_> = self.peers.iter().map(|p| (p.name.as_str(), count(&p.calls))).collect();
            page.counters(name, help, "peer", &calls)?;
        }
        Ok(())
    }

    fn host(&self, page: &mut Page) -> Result {
        let host = &self.machine;
        if let Some(ratio) = host.cpu_ratio {
            let help = "Busy share of all CPUs between this look and the one before, at least 5 seconds apart, 0 to 1";
            page.gauge("samovar_host_cpu_usage_ratio", help, ratio)?;
        }
        page.gauge("samovar_host_cpus", "CPUs of the machine", host.cpus)?;
        page.gauge("samovar_host_load1", "Load average over one minute", host.load1)?;
        page.gauge("samovar_host_memory_bytes", "Memory of the machine", host.memory_bytes)?;
        let help = "Memory that programs could still get without swapping";
        page.gauge("samovar_host_memory_available_bytes", help, host.memory_available_bytes)?;
        let help = "Bytes through the network interfaces, loopback left out";
        let bytes = [("receive", host.network_received_bytes), ("transmit", host.network_sent_bytes)];
        page.counters("samovar_host_network_bytes", help, "direction", &bytes)?;
        page.gauge("samovar_host_time_seconds", "Clock of the machine, since 1970", seconds_of_ms(rt::now_ms()))
    }
}

/// The names that every Prometheus client library gives these.
fn process_figures(process: &Process, page: &mut Page) -> Result {
    page.counter("process_cpu_seconds", "CPU time of the process", process.cpu_seconds)?;
    page.gauge("process_resident_memory_bytes", "Resident memory of the process", process.resident_bytes)?;
    page.gauge("process_virtual_memory_bytes", "Virtual memory of the process", process.virtual_bytes)?;
    page.gauge("process_start_time_seconds", "Start of the process, since 1970", process.started)?;
    if let (Some(open), Some(most)) = (process.open_files, process.open_files_max) {
        page.gauge("process_open_fds", "Open file descriptors", open)?;
        page.gauge("process_max_fds", "Most file descriptors the process may open", most)?;
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 are far below 2^53")]
fn seconds_of_ms(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

/// Samples written under their full names. Names of counters stand here without the `_total` that OpenMetrics adds.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, value: impl EncodeCounterValue) -> Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        encoder.encode_counter::<NoLabelSet, _, f64>(&value, None)
    }

    fn gauges<V: EncodeGaugeValue>(&mut self, name: &str, help: &str, label: &str, values: &[(&str, V)]) -> Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        values.iter().try_for_each(|(at, value)| encoder.encode_family(&[(label, *at)])?.encode_gauge(value))
    }

    fn counters<V: EncodeCounterValue>(&mut self, name: &str, help: &str, label: &str, values: &[(&str, V)]) -> Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        values.iter().try_for_each(|(at, value)| {
            encoder.encode_family(&[(label, *at)])?.encode_counter::<NoLabelSet, _, f64>(value, None)
        })
    }

    /// `buckets`: upper bound and count of each class, the last one without a bound.
    fn histogram(&mut self, name: &str, help: &str, sum: Duration, buckets: &[(f64, u64)]) -> Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        let count = buckets.iter().map(|(_, n)| n).sum();
        encoder.encode_histogram::<NoLabelSet>(sum.as_secs_f64(), count, buckets, None)
    }
}
