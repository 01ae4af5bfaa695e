//! `samovar support-bundle`: what somebody needs who helps from afar, and nothing that is secret.
//!
//! Nothing is searched for secrets and blackened. Each part is made of what is on a list: fields of the status, fields of
//! journal records, keys of the unit, certificates as they are parsed. What nobody listed stays here. The daemon's files of
//! keys, tokens, salts and values are never opened.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use samovar_node::rt;
use serde_json::{Map, Value, json};

use crate::config::ConfigFile;
use crate::doctor::{Doctor, Facts, Report};
use crate::output::{self, Format};
use crate::tls;

mod journal;
mod tar;

/// Names at the top of a data directory that are shown. Others are somebody's own and only counted.
const OWN_NAMES: [&str; 20] = [
    "admin.token",
    "archive",
    "ca.pem",
    "init.partial",
    "keys",
    "log.vkey",
    "lost+found",
    "node.json",
    "promise",
    "raft",
    "salts",
    "samovar.lock",
    "samovar.sock",
    "samovar.toml",
    "session.key",
    "session.key.new",
    "state-map",
    "store",
    "tls",
    "url",
];
/// Before names like `store.damaged-1`.
const ASIDE: &str = "store.damaged-";
/// Fields of the status that are in the bundle. `errors` are the daemon's own sentences.
const STATUS_FIELDS: [&str; 19] = [
    "node",
    "name",
    "version",
    "role",
    "leader",
    "term",
    "height",
    "size",
    "block_time_ms",
    "checkpoint_size",
    "keys",
    "free_bytes",
    "reserve_bytes",
    "store_bytes",
    "archive_bytes",
    "uptime_s",
    "now_ms",
    "clock",
    "errors",
];
/// Before the names of metrics that are ours. Their labels come from fixed sets.
const METRICS: [&str; 3] = ["samovar_", "http_", "process_"];
/// Largest PEM file that is read, in bytes.
const PEM_BYTES_MAX: u64 = 64 << 10;

/// Collect what somebody needs who helps from afar, without secrets and values
///
/// The file is a tar archive: the doctor's report, status, metrics, configuration, unit, journal, certificates, a listing of
/// the data directory and figures of the machine. Look through it before you give it away: it names hosts and addresses.
#[derive(Debug, clap::Args)]
pub(crate) struct SupportBundle {
    #[command(flatten)]
    doctor: Doctor,
    /// File to write; must not exist [default: samovar-support-TIME.tar]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Collects, and writes the file with mode 0600.
pub(crate) async fn run(bundle: &SupportBundle, format: Format) -> anyhow::Result<()> {
    let now_s = rt::now_ms() / 1000;
    let name = format!("samovar-support-{now_s}");
    let path = bundle.file.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar")));
    let facts = Facts::gather(&bundle.doctor).await;
    let mut archive = tar::Archive::new(name, now_s);
    for (member, content) in members(&facts, &bundle.doctor) {
        archive.add(member, content.as_bytes());
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot make {}", path.display()))?;
    file.write_all(&archive.finish()).with_context(|| format!("cannot write {}", path.display()))?;
    match format {
        Format::Text => output::text(&format!("{}\n", path.display()))?,
        Format::Json => output::json(&json!({ "file": path }))?,
    }
    Ok(())
}

/// What the archive holds. A part that could not be had says so in its place.
fn members(facts: &Facts, doctor: &Doctor) -> Vec<(&'static str, String)> {
    let report = Report::of(facts);
    let running = facts.daemon.as_ref().ok().and_then(Option::as_ref);
    let status = running.and_then(|d| d.status.as_ref().ok()).map(listed_status);
    let metrics = running.and_then(|d| d.metrics.as_ref().ok()).map(|text| listed_metrics(text));
    let missing = || "not to be had: see doctor.txt\n".to_owned();
    vec![
        ("doctor.txt", report.text()),
        ("doctor.json", format!("{:#}\n", report.json())),
        ("version.txt", format!("samovar {}\n", env!("CARGO_PKG_VERSION"))),
        ("status.json", status.map_or_else(missing, |value| format!("{value:#}\n"))),
        ("metrics.txt", metrics.unwrap_or_else(missing)),
        ("configuration.json", configuration(facts.config_file.as_deref())),
        ("unit.txt", facts.unit.as_ref().ok().and_then(Option::as_ref).map_or_else(missing, unit)),
        (
            "journal.jsonl",
            journal::excerpt(&doctor.root).unwrap_or_else(|why| format!("{}\n", json!({ "missing": why }))),
        ),
        ("files.txt", files(facts)),
        ("certificates.pem", certificates(&facts.data)),
        ("system.txt", system(facts)),
    ]
}

fn listed_status(status: &Value) -> Value {
    let kept = STATUS_FIELDS.iter().filter_map(|name| Some(((*name).to_owned(), status.get(*name)?.clone())));
    Value::Object(kept.collect::<Map<_, _>>())
}

fn listed_metrics(text: &str) -> String {
    let named = |line: &&str| METRICS.iter().any(|prefix| line.starts_with(prefix));
    text.lines().filter(named).fold(String::new(), |all, line| all + line + "\n")
}

/// The configuration as it was understood: no comment, no unknown key, and of a file with a mistake nothing.
fn configuration(file: Option<&Path>) -> String {
    let Some(file) = file else { return "{}\n".into() };
    let understood = std::fs::read_to_string(file).ok().and_then(|text| toml::from_str::<ConfigFile>(&text).ok());
    match understood.map(serde_json::to_value) {
        Some(Ok(value)) => format!("{value:#}\n"),
        _ => "not good: see doctor.txt\n".into(),
    }
}

fn unit(unit: &crate::doctor::Unit) -> String {
    unit.known().into_iter().fold(String::new(), |all, (key, value)| all + &key + "=" + &value + "\n")
}

/// Mode, owner, size, time and name of each file.
fn files(facts: &Facts) -> String {
    let listed = match &facts.files {
        Ok(listed) => listed,
        Err(_) => return "not to be had: see doctor.txt\n".into(),
    };
    let mut text = String::new();
    let mut others = 0;
    for file in listed {
        let first = file.path.iter().next().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if !(first.is_empty() || first.starts_with(ASIDE) || OWN_NAMES.contains(&first.as_str())) {
            others += 1;
            continue;
        }
        let kind = if file.directory { 'd' } else { '-' };
        let time = output::time(u64::try_from(file.changed_s).unwrap_or(0) * 1000);
        let (mode, user, group, bytes) = (file.mode, file.user, file.group, file.bytes);
        let path = output::printable(&file.path.to_string_lossy());
        // A string takes everything.
        let _ = writeln!(text, "{kind}{mode:04o} {user} {group} {bytes:>12} {time} ./{path}");
    }
    let _ = writeln!(text, "and {others} that are not the ledger's");
    text
}

/// The certificates, parsed and written anew: what else stands in those files stays there.
fn certificates(data: &Path) -> String {
    let mut text = String::new();
    for (name, path) in tls::certificates(data) {
        let small = path.metadata().is_ok_and(|m| m.len() <= PEM_BYTES_MAX);
        let parsed = CertificateDer::pem_file_iter(&path).ok().filter(|_| small).into_iter().flatten().flatten();
        for certificate in parsed {
            let _ = writeln!(text, "# {name}\n-----BEGIN CERTIFICATE-----");
            for line in BASE64_STANDARD.encode(&certificate).as_bytes().chunks(64) {
                let _ = writeln!(text, "{}", String::from_utf8_lossy(line));
            }
            text.push_str("-----END CERTIFICATE-----\n");
        }
    }
    text
}

/// Figures of the machine. No command lines, of processes or of the kernel.
fn system(facts: &Facts) -> String {
    let name = rustix::system::uname();
    let mut text = format!(
        "kernel {} {} {}\n",
        name.sysname().to_string_lossy(),
        name.release().to_string_lossy(),
        name.machine().to_string_lossy()
    );
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let lines = |path: &str, wanted: &[&str]| -> String {
        let text = read(path);
        let kept = text.lines().filter(|line| wanted.iter().any(|prefix| line.starts_with(prefix)));
        kept.fold(String::new(), |all, line| all + line + "\n")
    };
    text.push_str(&lines("/etc/os-release", &["PRETTY_NAME=", "VERSION_ID="]));
    text.push_str(&lines("/proc/meminfo", &["MemTotal:", "MemAvailable:", "SwapTotal:", "SwapFree:"]));
    text.push_str(&format!("load {}", read("/proc/loadavg")));
    for pressure in ["cpu", "io", "memory"] {
        text.push_str(&lines(&format!("/proc/pressure/{pressure}"), &["some", "full"]));
    }
    if let Ok(room) = rustix::fs::statvfs(&facts.data) {
        let (free, all) = (room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize);
        let _ =
            writeln!(text, "disk {} free of {}, {} inodes free", output::size(free), output::size(all), room.f_favail);
    }
    let running = facts.daemon.as_ref().ok().and_then(Option::as_ref);
    if let Some(process) = running.and_then(|d| d.process.as_ref().ok()) {
        let of = |file: &str| format!("/proc/{}/{file}", process.id);
        text.push_str("the daemon\n");
        text.push_str(&lines(&of("status"), &["Vm", "Threads:", "Seccomp:", "NoNewPrivs:", "CapEff:"]));
        text.push_str(&read(&of("limits")));
    }
    text
}
