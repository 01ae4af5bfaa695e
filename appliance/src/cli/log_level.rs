//! `samovar log-level`: what a running node writes to its journal.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use crate::client::{Client, Request, Target};
use crate::config::Span;
use crate::output::{self, Format, printable};

/// Show or change what the running node writes to its journal
///
/// A change needs no restart and ends by itself. Without LEVEL, what is in force is shown. The node's configuration
/// (`journal.level`) stays as it is.
#[derive(Debug, clap::Args)]
pub(super) struct LogLevel {
    /// `error`, `warn`, `info`, `debug` or `trace`; or levels of parts: `info,samovar_node::raft=debug`
    #[arg(value_name = "LEVEL|DIRECTIVES", value_parser = directives)]
    directives: Option<String>,
    /// How long, such as 90s or 15m; a day at most
    #[arg(long = "for", value_name = "TIME", default_value = "15m", requires = "directives")]
    lasts: Span,
    /// As configured again, now
    #[arg(long, conflicts_with = "directives")]
    reset: bool,
    #[command(flatten)]
    target: Target,
}

/// Refuses here what the node would refuse.
fn directives(text: &str) -> Result<String, String> {
    text.parse::<crate::journal::Directives>().map(|_| text.to_owned())
}

pub(super) async fn run(command: &LogLevel, format: Format) -> anyhow::Result<()> {
    const PATH: &str = "/v1/log-level";
    let client = Client::open(&command.target)?;
    if command.reset {
        client.send(Request::write(Method::DELETE, PATH, "")).await?;
    }
    let request = match &command.directives {
        None => Request::get(PATH),
        Some(directives) => {
            // What is no whole second is rounded up: zero would be refused.
            let for_s = command.lasts.0.as_secs() + u64::from(command.lasts.0.subsec_nanos() > 0);
            let body = json!({ "directives": directives, "for_s": for_s }).to_string();
            Request::write(Method::PUT, PATH, body).header("content-type", "application/json")?
        }
    };
    let answer = client.send(request.patience(Duration::from_secs(3))).await?.json()?;
    match format {
        Format::Json => output::json(&answer)?,
        Format::Text => output::text(&format!("{}\n", render(&answer)))?,
    }
    Ok(())
}

/// One line: what is written, until when, and what then.
pub(super) fn render(answer: &Value) -> String {
    let text = |name: &str| answer.get(name).and_then(Value::as_str).map(printable);
    let configured = text("configured").unwrap_or_else(|| "?".into());
    let until = answer.get("until_ms").and_then(Value::as_u64).map_or("?".into(), output::time);
    match text("directives") {
        None => format!("The journal takes `{configured}`, as configured."),
        Some(directives) => format!(
            "The journal takes `{directives}` until {until}, as {} asked; then `{configured}` again.",
            text("by").unwrap_or_else(|| "?".into())
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_is_said_in_words() {
        let plain = json!({ "configured": "info", "directives": null, "by": null, "until_ms": null });
        assert_eq!(render(&plain), "The journal takes `info`, as configured.");
        let changed =
            json!({ "configured": "info", "directives": "debug", "by": "user/alice", "until_ms": 86_400_000 });
        assert_eq!(
            render(&changed),
            "The journal takes `debug` until 1970-01-02T00:00:00Z, as user/alice asked; then `info` again."
        );
    }
}
