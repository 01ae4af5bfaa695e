//! The installed unit beside the one that was shipped: what a drop-in may change, and what it must not weaken.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Fact, Facts, Look, need, no, unseen, yes};
use crate::serve::DESCRIPTORS_RESERVED;

const NAME: &str = "samovar.service";
/// The unit as it is shipped.
const SHIPPED: &str = include_str!("../../../systemd/samovar.service");
/// Where units lie below the system's root; the first one wins (systemd.unit(5)).
const PLACES: [&str; 5] = [
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];
/// What a site may set as it likes.
const FREE: [&str; 22] = [
    "Description",
    "Documentation",
    "Wants",
    "After",
    "ConditionPathExists",
    "ExecStart",
    "User",
    "Group",
    "StateDirectory",
    "ConfigurationDirectory",
    "RestartSec",
    "RestartSteps",
    "RestartMaxDelaySec",
    "TimeoutStartSec",
    "TimeoutStopSec",
    "TimeoutAbortSec",
    "MemoryHigh",
    "MemoryMax",
    "TasksMax",
    "OOMScoreAdjust",
    "OOMPolicy",
    "WantedBy",
];
/// Keys whose lines add up.
const LISTS: [&str; 3] = ["SystemCallFilter", "RestrictAddressFamilies", "CapabilityBoundingSet"];

/// A unit with its drop-ins.
pub(crate) struct Unit {
    /// By key: the values in force, each with its file.
    settings: BTreeMap<String, Vec<(String, String)>>,
}

impl Unit {
    /// The installed unit, if there is one.
    pub(super) fn read(root: &Path) -> Fact<Option<Self>> {
        let Some(main) = PLACES.iter().map(|place| root.join(place).join(NAME)).find(|path| path.exists()) else {
            return Ok(None);
        };
        let mut unit = Self { settings: BTreeMap::new() };
        for path in std::iter::once(main).chain(drop_ins(root)) {
            let shown = path.display().to_string();
            match fs::read_to_string(&path) {
                Ok(text) => unit.add(&shown, &text),
                Err(e) => return unseen(format!("{shown}: {e}"), super::facts::AS_ROOT),
            }
        }
        Ok(Some(unit))
    }

    fn shipped() -> Self {
        let mut unit = Self { settings: BTreeMap::new() };
        unit.add("the shipped unit", SHIPPED);
        unit
    }

    fn add(&mut self, file: &str, text: &str) {
        for line in text.replace("\\\n", " ").lines().map(str::trim).filter(|l| !l.starts_with(['#', ';'])) {
            let Some((key, value)) = line.split_once('=') else { continue };
            let (key, value) = (key.trim(), value.trim());
            let values = self.settings.entry(key.to_owned()).or_default();
            if !LISTS.contains(&key) || value.is_empty() {
                values.clear();
            }
            values.push((value.to_owned(), file.to_owned()));
        }
    }

    /// What is in force, and the file that said so last.
    fn value(&self, key: &str) -> (String, &str) {
        let values = self.settings.get(key).map_or(&[][..], Vec::as_slice);
        let words: Vec<&str> = values.iter().map(|(value, _)| value.as_str()).filter(|v| !v.is_empty()).collect();
        (words.join(" "), values.last().map_or("no file", |(_, file)| file.as_str()))
    }

    /// `MemoryMax=` in bytes, and the file that sets it. `total`: the machine's memory, of which it may be a share.
    pub(super) fn memory_max(&self, total: u64) -> Option<(u64, &str)> {
        let (text, file) = self.value("MemoryMax");
        Some((memory(&text, total)?, file))
    }

    /// The settings that the shipped unit has too, as they are in force. Others (an environment, say) may hold secrets, and
    /// so may a command line.
    pub(crate) fn known(&self) -> Vec<(String, String)> {
        let shipped = Self::shipped();
        let keys = self.settings.keys().filter(|key| shipped.settings.contains_key(*key) && *key != "ExecStart");
        keys.map(|key| (key.clone(), self.value(key).0)).collect()
    }

    /// What is weaker than it was shipped, in words.
    fn weakened(&self, files_wanted: u64) -> Vec<String> {
        let shipped = Self::shipped();
        let mut found = Vec::new();
        for key in shipped.settings.keys().filter(|key| !FREE.contains(&key.as_str())) {
            let ((want, _), (got, file)) = (shipped.value(key), self.value(key));
            let good = match key.as_str() {
                "Type" => ["notify", "notify-reload"].contains(&got.as_str()),
                "WatchdogSec" => !["", "0", "0s", "infinity"].contains(&got.as_str()),
                "LimitNOFILE" => {
                    let soft = got.split(':').next().unwrap_or("");
                    soft == "infinity" || soft.parse().is_ok_and(|n: u64| n >= files_wanted)
                }
                _ => plain(&got) == plain(&want),
            };
            if !good {
                found.push(format!("{key}={got} in {file} (shipped: {want})"));
            }
        }
        let (user, file) = self.value("User");
        if ["", "root", "0"].contains(&user.as_str()) {
            found.push(format!("User={user} in {file}"));
        }
        found
    }
}

/// Drop-ins in the order in which they are read: by name, and of one name the first place's.
fn drop_ins(root: &Path) -> Vec<PathBuf> {
    let mut found = BTreeMap::new();
    for place in PLACES {
        let directory = root.join(place).join(format!("{NAME}.d"));
        for path in fs::read_dir(directory).into_iter().flatten().filter_map(|e| Some(e.ok()?.path())) {
            if path.extension().is_some_and(|e| e == "conf") {
                found.entry(path.file_name().map(ToOwned::to_owned)).or_insert(path);
            }
        }
    }
    found.into_values().collect()
}

/// One way to write each boolean.
fn plain(value: &str) -> &str {
    match value {
        "true" | "on" | "1" => "yes",
        "false" | "off" | "no" => "0",
        other => other,
    }
}

/// `64M`, `85%`, `infinity` (systemd.resource-control(5)); nothing without a limit.
fn memory(text: &str, total: u64) -> Option<u64> {
    if let Some(percent) = text.strip_suffix('%') {
        return Some(total / 100 * percent.parse::<u64>().ok()?);
    }
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

pub(super) fn check(facts: &Facts) -> Look {
    let Some(unit) = need(&facts.unit)? else {
        return unseen(format!("no {NAME} is installed; nothing starts the daemon again"), "Install the package");
    };
    let wanted = facts.configured()?.limits.connections_max as u64 + DESCRIPTORS_RESERVED;
    let weakened = unit.weakened(wanted);
    if weakened.is_empty() {
        return yes("it is, drop-ins included");
    }
    no(weakened.join("; "), "Take that out of the file, then: systemctl daemon-reload && systemctl restart samovar")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(drop_in: &str) -> Unit {
        let mut unit = Unit::shipped();
        unit.add("x.conf", drop_in);
        unit
    }

    #[test]
    fn a_drop_in_is_judged_by_what_it_does() {
        for good in [
            "",
            "MemoryMax=2G",
            "WatchdogSec=30s",
            "NoNewPrivileges=true",
            "LimitNOFILE=1048576",
            "ExecStart=\nExecStart=/x",
        ] {
            assert_eq!(with(good).weakened(2560), Vec::<String>::new(), "{good:?} weakens nothing");
        }
        for bad in [
            "Type=simple",
            "WatchdogSec=0",
            "LimitNOFILE=1024",
            "LimitCORE=infinity",
            "User=root",
            "Restart=no",
            "UMask=0022",
            "SystemCallFilter=",
            "SystemCallFilter=@mount",
            "ProtectSystem=no",
            "NoNewPrivileges=false",
            "MemorySwapMax=1G",
        ] {
            assert_eq!(with(bad).weakened(2560).len(), 1, "{bad:?} must be found, and nothing else");
        }
    }

    #[test]
    fn memory_is_read_as_systemd_reads_it() {
        let total = 1 << 30;
        let texts = [
            ("64M", Some(64 << 20)),
            ("50%", Some(total / 100 * 50)),
            ("123", Some(123)),
            ("infinity", None),
            ("", None),
        ];
        for (text, bytes) in texts {
            assert_eq!(memory(text, total), bytes, "MemoryMax={text}");
        }
        assert_eq!(
            super::super::machine::memory_bytes("MemTotal").map(|n| n > 0),
            Some(true),
            "/proc/meminfo is there"
        );
    }
}
