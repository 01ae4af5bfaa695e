use std::fmt::Write as _;

use samovar_node::view::{ApplyStages, FSYNC_BOUNDS, RaftLogStatus};

use super::machine::Figures;
use super::*;

fn exposition_after_work() -> String {
    let metrics = Metrics::new(Path::new("/"));
    metrics.request("GET", "/v1/keys/{key}", StatusCode::OK, Duration::from_millis(3));
    metrics.handshake("done");
    metrics.certificate("node", 1_900_000_000);
    metrics.transaction(&Err(Error::Overloaded));
    let apply = ApplyStages { state_map_ns: 250_000_000, ..ApplyStages::default() };
    let mut fsyncs_by_time = [0; FSYNC_BOUNDS.len() + 1];
    (fsyncs_by_time[2], fsyncs_by_time[12]) = (5, 2);
    let raft_log =
        RaftLogStatus { fsyncs_by_time, fsync_time: Duration::from_millis(1500), ..RaftLogStatus::default() };
    let status = Status { role: "leader", leader: Some(1), apply, raft_log, ..Status::default() };
    // Without waiting for the first window to be over.
    let machine = Figures { cpu_ratio: Some(0.25), ..metrics.machine.look() };
    let calls = crate::peers::Calls { answered: 9, not_sent: 2, no_answer: 1 };
    let contact = Some(Duration::from_millis(1500));
    let peers = vec![PeerFigures { name: "box-02".into(), live: true, contact, trails: Some(4), calls }];
    metrics.page(Reported { status, machine, peers }).expect("encodes")
}

#[test]
fn names_follow_prometheus() {
    let text = exposition_after_work();
    for want in [
        "http_requests_total{method=\"GET\",route=\"/v1/keys/{key}\",status=\"200\"} 1\n",
        "http_request_duration_seconds_bucket{le=\"0.0025\",method=\"GET\",route=\"/v1/keys/{key}\"} 0\n",
        "http_request_duration_seconds_bucket{le=\"0.005\",method=\"GET\",route=\"/v1/keys/{key}\"} 1\n",
        "samovar_tls_handshakes_total{result=\"done\"} 1\n",
        "samovar_tls_handshakes_total{result=\"timeout\"} 0\n",
        "samovar_transactions_total{result=\"failed\"} 1\n",
        "samovar_certificate_expiry_timestamp_seconds{certificate=\"node\"} 1900000000\n",
        "samovar_raft_role{role=\"leader\"} 1\n",
        "samovar_raft_role{role=\"follower\"} 0\n",
        "samovar_raft_leader_known 1\n",
        "samovar_peer_live{peer=\"box-02\"} 1\n",
        "samovar_peer_contact_age_seconds{peer=\"box-02\"} 1.5\n",
        "samovar_peer_behind_blocks{peer=\"box-02\"} 4\n",
        "samovar_peer_calls_not_sent_total{peer=\"box-02\"} 2\n",
        "samovar_store_free_bytes 0\n",
        "samovar_apply_seconds_total{stage=\"state_map\"} 0.25\n",
        "samovar_raft_log_fsync_duration_seconds_bucket{le=\"0.0005\"} 0\n",
        "samovar_raft_log_fsync_duration_seconds_bucket{le=\"0.001\"} 5\n",
        "samovar_raft_log_fsync_duration_seconds_bucket{le=\"5.0\"} 5\n",
        "samovar_raft_log_fsync_duration_seconds_bucket{le=\"+Inf\"} 7\n",
        "samovar_raft_log_fsync_duration_seconds_sum 1.5\n",
        "samovar_raft_log_fsync_duration_seconds_count 7\n",
        "samovar_journal_lines_total{level=\"error\"} ",
        "samovar_host_cpu_usage_ratio 0.25\n",
        "process_open_fds ",
        "# EOF\n",
    ] {
        assert!(text.contains(want), "expected {want:?} in\n{text}");
    }
}

#[test]
fn every_name_is_described_once() {
    let text = exposition_after_work();
    let described: Vec<_> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let mut once = described.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), described.len(), "a name stands twice among {described:?}");
    assert!(text.lines().filter(|l| *l == "# EOF").count() == 1 && text.ends_with("# EOF\n"), "one end: {text}");
}

/// One line for each metric, from the exposition itself: name, kind, labels, help.
fn reference() -> String {
    let text = exposition_after_work();
    let mut page = String::from(
        "# Metrics\n\nWhat `GET /metrics` shows, in OpenMetrics text. This page is made from the daemon's own exposition: \
         `UPDATE=1\ncargo test -p samovar reference_page`.\n\nSums count from the start of the process. Labels take few \
         values, all of them the daemon's own. Rules, dashboards and\nalerts over these stand in \
         `ansible/roles/monitoring/`; [operate/monitoring.md](../operate/monitoring.md) says how to\nset them \
         up.\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n",
    );
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) else { continue };
        let kind = lines.next().and_then(|l| l.rsplit(' ').next()).expect("# TYPE follows # HELP");
        let total = if kind == "counter" { "_total" } else { "" };
        let sample = lines.clone().find(|l| !l.starts_with('#'));
        let labels = sample.and_then(|l| l.split_once('{')?.1.rsplit_once('}')).map_or("", |(labels, _)| labels);
        let labels: Vec<_> = labels.split(',').filter_map(|l| Some(format!("`{}`", l.split_once('=')?.0))).collect();
        writeln!(page, "| `{name}{total}` | {kind} | {} | {} |", labels.join(", "), help.trim_end_matches('.'))
            .expect("written");
    }
    page
}

#[test]
fn reference_page_is_that_of_the_exposition() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/metrics.md");
    let expected = reference();
    if std::env::var_os("UPDATE").is_some() {
        let mut file = std::fs::File::create(&path).expect("create");
        std::io::Write::write_all(&mut file, expected.as_bytes()).expect("write");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(expected.lines()).find(|(a, b)| a != b);
    assert!(found == expected, "docs/reference/metrics.md differs, first at {differs:?}; run again with UPDATE=1");
}
