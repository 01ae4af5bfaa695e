//! `samovar clock accept`: an administrator's word that the clock of the node is right.

use hyper::Method;
use serde_json::Value;

use crate::client::{Client, Request, Target};
use crate::output::{self, Format};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Clock {
    /// Accept the node's clock as it is, for good
    ///
    /// A node without peers does not believe a clock that nothing synchronises and that stands more than a day past the
    /// newest block; blocks then keep that block's time. This moves their time to what the clock says, and time never goes
    /// back: see `samovar status` first, and set the clock if it is wrong. The act is an entry of the log.
    Accept {
        #[command(flatten)]
        target: Target,
    },
}

pub(super) async fn run(command: &Clock, format: Format) -> anyhow::Result<()> {
    let Clock::Accept { target } = command;
    let request = Request::write(Method::POST, "/v1/clock/accept", Vec::new());
    let answer = Client::open(target)?.send(request).await?.json()?;
    match format {
        Format::Json => output::json(&answer)?,
        Format::Text => output::text(&render(&answer))?,
    }
    Ok(())
}

fn render(answer: &Value) -> String {
    let time = |name: &str| answer.get(name).and_then(Value::as_u64).map_or("?".into(), output::time);
    let transaction = answer.get("transaction").and_then(Value::as_u64).map_or("?".into(), |n| n.to_string());
    format!(
        "The time of blocks went from {} to {} and goes on from there; transaction {transaction} says so.\n",
        time("before_ms"),
        time("block_time_ms")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_accepted_is_said_in_words() {
        let answer = serde_json::json!({ "transaction": 9, "block": 4, "before_ms": 0, "block_time_ms": 86_400_000 });
        assert_eq!(
            render(&answer),
            "The time of blocks went from 1970-01-01T00:00:00Z to 1970-01-02T00:00:00Z and goes on from there; \
             transaction 9 says so.\n"
        );
    }
}
