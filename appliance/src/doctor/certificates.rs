//! Certificates: whether clients go on trusting this node.

use super::facts::AS_ROOT;
use super::{Facts, Look, need, no, unseen, yes};
use crate::{output, tls};
use samovar_node::rt;

/// A certificate that ends sooner than this should be replaced now, in days.
const DAYS_MIN: u64 = 30;
const DAY_S: u64 = 86_400;
/// A start, and a daemon each minute, does it by itself as long as the CA's key is there.
const ANEW: &str =
    "With tls/ca.key there, a start makes it again: systemctl restart samovar; else restore tls/ from a backup";

pub(super) fn node(facts: &Facts) -> Look {
    ends(facts, "node", ANEW)
}

pub(super) fn authority(facts: &Facts) -> Look {
    ends(facts, "ca", ANEW)
}

fn ends(facts: &Facts, which: &str, next: &str) -> Look {
    need(&facts.files)?;
    let Some((_, end_s)) = tls::expiries(&facts.data).find(|(name, _)| *name == which) else {
        let path = tls::certificates(&facts.data).into_iter().find(|(name, _)| *name == which).map(|(_, path)| path);
        let shown = path.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
        return match path.map(std::fs::read) {
            Some(Err(e)) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                unseen(format!("{shown}: {e}"), AS_ROOT)
            }
            _ => no(format!("{shown} is missing, or holds no certificate"), next),
        };
    };
    let now_s = rt::now_ms() / 1000;
    let end = output::time(end_s.saturating_mul(1000));
    match end_s.checked_sub(now_s).map(|left| left / DAY_S) {
        None => no(format!("it ended at {end}"), next),
        Some(days) if days < DAYS_MIN => no(format!("it ends in {days} days, at {end}"), next),
        Some(days) => yes(format!("until {end}, {days} days")),
    }
}

pub(super) fn names(facts: &Facts) -> Look {
    let subject = facts.subject()?;
    let refused = match tls::refused_names(&facts.data, &subject) {
        Ok(refused) => refused,
        Err(error) => return unseen(format!("{error:#}"), AS_ROOT),
    };
    let Some((name, why)) = refused.first() else {
        return yes("clients that trust the CA accept it under each");
    };
    let more = if refused.len() > 1 { format!(", and {} more names", refused.len() - 1) } else { String::new() };
    no(
        format!("clients refuse it under {name}: {why}{more}"),
        "samovar rotate node; if the CA does not permit the name: samovar rotate ca",
    )
}

pub(super) fn key(facts: &Facts) -> Look {
    need(&facts.files)?;
    match tls::load(&facts.data) {
        Ok(_) => yes("it does"),
        Err(error) => {
            let denied = |e: &std::io::Error| e.kind() == std::io::ErrorKind::PermissionDenied;
            if error.chain().any(|cause| cause.downcast_ref().is_some_and(denied)) {
                return unseen(format!("{error:#}"), AS_ROOT);
            }
            no(format!("{error:#}"), "With the CA's key there, a start makes both again: systemctl restart samovar")
        }
    }
}
