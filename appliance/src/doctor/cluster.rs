//! The cluster, as the daemon of this node knows it.

use serde_json::Value;

use super::{Facts, Look, need, no, unseen, yes};
use crate::output;

/// So many blocks behind, and a node has not just not heard of the newest ones.
const TRAILS_MAX: u64 = 10_000;

fn number(of: &Value, name: &str) -> Option<u64> {
    of.get(name).and_then(Value::as_u64)
}

pub(super) fn quorum(facts: &Facts) -> Look {
    let cluster = need(&facts.running()?.cluster)?;
    let (Some(voters), Some(live)) = (number(cluster, "voters"), number(cluster, "live_voters")) else {
        return unseen("the daemon does not say how many voters there are", "samovar status");
    };
    match cluster.get("leader").and_then(Value::as_str) {
        _ if live * 2 <= voters => no(
            format!("{live} of {voters} voters are live, which is no majority: nothing can be written"),
            "Bring the others back: docs/operate/runbooks/quorum.md",
        ),
        None => no("no leader is known: nothing can be written", "docs/operate/runbooks/quorum.md"),
        Some(leader) => yes(format!("{live} of {voters} voters are live, {leader} leads")),
    }
}

pub(super) fn peers(facts: &Facts) -> Look {
    let cluster = need(&facts.running()?.cluster)?;
    let (Some(nodes), Some(own)) =
        (cluster.get("nodes").and_then(Value::as_array), cluster.get("answered_by").and_then(Value::as_str))
    else {
        return unseen("the daemon does not list the nodes", "samovar node list");
    };
    let name = |node: &Value| node.get("name").and_then(Value::as_str).unwrap_or("?").to_owned();
    let others: Vec<&Value> = nodes.iter().filter(|node| name(node) != own).collect();
    if others.is_empty() {
        return yes("this node has no peers");
    }
    let mut wrong = Vec::new();
    for node in &others {
        let live = node.get("live").and_then(Value::as_bool) == Some(true);
        match (live, number(node, "trails").unwrap_or(0)) {
            (false, _) => wrong.push(match number(node, "contact_ms") {
                Some(ms) => format!("{} was last heard of {} ago", name(node), output::span(ms)),
                None => format!("{} was never heard of", name(node)),
            }),
            (true, behind) if behind > TRAILS_MAX => wrong.push(format!("{} is {behind} blocks behind", name(node))),
            (true, _) => {}
        }
    }
    if wrong.is_empty() {
        return yes(format!("{} other node{}", others.len(), if others.len() == 1 { "" } else { "s" }));
    }
    no(wrong.join("; "), "Run samovar doctor on it; do the machines reach each other at port 8444? samovar node list")
}
