//! `samovar status`: one table that answers whether the node can be relied on, and how old each figure is.

use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use tokio::time::Instant;

use super::keys::figure;
use crate::client::{Client, Error, Request, Target};
use crate::output::{self, Format, printable};

mod nodes;

/// How long a node that does not answer is asked again.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub(super) struct Status {
    #[command(flatten)]
    target: Target,
}

pub(super) async fn run(status: &Status, format: Format) -> anyhow::Result<()> {
    let client = Client::open(&status.target)?;
    let asked = Instant::now();
    let mut document = fetch(&client).await?;
    let cluster = fetch_cluster(&client).await?;
    let age_ms = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
    match format {
        Format::Json => {
            document["cluster"] = cluster;
            output::json(&document)?;
        }
        Format::Text => output::text(&render(&document, &cluster, age_ms))?,
    }
    Ok(())
}

async fn fetch(client: &Client) -> Result<Value, Error> {
    client.send(Request::get("/v1/status").patience(PATIENCE)).await?.json()
}

async fn fetch_cluster(client: &Client) -> Result<Value, Error> {
    client.send(Request::get("/v1/cluster").patience(PATIENCE)).await?.json()
}

/// Height of the newest block of a node.
pub(super) async fn height(client: &Client) -> anyhow::Result<u64> {
    number(&fetch(client).await?, "height").context("the node's status names no height")
}

/// Entries in the chain log, as the node's status says; `None` if this principal may not know.
pub(crate) async fn log_size(client: &Client) -> Option<u64> {
    number(&fetch(client).await.ok()?, "size")
}

fn number(status: &Value, name: &str) -> Option<u64> {
    status.get(name).and_then(Value::as_u64)
}

/// The table, what needs attention, and the figures of the node that was asked, `age_ms` ago.
fn render(status: &Value, cluster: &Value, age_ms: u64) -> String {
    let mut text = nodes::render(cluster, age_ms);
    text.push_str(&figures(status));
    text.push_str(&aged(cluster, age_ms));
    text
}

fn aged(cluster: &Value, age_ms: u64) -> String {
    format!("Figures of live nodes are at most {} old.\n", output::span(nodes::oldest(cluster, age_ms)))
}

/// `samovar node list`: the table alone.
pub(super) async fn list(target: &Target, format: Format) -> anyhow::Result<()> {
    let client = Client::open(target)?;
    let asked = Instant::now();
    let cluster = fetch_cluster(&client).await?;
    let age_ms = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
    match format {
        Format::Json => output::json(&cluster)?,
        Format::Text => output::text(&(nodes::render(&cluster, age_ms) + &aged(&cluster, age_ms)))?,
    }
    Ok(())
}

fn figures(status: &Value) -> String {
    let shown = |name: &str| number(status, name).map_or("?".into(), |n| n.to_string());
    let block_age = match (number(status, "now_ms"), number(status, "block_time_ms")) {
        (Some(now), Some(block)) if block > 0 => format!(", made {} ago", output::span(now.saturating_sub(block))),
        _ => String::new(),
    };
    let size = |name: &str| number(status, name).map_or("?".into(), output::size);
    let mut text = format!(
        "Block {}{block_age}: {} entries, {} keys, {} in the store, up for {}.\n",
        shown("height"),
        shown("size"),
        shown("keys"),
        size("store_bytes"),
        number(status, "uptime_s").map_or("?".into(), |s| output::span(s.saturating_mul(1000))),
    );
    let clock = |name: &str| status.get("clock").and_then(|c| c.get(name)).and_then(Value::as_bool);
    match (clock("doubted"), clock("synchronised")) {
        (Some(true), _) => text.push_str("The clock is not believed: blocks keep the last sure time.\n"),
        (_, Some(true)) => {}
        (_, Some(false)) => text.push_str("The clock is believed, though nothing synchronises it.\n"),
        (_, None) => {}
    }
    if status.get("tls").and_then(|t| t.get("rolling_over")).and_then(Value::as_bool) == Some(true) {
        text.push_str("Two CAs count: give clients the new ca.pem, then run: samovar rotate ca --finish\n");
    }
    text.push_str(&site(status));
    if let Some(level) = status.get("log_level").filter(|level| level.get("until_ms").is_some_and(Value::is_u64)) {
        text.push_str(&format!("{}\n", super::log_level::render(level)));
    }
    let (entries, covered) = (number(status, "size").unwrap_or(0), number(status, "checkpoint_size").unwrap_or(0));
    if covered < entries {
        text.push_str(&format!("The newest checkpoint covers {covered} entries, {} wait for it.\n", entries - covered));
    }
    text
}

/// What certificate is shown under the site's names, if one is.
fn site(status: &Value) -> String {
    let Some(site) = status.pointer("/tls/site").filter(|s| s.get("served").and_then(Value::as_bool) == Some(true))
    else {
        return String::new();
    };
    let names: Vec<&str> = site["names"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let end = number(site, "not_after_s").map_or("?".into(), |s| output::time(s.saturating_mul(1000)));
    printable(&format!("The certificate for {} ({}) holds until {end}.", names.join(", "), figure(site, "source")))
        + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_answers_and_says_how_old_it_is() {
        let mut status = serde_json::json!({
            "node": 1, "name": "box-01", "version": "0.1.0", "role": "leader", "leader": 1, "term": 3,
            "height": 18342, "size": 20000, "block_time_ms": 1_000_000, "checkpoint_size": 20000, "keys": 7,
            "free_bytes": 3u64 << 30, "reserve_bytes": 1, "store_bytes": 1 << 20, "uptime_s": 60,
            "now_ms": 1_040_000, "errors": [],
        });
        let mut cluster = serde_json::json!({
            "attention": [],
            "nodes": [{
                "name": "box-01", "state": "member", "role": "leader", "voter": true, "live": true, "height": 18342,
                "trails": 0, "contact_ms": 0, "age_ms": 0, "version": "0.1.0", "free_bytes": 61, "disk_bytes": 100,
                "errors": [],
            }],
        });
        assert_eq!(
            render(&status, &cluster, 40),
            "NODE    ROLE    VOTER  LIVE  HEIGHT  TRAILS  CONTACT  VERSION  SLOT  DISK  ERRORS\n\
             box-01  leader  yes    yes   18342   0       40ms     0.1.0    -     39%   -\n\
             Block 18342, made 40s ago: 20000 entries, 7 keys, 1.0 MiB in the store, up for 1m00s.\n\
             Figures of live nodes are at most 40ms old.\n"
        );
        cluster["attention"] = serde_json::json!(["box-01: no room:\u{1b}[2J 5 bytes free"]);
        status["checkpoint_size"] = 19_000.into();
        status["clock"] = serde_json::json!({ "doubted": true, "synchronised": false });
        status["tls"] = serde_json::json!({ "rolling_over": true });
        let text = render(&status, &cluster, 40);
        assert!(text.contains("samovar rotate ca --finish"), "a roll-over under way is said: {text}");
        status["log_level"] = serde_json::json!({
            "configured": "info", "directives": "debug", "by": "user/alice", "until_ms": 86_400_000,
        });
        let text = render(&status, &cluster, 40);
        assert!(text.contains("The journal takes `debug` until 1970"), "a changed level is said: {text}");
        assert!(
            text.contains("Attention: box-01: no room:\u{fffd}[2J 5 bytes free\n"),
            "errors in words, defused: {text}"
        );
        assert!(text.contains("covers 19000 entries, 1000 wait"), "what is not signed yet is said: {text}");
        assert!(text.contains("The clock is not believed"), "a doubted clock is said: {text}");
        assert!(
            render(&serde_json::json!({}), &serde_json::json!({}), 1).contains("Block ?: ? entries"),
            "missing figures are not made up"
        );
    }
}
