//! Query parameters, by the names that the table of routes uses.

use super::super::profiles::SECONDS_MAX;
use super::super::{Parameter, Takes};

pub(super) const LIMIT: Parameter =
    Parameter { name: "limit", takes: Takes::Number(1, 1000), doc: "Most rows, 1 to 1000; default 100." };
pub(super) const CONSISTENCY: Parameter = Parameter {
    name: "consistency",
    takes: Takes::OneOf(&["linearizable", "stale"]),
    doc: "`linearizable` (default): at least everything acknowledged before; `stale`: what this node has.",
};
pub(super) const KEY: Parameter = Parameter {
    name: "key",
    takes: Takes::Text,
    doc: "Who is limited to prefixes names a key within them whose value the blob is.",
};
pub(super) const AT: Parameter =
    Parameter { name: "at", takes: Takes::Number(0, u64::MAX), doc: "Height of the block as of which to read." };
pub(super) const PREFIX: Parameter =
    Parameter { name: "prefix", takes: Takes::Text, doc: "Only keys that begin with this." };
pub(super) const AFTER_KEY: Parameter =
    Parameter { name: "after", takes: Takes::Text, doc: "`next` of the page before." };
pub(super) const AFTER_BLOCK: Parameter = Parameter {
    name: "after",
    takes: Takes::Number(0, u64::MAX),
    doc: "Height of a block; what comes after it is shown.",
};
pub(super) const BEFORE: Parameter =
    Parameter { name: "before", takes: Takes::Number(0, u64::MAX), doc: "`next` of the page before." };
pub(super) const WAIT: Parameter = Parameter {
    name: "wait",
    takes: Takes::OneOf(&["quorum"]),
    doc: "Wait for a checkpoint that meets the policy and covers the entry.",
};
pub(super) const FOR: Parameter =
    Parameter { name: "for", takes: Takes::OneOf(&["write"]), doc: "Also ask whether a write would find room." };
pub(super) const OLD: Parameter = Parameter {
    name: "old",
    takes: Takes::OneOf(&["honoured", "refused"]),
    doc: "What becomes of sessions: `honoured` (default), until they run out; `refused`, all end at once.",
};
pub(super) const ROLL_OVER: Parameter = Parameter {
    name: "roll_over",
    takes: Takes::OneOf(&["begin", "finish"]),
    doc: "`begin` (default): a new CA beside the old one; `finish`: the old one counts no more.",
};
pub(super) const GRACE: Parameter = Parameter {
    name: "grace",
    takes: Takes::Number(0, 30 * 86_400),
    doc: "Seconds for which the old one still counts, at most 30 days; default 0.",
};
pub(super) const SECONDS: Parameter = Parameter {
    name: "seconds",
    takes: Takes::Number(1, SECONDS_MAX),
    doc: "How long, 1 to 60, less if requests may not take so long; default 10.",
};
