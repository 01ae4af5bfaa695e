//! `samovar ready`: one question, for programs that decide where clients go.

use std::time::Duration;

use samovar_node::rt;
use serde_json::json;

use crate::client::{Client, Error, Request, Target};
use crate::config::Span;
use crate::output::{self, Format};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);

/// Say whether the node is ready: it serves linearizable reads and is not drained
///
/// For keepalived and whatever else sends clients somewhere. No token is needed. A node that is not ready is asked again until
/// the time is over: an election takes half a second, and is no reason to send clients elsewhere.
/// Exit codes: 0 it is ready, 1 it is not, or did not say so in time, 3 it cannot be reached.
#[derive(Debug, clap::Args)]
pub(super) struct Ready {
    #[command(flatten)]
    target: Target,
    /// How long it may take
    #[arg(long, value_name = "TIME", default_value = "800ms")]
    within: Span,
}

pub(super) async fn run(ready: &Ready, format: Format) -> anyhow::Result<()> {
    let client = Client::open(&ready.target)?.without_token();
    let mut refused = None;
    let asked = rt::timeout(ready.within.0, async {
        loop {
            match client.send(Request::get("/ready").patience(Duration::ZERO)).await {
                Err(error @ Error::Refused(_)) => refused = Some(error),
                answer => return answer,
            }
            rt::sleep(PAUSE).await;
        }
    });
    match (asked.await, refused) {
        (Ok(answer), _) => drop(answer?),
        (Err(_), Some(error)) => return Err(error.into()),
        (Err(_), None) => anyhow::bail!("the node said nothing within {}", ready.within),
    }
    match format {
        Format::Text => output::text("ready\n")?,
        Format::Json => output::json(&json!({ "ready": true }))?,
    }
    Ok(())
}
