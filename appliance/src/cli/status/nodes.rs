//! The table of nodes, which `status` and `node list` share: one line a node, and how old what it says is.

use serde_json::Value;

use super::super::keys::figure;
use super::number;
use crate::output::{self, Table, printable};

/// Renders the answer of `/v1/cluster`, which was asked for `age_ms` ago.
pub(super) fn render(cluster: &Value, age_ms: u64) -> String {
    let header = ["NODE", "ROLE", "VOTER", "LIVE", "HEIGHT", "TRAILS", "CONTACT", "VERSION", "SLOT", "DISK", "ERRORS"];
    let mut table = Table::new(&header);
    let nodes: Vec<&Value> = cluster.get("nodes").and_then(Value::as_array).into_iter().flatten().collect();
    nodes.iter().for_each(|node| table.row(row(node, age_ms)));
    let mut text = table.render();
    let attention = cluster.get("attention").and_then(Value::as_array).into_iter().flatten();
    for line in attention.filter_map(Value::as_str) {
        text.push_str(&format!("Attention: {}\n", printable(line)));
    }
    text
}

/// The age of the oldest figure of a node that is live, in milliseconds; those of the others say it themselves.
pub(super) fn oldest(cluster: &Value, age_ms: u64) -> u64 {
    let nodes = cluster.get("nodes").and_then(Value::as_array).into_iter().flatten();
    let live = nodes.filter(|node| flag(node, "live") == Some(true));
    age_ms.saturating_add(live.filter_map(|node| number(node, "age_ms")).max().unwrap_or(0))
}

fn flag(node: &Value, name: &str) -> Option<bool> {
    node.get(name).and_then(Value::as_bool)
}

fn row(node: &Value, age_ms: u64) -> Vec<String> {
    let yes_or_no = |name: &str| flag(node, name).map_or("", |yes| if yes { "yes" } else { "no" }).to_owned();
    let errors = node.get("errors").and_then(Value::as_array).map_or(0, Vec::len);
    let role = match figure(node, "state").as_str() {
        "member" => figure(node, "role"),
        state => state.to_owned(),
    };
    vec![
        figure(node, "name"),
        role,
        yes_or_no("voter"),
        yes_or_no("live"),
        figure(node, "height"),
        figure(node, "trails"),
        number(node, "contact_ms").map_or(String::new(), |ms| output::span(ms.saturating_add(age_ms))),
        figure(node, "version"),
        figure(node, "slot"),
        disk(node).map_or(String::new(), |percent| format!("{percent}%")),
        if errors == 0 { String::new() } else { errors.to_string() },
    ]
}

/// Share of the disk in use, in percent.
fn disk(node: &Value) -> Option<u64> {
    let (free, all) = (number(node, "free_bytes")?, number(node, "disk_bytes").filter(|all| *all > 0)?);
    u64::try_from(u128::from(all.saturating_sub(free)) * 100 / u128::from(all)).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_line_a_node() {
        let cluster = json!({
            "attention": ["2 of 3 voters, can lose 0 more", "box-03 is not heard of:\u{1b}[2J"],
            "nodes": [
                { "name": "box-01", "state": "member", "role": "leader", "voter": true, "live": true, "height": 18342,
                  "trails": 0, "contact_ms": 0, "age_ms": 0, "version": "0.4.2", "slot": null, "free_bytes": 61,
                  "disk_bytes": 100, "errors": [] },
                { "name": "box-03", "state": "member", "role": "follower", "voter": true, "live": false,
                  "height": 18101, "trails": 241, "contact_ms": 372_000, "age_ms": 372_100, "version": "0.4.1",
                  "slot": null, "free_bytes": 3, "disk_bytes": 100, "errors": ["no room"] },
                { "name": "box-04", "state": "joining", "voter": false, "live": false, "errors": [] },
            ],
        });
        assert_eq!(
            render(&cluster, 40),
            "NODE    ROLE      VOTER  LIVE  HEIGHT  TRAILS  CONTACT  VERSION  SLOT  DISK  ERRORS\n\
             box-01  leader    yes    yes   18342   0       40ms     0.4.2    -     39%   -\n\
             box-03  follower  yes    no    18101   241     6m12s    0.4.1    -     97%   1\n\
             box-04  joining   no     no    -       -       -        -        -     -     -\n\
             Attention: 2 of 3 voters, can lose 0 more\n\
             Attention: box-03 is not heard of:\u{fffd}[2J\n"
        );
        assert_eq!(oldest(&cluster, 40), 40, "a node that is not live says by itself how old its figures are");
    }
}
