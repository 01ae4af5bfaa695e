//! The secret files: sealed, all of them, and under a key that the next start has.

use std::os::unix::fs::MetadataExt as _;

use super::facts::AS_ROOT;
use super::{Facts, Look, Unseen, need, no, unseen, yes};
use crate::secrets::{self, CREDENTIAL, KekFiles};

const RESEAL: &str = "systemctl restart samovar, which brings all of them under the key-encryption key in force";

pub(super) fn sealed(facts: &Facts) -> Look {
    need(&facts.files)?;
    let files = secrets::keks_in(&facts.data)
        .map_err(|error| Unseen { why: format!("the secret files cannot be read: {error}"), next: AS_ROOT.into() })?;
    let given = facts.keks()?;
    if let Some(open) = open_to_others(&given) {
        return open;
    }
    let mut keks: Vec<&str> = files.iter().filter_map(|(_, kek)| kek.as_deref()).collect();
    keks.sort_unstable();
    keks.dedup();
    let in_the_clear: Vec<&str> = files.iter().filter(|(_, kek)| kek.is_none()).map(|(name, _)| *name).collect();
    let (kek, clear) = match (keks.as_slice(), in_the_clear.as_slice()) {
        ([], _) if given.current.is_none() => {
            return yes(
                "there is no key-encryption key: the secret files are protected by their mode alone (docs/operate/sealing.md)",
            );
        }
        ([], [first, ..]) => {
            return no(format!("{first} lies in the clear, and there is a key-encryption key"), RESEAL);
        }
        ([], []) => return yes("there is no secret file"),
        ([one], clear) => (*one, clear),
        ([one, another, ..], _) => {
            return no(format!("some are sealed under the key-encryption key {one}, others under {another}"), TWO);
        }
    };
    if let Some(first) = clear.first() {
        return no(format!("{first} lies in the clear, others are sealed"), RESEAL);
    }
    match given.read(&facts.data) {
        Err(error) => no(format!("{error:#}"), MISSING),
        Ok(seal) => match seal.kek_id() {
            Some(id) if id == kek => yes(format!("{} files, under the key-encryption key {kek}", files.len())),
            Some(id) => {
                no(format!("they are sealed under the key-encryption key {kek}, and {id} is in its place"), MISSING)
            }
            None => unseen(
                format!("they are sealed under the key-encryption key {kek}, which cannot be seen from here"),
                format!("Look as root while the daemon runs, if the key comes by the credential {CREDENTIAL}"),
            ),
        },
    }
}

const TWO: &str = "Give the daemon both, node.kek and node.kek_old or the credentials of these names, and restart it";
const MISSING: &str =
    "Put the right key-encryption key back before the daemon is stopped: the next start is refused without it";

/// A key that others may read is none.
fn open_to_others(given: &KekFiles) -> Option<Look> {
    let path = given.current.iter().chain(&given.old).find(|p| p.metadata().is_ok_and(|m| m.mode() & 0o027 != 0))?;
    let shown = path.display();
    Some(no(
        format!("others may use the key-encryption key {shown}"),
        format!("chmod u=rw,g=r,o= {shown}, and make a new one"),
    ))
}
