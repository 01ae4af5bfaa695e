//! The four questions before any work on a node: may it be lost, rebooted, rolled back, restored?

use std::process::Command;

use serde_json::Value;

use super::{Facts, Finding, Look, Looker, certificates, daemon, files, machine, need, no, unseen, yes};

/// What must not be wrong for a start to succeed.
const START_NEEDS: [(&str, Looker); 7] = [
    ("configuration", daemon::configuration),
    ("directory", files::complete),
    ("owner", files::owner),
    ("disk", machine::disk),
    ("file-system", machine::file_system),
    ("tls-key", certificates::key),
    ("lock", daemon::lock),
];
/// The target that starts the unit at boot, below the system's root.
const ENABLED: &str = "etc/systemd/system/multi-user.target.wants/samovar.service";
/// Says that image slots exist, below the system's root.
const SLOTS: &str = "etc/rauc/system.conf";

pub(super) fn lose_node(facts: &Facts) -> Look {
    let cluster = need(&facts.running()?.cluster)?;
    let number = |name: &str| cluster.get(name).and_then(Value::as_u64).unwrap_or(0);
    let (voters, live, can_lose) = (number("voters"), number("live_voters"), number("can_lose"));
    if can_lose > 0 {
        return yes(format!("{live} of {voters} voters are live: {can_lose} more may fail"));
    }
    if voters > 1 {
        return no(format!("{live} of {voters} voters are live: none may fail"), "samovar node list");
    }
    no(
        "this ledger has 1 voter",
        "Nothing to mend on one node. It keeps two copies on its own disk; against the loss of the disk copy the stopped \
         data directory elsewhere, or let others join: docs/operate/cluster.md",
    )
}

pub(super) fn reboot(facts: &Facts) -> Look {
    for (name, look) in START_NEEDS {
        if let Ok(Finding::No { why, next }) = look(facts) {
            return no(format!("it might not start again: {name}: {why}"), next);
        }
    }
    if need(&facts.unit)?.is_none() {
        return unseen(
            "no samovar.service is installed, so nothing here says that the daemon starts at boot",
            "Install the package, or start it by hand after the reboot: samovar serve",
        );
    }
    if facts.root.join(ENABLED).symlink_metadata().is_err() {
        return no("samovar.service is not enabled: it would stay down", "systemctl enable samovar");
    }
    for (_, look) in START_NEEDS {
        look(facts)?;
    }
    yes("what a start needs is there, and the unit is enabled; meanwhile nobody serves")
}

pub(super) fn roll_back(facts: &Facts) -> Look {
    let package = "Without image slots: install the package of the version before, after reading its release notes";
    if !facts.root.join(SLOTS).exists() {
        return unseen("there are no image slots here (RAUC is not set up)", package);
    }
    if facts.root != std::path::Path::new("/") {
        return unseen("slots can be asked on the running system only", "rauc status");
    }
    let Ok(said) = Command::new("rauc").args(["status", "--output-format=json"]).output() else {
        return unseen("rauc cannot be run", "rauc status");
    };
    match serde_json::from_slice(&said.stdout).ok().as_ref().and_then(other_slot) {
        Some((name, true)) => yes(format!("slot {name} is marked good")),
        Some((name, false)) => no(format!("the other slot, {name}, is not marked good"), "rauc status"),
        None => unseen("rauc names no other slot", "rauc status"),
    }
}

/// The slot that is not booted and can be, and whether it is marked good (`rauc status --output-format=json`).
fn other_slot(status: &Value) -> Option<(String, bool)> {
    let slots = status.get("slots")?.as_array()?.iter().filter_map(Value::as_object).flatten();
    slots
        .filter(|(_, slot)| slot["bootname"].is_string() && slot["state"] == "inactive")
        .map(|(name, slot)| (name.clone(), slot["boot_status"] == "good"))
        .max_by_key(|(_, good)| *good)
}

pub(super) fn restore(_: &Facts) -> Look {
    unseen(
        "this version makes no backups, so there is none to try",
        "If you copy the stopped data directory, start a copy on another machine to know: samovar serve --data COPY",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_slot_is_found_in_what_rauc_says() {
        let said = r#"{"compatible":"samovar","booted":"A","boot_primary":"rootfs.0","slots":[
            {"rootfs.1":{"class":"rootfs","device":"/dev/vda3","type":"ext4","bootname":"B","state":"inactive",
             "boot_status":"STATUS"}},
            {"rootfs.0":{"class":"rootfs","bootname":"A","state":"booted","boot_status":"good"}},
            {"data.0":{"class":"data","bootname":null,"state":"inactive","boot_status":null}}]}"#;
        for (status, good) in [("good", true), ("bad", false)] {
            let value = serde_json::from_str(&said.replace("STATUS", status)).expect("JSON");
            assert_eq!(other_slot(&value), Some(("rootfs.1".to_owned(), good)), "a slot that is {status}");
        }
        assert_eq!(other_slot(&serde_json::json!({})), None);
    }
}
