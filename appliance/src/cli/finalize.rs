//! `samovar finalize`: the last step of an update, after which there is no way back.

use hyper::Method;
use serde_json::Value;

use super::keys::figure;
use crate::client::{Client, Request, Target};
use crate::output::{self, Format};

/// Finish an update of all nodes: what only the new version can do is switched on
///
/// Until then a node proposes nothing that the version before could not read, so every box can go back to it. This is refused
/// while a node, or the spare slot of one, holds a version that would not read it; it is an entry of the log, and there is no
/// way back. Where nothing is to be done it says so and changes nothing.
#[derive(Debug, clap::Args)]
pub(super) struct Finalize {
    #[command(flatten)]
    target: Target,
    /// Only say what is in force and what it waits for
    #[arg(long)]
    preview: bool,
}

pub(super) async fn run(finalize: &Finalize, format: Format) -> anyhow::Result<()> {
    let client = Client::open(&finalize.target)?;
    let path = "/v1/cluster/format";
    let request = if finalize.preview { Request::get(path) } else { Request::write(Method::POST, path, "") };
    let answer = client.send(request).await?.json()?;
    match format {
        Format::Json => output::json(&answer)?,
        Format::Text => output::text(&render(&answer))?,
    }
    Ok(())
}

fn render(answer: &Value) -> String {
    let waits = answer.get("waits_for").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let (in_force, newest) = (figure(answer, "in_force"), figure(answer, "newest"));
    let mut said = format!("Commands of format {in_force} are in force");
    if in_force == newest {
        return said + ", the newest that this version knows: there is nothing to finalize.\n";
    }
    said += &format!("; this version knows {newest}");
    if waits.is_empty() {
        return said + ", and every node reads it: samovar finalize puts it in force.\n";
    }
    said += ". It waits for:\n";
    for line in waits.iter().filter_map(Value::as_str) {
        said += &format!("- {}\n", output::printable(line));
    }
    said
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_finalizing_waits_for_is_said_in_words() {
        let said =
            |in_force: u8, waits: &[&str]| render(&json!({ "in_force": in_force, "newest": 6, "waits_for": waits }));
        assert_eq!(
            said(6, &[]),
            "Commands of format 6 are in force, the newest that this version knows: there is nothing to finalize.\n"
        );
        assert_eq!(
            said(5, &[]),
            "Commands of format 5 are in force; this version knows 6, and every node reads it: samovar finalize puts it in force.\n"
        );
        assert_eq!(
            said(5, &["box-02 is not heard of: start it, or remove it"]),
            "Commands of format 5 are in force; this version knows 6. It waits for:\n- box-02 is not heard of: start it, or remove it\n"
        );
    }
}
