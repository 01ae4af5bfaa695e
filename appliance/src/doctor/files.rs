//! The data directory: complete, and closed to others.

use super::facts::File;
use super::{Facts, Look, need, no, yes};
use crate::serve::VKEY_FILE;

/// Without these a start is refused, and nothing makes them again.
const NEEDED: [&str; 6] = [VKEY_FILE, "node.json", "keys", "raft", "promise", "salts"];
/// Secret, itself or all that lies below.
const SECRET: [&str; 6] = ["admin.token", "keys", "tls", "session.key", "session.key.new", "salts"];
/// Left by an `init` that did not finish.
const PARTIAL: &str = "init.partial";

pub(super) fn complete(facts: &Facts) -> Look {
    let files = need(&facts.files)?;
    let has = |name: &str| files.iter().any(|f| f.path.as_os_str() == name);
    let shown = facts.data.display();
    if has(PARTIAL) {
        return no("an init did not finish", format!("samovar init --data {shown}"));
    }
    let missing: Vec<&str> = NEEDED.into_iter().filter(|name| !has(name)).collect();
    if missing.len() == NEEDED.len() {
        return no("it holds no ledger", format!("Name the right one with --data, or: samovar init --data {shown}"));
    }
    if !missing.is_empty() {
        return no(
            format!("{} is missing and cannot be made again", missing.join(", ")),
            "Stop the daemon and restore the directory from your copy",
        );
    }
    yes(format!("{} files in {shown}", files.iter().filter(|f| !f.directory).count()))
}

pub(super) fn rights(facts: &Facts) -> Look {
    let files = need(&facts.files)?;
    let config = facts.config_file.as_ref().filter(|file| {
        use std::os::unix::fs::MetadataExt as _;
        file.metadata().is_ok_and(|m| m.mode() & 0o002 != 0)
    });
    if let Some(file) = config {
        let shown = file.display();
        return no(format!("everybody may write {shown}"), format!("Look what stands there, then: chmod go-w {shown}"));
    }
    let is_secret = |file: &File| file.path.as_os_str().is_empty() || SECRET.iter().any(|s| file.path.starts_with(s));
    let open: Vec<&File> = files.iter().filter(|f| is_secret(f) && f.mode & 0o077 != 0).collect();
    let Some(first) = open.first() else {
        return yes("the directory and the secrets in it are closed to others");
    };
    let shown: Vec<String> = open.iter().take(3).map(|f| format!("{} ({:04o})", name(facts, f), f.mode)).collect();
    let more = if open.len() > 3 { format!(" and {} more", open.len() - 3) } else { String::new() };
    let path = name(facts, first);
    no(
        format!("others may use {}{more}", shown.join(", ")),
        format!("chmod go= {path}; if somebody read it, replace it: samovar rotate --help, samovar api-key --help"),
    )
}

fn name(facts: &Facts, file: &File) -> String {
    let path = if file.path.as_os_str().is_empty() { facts.data.clone() } else { facts.data.join(&file.path) };
    path.display().to_string()
}

pub(super) fn owner(facts: &Facts) -> Look {
    let files = need(&facts.files)?;
    let owner = files.first().map_or(0, |directory| directory.user);
    // A file system's own, which is root's wherever it is mounted.
    let others = files.iter().filter(|f| f.user != owner && !f.path.starts_with("lost+found"));
    match others.map(|f| name(facts, f)).next() {
        None => yes(format!("all belong to user {owner}")),
        Some(path) => no(
            format!("{path} does not belong to user {owner}, as the directory does"),
            format!("Somebody ran samovar as another user; chown -R {owner} {}", facts.data.display()),
        ),
    }
}
