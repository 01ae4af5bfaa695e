//! The daemon: that it runs, as installed and as configured, and what it says of its ledger.

use std::os::unix::fs::MetadataExt as _;

use samovar_node::QUARANTINE;
use serde_json::Value;

use super::facts::AS_ROOT;
use super::{Facts, Look, Unseen, need, no, process, unseen, yes};

use crate::serve::{DESCRIPTORS_RESERVED, URL_FILE};

/// How far the newest checkpoint may be behind a ledger that is written to, in entries: some seconds of full load.
const CHECKPOINT_LAG_MAX: u64 = 200_000;
/// Age of the last whole scrub, in seconds, above which one was missed; it runs once a day.
const SCRUB_AGE_MAX_S: f64 = 3.0 * 86_400.0;
/// Share of the descriptors in use, in percent, above which connections will soon be refused.
const DESCRIPTORS_USED_MAX: u64 = 90;

const RESTART: &str = "systemctl restart samovar";

pub(super) fn runs(facts: &Facts) -> Look {
    let Some(daemon) = need(&facts.daemon)? else {
        return no(
            "nobody listens at its socket",
            "systemctl start samovar; why it ended: journalctl -u samovar -n 50",
        );
    };
    let status = match &daemon.status {
        Ok(status) => status,
        Err(Unseen { why, next }) => return no(why, next),
    };
    let word = |name: &str| status.get(name).and_then(Value::as_str).unwrap_or("?");
    match &daemon.ready {
        Ok(()) => yes(format!("{}, {}, takes reads and writes", word("name"), word("role"))),
        Err(why) => no(format!("it runs, but takes no writes: {why}"), "samovar status"),
    }
}

pub(super) fn lock(facts: &Facts) -> Look {
    need(&facts.files)?;
    let daemon = need(&facts.daemon)?;
    let Some(holder) = need(&facts.holder)? else {
        return match daemon {
            Some(_) => unseen("the daemon's lock is not in the kernel's list (another container?)", "cat /proc/locks"),
            None => yes("nobody holds its lock"),
        };
    };
    let own = daemon.as_ref().map(|d| need(&d.process).map(|p| p.id)).transpose()?;
    if own == Some(holder.process) {
        return yes("the daemon holds its lock");
    }
    let (id, name) = (holder.process, &holder.name);
    no(
        format!("process {id} ({name}) holds the lock and does not serve: no daemon can start"),
        format!("See what it is, and end it if it should not be there: ps -fp {id}"),
    )
}

pub(super) fn port(facts: &Facts) -> Look {
    let address = facts.configured()?.listen;
    let who = format!("ss -ltnp 'sport = :{}'", address.port());
    match need(&facts.daemon)? {
        Some(daemon) => match &daemon.https {
            Ok(url) => yes(format!("{url} answers under this node's CA")),
            Err(why) => no(format!("the daemon runs, but: {why}"), format!("See who listens there: {who}")),
        },
        None if process::is_taken(address)? => {
            no(format!("another program listens at {address}"), format!("Stop it, or change [listen] api: {who}"))
        }
        None => yes(format!("{address} is free")),
    }
}

pub(super) fn version(facts: &Facts) -> Look {
    let daemon = facts.running()?;
    let (own, status) = (env!("CARGO_PKG_VERSION"), need(&daemon.status)?);
    let running = status.get("version").and_then(Value::as_str).unwrap_or("?");
    if running != own {
        return no(format!("version {running} runs, this is {own}"), RESTART);
    }
    match need(&daemon.process)?.binary_gone {
        Some(true) => no("the file of its binary was replaced or removed since it started", RESTART),
        Some(false) => yes(format!("{own} runs")),
        None => unseen(format!("{own} runs, but which file it is cannot be seen"), AS_ROOT),
    }
}

pub(super) fn configuration(facts: &Facts) -> Look {
    let file = facts.config_file.as_ref().map(|f| f.display().to_string());
    match (&facts.config, file) {
        (Ok(_), Some(file)) => yes(format!("{file} is good")),
        (Ok(_), None) => yes("there is none, so the defaults hold"),
        (Err(place), file) => no(
            format!("there is a mistake at {place}; a daemon would not start with it"),
            format!("It is explained by: samovar config check {}", file.unwrap_or_default()),
        ),
    }
}

pub(super) fn in_force(facts: &Facts) -> Look {
    let config = facts.configured()?;
    let daemon = facts.running()?;
    let mut differ = Vec::new();
    if daemon.number("reserve_bytes")? != config.reserve_bytes {
        differ.push("store.reserve");
    }
    let url = std::fs::read_to_string(facts.data.join(URL_FILE)).unwrap_or_default();
    let listens = url.trim().rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
    if config.listen.port() != 0 && listens.is_some_and(|port| port != config.listen.port()) {
        differ.push("listen.api");
    }
    if !differ.is_empty() {
        return no(format!("the daemon runs with another value of {}", differ.join(", ")), RESTART);
    }
    let started_s = (daemon.number("now_ms")? / 1000).saturating_sub(daemon.number("uptime_s")?);
    let changed_s = facts.config_file.as_ref().and_then(|file| u64::try_from(file.metadata().ok()?.mtime()).ok());
    if changed_s.is_some_and(|changed| changed > started_s) {
        return unseen(
            "the file changed after the daemon started; whether it was read again is not known",
            "systemctl reload samovar; its status line says whether a restart is needed too: systemctl status samovar",
        );
    }
    yes("nothing changed since the daemon started")
}

pub(super) fn ledger(facts: &Facts) -> Look {
    let status = need(&facts.running()?.status)?;
    let Some(errors) = status.get("errors").and_then(Value::as_array) else {
        return unseen("its status names no errors, not even none", RESTART);
    };
    let errors: Vec<&str> = errors.iter().filter_map(Value::as_str).collect();
    if errors.is_empty() {
        let height = status.get("height").and_then(Value::as_u64).unwrap_or(0);
        return yes(format!("block {height}, no errors"));
    }
    no(errors.join("; "), "Each error says what to do; docs/operate/runbooks say more: samovar status")
}

pub(super) fn checkpoint(facts: &Facts) -> Look {
    let daemon = facts.running()?;
    let behind = daemon.number("size")?.saturating_sub(daemon.number("checkpoint_size")?);
    if behind > CHECKPOINT_LAG_MAX {
        return no(
            format!("{behind} entries wait for one"),
            "docs/operate/runbooks/checkpoint.md; journalctl -u samovar",
        );
    }
    yes(if behind == 0 { "it covers every entry".into() } else { format!("{behind} newest entries wait for the next") })
}

pub(super) fn copies(facts: &Facts) -> Look {
    let files = need(&facts.files)?;
    let aside =
        files.iter().map(|f| f.path.to_string_lossy()).find(|p| p.starts_with("store.damaged-") && !p.contains('/'));
    if files.iter().any(|file| file.path.as_os_str() == QUARANTINE) {
        let path = facts.data.join(QUARANTINE);
        return no(
            "this node's data was damaged or wrong, and it was built anew from its peers",
            format!(
                "Read why.json there, look after the disk (journalctl -k, smartctl -a), then: rm -r {}",
                path.display()
            ),
        );
    }
    if let Some(name) = aside {
        let path = facts.data.join(&*name);
        return no(
            format!("a damaged store was set aside as {name}; the ledger was rebuilt from the archive"),
            format!("Look after the disk (journalctl -k, smartctl -a), then: rm -r {}", path.display()),
        );
    }
    let daemon = facts.running()?;
    let damaged = daemon.figure("samovar_archive_damaged_segments_total")?;
    let mended = daemon.figure("samovar_archive_repaired_segments_total")?;
    if damaged > mended {
        return no(
            format!("{} segments of the archive are damaged and could not be mended", damaged - mended),
            "Copy the data directory away before anything else, then read docs/operate/store.md",
        );
    }
    let passed_s = daemon.figure("samovar_archive_scrub_passed_seconds")?;
    let now_s = daemon.figure("samovar_host_time_seconds")?;
    match (passed_s > 0.0, now_s - passed_s > SCRUB_AGE_MAX_S) {
        (true, true) => no("the archive was not read again for three days", "journalctl -u samovar | grep scrub"),
        (true, false) => yes("both are there, and the archive was read again as a whole lately"),
        (false, _) => yes("both are there; the archive was not read again as a whole since the start"),
    }
}

pub(super) fn connections(facts: &Facts) -> Look {
    let connections = facts.configured()?.limits.connections_max as u64;
    let Some((allowed, open)) = need(&facts.running()?.process)?.files else {
        return unseen("the daemon's open files cannot be counted", AS_ROOT);
    };
    let wanted = connections + DESCRIPTORS_RESERVED;
    if allowed < wanted {
        return no(
            format!("it may open {allowed} files and needs {wanted} for {connections} connections"),
            "Raise LimitNOFILE= (systemctl edit samovar) and restart it, or lower limits.connections",
        );
    }
    if open.saturating_mul(100) > wanted.saturating_mul(DESCRIPTORS_USED_MAX) {
        return no(
            format!("{open} of {wanted} descriptors are in use"),
            "Raise limits.connections, or see who: ss -tn",
        );
    }
    yes(format!("{open} open files, {allowed} allowed"))
}
