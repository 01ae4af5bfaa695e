//! Certificates: whether clients go on trusting this node.

use super::facts::AS_ROOT;
use super::{Facts, Look, need, no, unseen, yes};
use crate::tls::SiteSource;
use crate::{output, secrets, tls};
use samovar_node::rt;
use serde_json::Value;

/// A certificate that ends sooner than this should be replaced now, in days.
const DAYS_MIN: u64 = 30;
const DAY_S: u64 = 86_400;
/// A start, and a daemon each minute, does it by itself as long as the CA's key is there.
const ANEW: &str =
    "With tls/ca.key there, a start makes it again: systemctl restart samovar; else restore tls/ from a backup";

/// The daemon orders by itself, so that this few days are left only when it fails. Some authorities give certificates of six
/// days, so that a fixed number of weeks would call each of them ill.
const ACME_DAYS_MIN: u64 = 1;
const ACME_ANEW: &str = "The journal says what the authority answered: journalctl -u samovar. The names must lead here and \
     samovar-acme.socket must listen; after a change: systemctl reload samovar, which tries at once";

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
    until(end_s, DAYS_MIN, next, "")
}

fn until(end_s: u64, days_min: u64, next: &str, more: &str) -> Look {
    let now_s = rt::now_ms() / 1000;
    let end = output::time(end_s.saturating_mul(1000));
    match end_s.checked_sub(now_s).map(|left| left / DAY_S) {
        None => no(format!("it ended at {end}"), next),
        Some(days) if days < days_min => no(format!("it ends in {days} days, at {end}"), next),
        Some(days) => yes(format!("until {end}, {days} days{more}")),
    }
}

/// Whether this user may not look.
fn is_denied(error: &anyhow::Error) -> bool {
    let denied = |e: &std::io::Error| e.kind() == std::io::ErrorKind::PermissionDenied;
    secrets::is_sealed(error) || error.chain().any(|cause| cause.downcast_ref().is_some_and(denied))
}

/// The one for the site's own names. What the daemon says of its last try comes first: it is the cause, an end that comes
/// near is the effect.
pub(super) fn site(facts: &Facts) -> Look {
    let source = &facts.configured()?.site;
    if *source == SiteSource::Local {
        return yes("none is configured: the ledger's CA certifies every name (tls.source)");
    }
    need(&facts.files)?;
    let (next, days_min) = match source {
        SiteSource::Acme(_) => (ACME_ANEW, ACME_DAYS_MIN),
        _ => ("Put a new certificate and key in place; they are read within a minute", DAYS_MIN),
    };
    let tried = match need(&facts.daemon)? {
        Some(daemon) => need(&daemon.status)?.pointer("/tls/site/error").and_then(Value::as_str).map(str::to_owned),
        None => None,
    };
    if let Some(trouble) = tried {
        return no(trouble, next);
    }
    match tls::site_certificate(&facts.secrets()?, source) {
        Err(error) if is_denied(&error) => unseen(format!("{error:#}"), AS_ROOT),
        Err(error) => no(format!("{error:#}"), next),
        Ok(None) => no("none has been issued yet: clients are shown the one of the ledger's CA", next),
        Ok(Some((names, end_s))) => until(end_s, days_min, next, &format!(", for {}", names.join(", "))),
    }
}

pub(super) fn names(facts: &Facts) -> Look {
    let subject = facts.subject()?;
    let refused = match tls::refused_names(&facts.secrets()?, &subject) {
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
    match tls::load(&facts.secrets()?) {
        Ok(_) => yes("it does"),
        Err(error) if is_denied(&error) => unseen(format!("{error:#}"), AS_ROOT),
        Err(error) => {
            no(format!("{error:#}"), "With the CA's key there, a start makes both again: systemctl restart samovar")
        }
    }
}
