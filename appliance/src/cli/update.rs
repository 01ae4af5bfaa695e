//! `samovar update`: updates of the appliance, over the API or, on the box itself, straight by its updater, which works
//! without the daemon too.
//!
//! Of several nodes one at a time is started again: who restarts a box drains its node first, which takes the permit to go down.
//! The box gives the permit back when the version that it then runs is found good.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hyper::Method;
use samovar_node::rt;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::client::{Client, Request, Target, key_path};
use crate::output::{self, Format, Table, printable};
use crate::update::{self, DIRECTORY, Order, Reply};

/// How often the state is asked for while a bundle is written.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// Reason of a permit that the box gives back by itself once it runs a good version (`confirm` of the image).
const PERMIT_REASON: &str = "update: restart of the box";
/// How long that may take.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(45 * 60);

#[derive(Debug, clap::Subcommand)]
pub(super) enum Update {
    /// Check a signed bundle and write it to the spare slot
    ///
    /// The version that runs goes on until the box is started again. The new one is on trial then: if it is not found good, or
    /// does not come up in three tries, the box goes back by itself.
    Install {
        /// Path of the bundle on the box, or an http or https URL that the box may reach (`firewall.out` of its site file)
        bundle: String,
        /// Start the new version at once
        #[arg(long)]
        restart: bool,
        #[command(flatten)]
        permit: PermitArgs,
        #[command(flatten)]
        target: Target,
    },
    /// Show slots, versions and the newest steps
    Status {
        #[command(flatten)]
        target: Target,
    },
    /// Go back to the version in the other slot
    Rollback {
        /// Start it at once
        #[arg(long)]
        restart: bool,
        #[command(flatten)]
        permit: PermitArgs,
        #[command(flatten)]
        target: Target,
    },
    /// Start the box again
    ///
    /// With peers its node is drained first, for which the cluster must grant it the permit to go down.
    Restart {
        #[command(flatten)]
        permit: PermitArgs,
        #[command(flatten)]
        target: Target,
    },
}

/// The permit to go down, which a restart asks the cluster for.
#[derive(Debug, clap::Args)]
pub(super) struct PermitArgs {
    /// Restart although nothing can be written while the node is away
    #[arg(long)]
    accept_outage: bool,
    /// Restart without asking the other nodes, whatever state they are in
    #[arg(long, conflicts_with = "accept_outage")]
    without_permit: bool,
}

/// Who is asked.
enum Way {
    Api(Client),
    /// The updater of this box.
    Here,
}

pub(super) async fn run(command: &Update, format: Format) -> Result<()> {
    match command {
        Update::Status { target } => show(&Way::of(target)?.state().await?, format),
        Update::Install { bundle, restart, permit, target } => {
            let way = Way::of(target)?;
            let bundle = way.bundle(bundle)?;
            way.send(&Order::Install { bundle: &bundle, by: "root" }).await?;
            let state = way.installed().await?;
            way.restart_if(*restart, permit, target, "the new version").await?;
            show(&state, format)
        }
        Update::Rollback { restart, permit, target } => {
            let way = Way::of(target)?;
            way.send(&Order::Rollback { by: "root" }).await?;
            let state = way.state().await?;
            way.restart_if(*restart, permit, target, "the other version").await?;
            show(&state, format)
        }
        Update::Restart { permit, target } => Way::of(target)?.restart(permit, target).await,
    }
}

impl Way {
    /// The updater itself if nothing names a node and this is a box; its socket takes root and the daemon only.
    fn of(target: &Target) -> Result<Self> {
        let Target { url, ca, token_file, data } = target;
        let named = url.is_some() || ca.is_some() || token_file.is_some() || data.is_some();
        if !named && update::is_here(Path::new(DIRECTORY)) {
            return Ok(Self::Here);
        }
        Ok(Self::Api(Client::open(target)?))
    }

    /// The bundle as the box is to find it: here a path may be relative.
    fn bundle(&self, bundle: &str) -> Result<String> {
        if bundle.contains("://") || matches!(self, Self::Api(_)) {
            return Ok(bundle.to_owned());
        }
        let path = PathBuf::from(bundle).canonicalize().with_context(|| format!("there is no bundle {bundle}"))?;
        path.into_os_string().into_string().map_err(|_| anyhow::anyhow!("{bundle}: the path is not UTF-8"))
    }

    async fn send(&self, order: &Order<'_>) -> Result<()> {
        match self {
            Self::Here => match update::order(Path::new(DIRECTORY), order).await? {
                Reply { taken: true, .. } => Ok(()),
                Reply { why, .. } => bail!("{}", printable(&why)),
            },
            Self::Api(client) => {
                let (path, body) = match order {
                    Order::Install { bundle, .. } => ("/v1/updates", json!({ "bundle": bundle }).to_string()),
                    Order::Rollback { .. } => ("/v1/updates/rollback", String::new()),
                    Order::Restart { .. } => ("/v1/updates/restart", String::new()),
                };
                let mut request = Request::write(Method::POST, path, body.clone());
                if !body.is_empty() {
                    request = request.header("content-type", "application/json")?;
                }
                client.send(request).await.map(drop).map_err(Into::into)
            }
        }
    }

    async fn state(&self) -> Result<Value> {
        match self {
            Self::Here => update::state(Path::new(DIRECTORY)),
            Self::Api(client) => Ok(client.send(Request::get("/v1/updates")).await?.json()?),
        }
    }

    /// Waits until the bundle is written; the state then.
    async fn installed(&self) -> Result<Value> {
        let end = Instant::now() + INSTALL_TIMEOUT;
        loop {
            let state = self.state().await?;
            match text(&state, "state").as_str() {
                "installing" if Instant::now() < end => rt::sleep(ASK_EVERY).await,
                "installing" => bail!("the bundle is still being written; samovar update status says how it ends"),
                "installed" => return Ok(state),
                _ => bail!("{}", text(&state, "message")),
            }
        }
    }

    async fn restart_if(&self, wanted: bool, permit: &PermitArgs, target: &Target, what: &str) -> Result<()> {
        if wanted {
            return self.restart(permit, target).await;
        }
        output::note(&format!("{what} is started by: samovar update restart"));
        Ok(())
    }

    async fn restart(&self, permit: &PermitArgs, target: &Target) -> Result<()> {
        if !permit.without_permit {
            self.drain(permit, target).await?;
        }
        self.send(&Order::Restart { by: "root" }).await
    }

    /// Takes the node out of service if it has peers. A box whose daemon does not run is in service for nobody.
    async fn drain(&self, permit: &PermitArgs, target: &Target) -> Result<()> {
        let here;
        let client = match self {
            Self::Api(client) => client,
            Self::Here => match Client::open(target) {
                Ok(client) => {
                    here = client;
                    &here
                }
                Err(_) => return Ok(()),
            },
        };
        let cluster = match client.send(Request::get("/v1/cluster")).await {
            Ok(answer) => answer.json()?,
            Err(crate::client::Error::Unreachable { .. }) if matches!(self, Self::Here) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let Some(name) = drains(&cluster) else { return Ok(()) };
        let body = json!({ "reason": PERMIT_REASON, "accept_outage": permit.accept_outage }).to_string();
        let path = key_path("/v1/cluster/nodes", name) + "/drain";
        let request = Request::write(Method::POST, path, body).header("content-type", "application/json")?;
        client.send(request).await.context("the box is not started again")?;
        Ok(())
    }
}

/// Name of the node that answered, if it votes with others: such a one is drained before it goes down.
fn drains(cluster: &Value) -> Option<&str> {
    let name = cluster.get("answered_by")?.as_str()?;
    let nodes = cluster.get("nodes")?.as_array()?;
    let votes = |node: &&Value| node.get("voter").and_then(Value::as_bool) == Some(true);
    let own = nodes.iter().filter(votes).any(|node| node.get("name").and_then(Value::as_str) == Some(name));
    (own && nodes.iter().filter(votes).count() > 1).then_some(name)
}

fn show(state: &Value, format: Format) -> Result<()> {
    match format {
        Format::Json => output::json(state)?,
        Format::Text => output::text(&render(state))?,
    }
    Ok(())
}

fn text(value: &Value, name: &str) -> String {
    value.get(name).and_then(Value::as_str).map(printable).unwrap_or_default()
}

fn render(state: &Value) -> String {
    let mut table = Table::new(&["SLOT", "VERSION", "STATE"]);
    table.row(vec![text(state, "slot"), text(state, "version"), format!("runs, {}", text(state, "standing"))]);
    if let Some(spare) = state.get("spare") {
        table.row(vec![text(spare, "slot"), text(spare, "version"), text(spare, "standing")]);
    }
    let mut said = table.render();
    let message = text(state, "message");
    if !message.is_empty() {
        said.push_str(&format!("{message}\n"));
    }
    let events = state.get("events").and_then(Value::as_array).filter(|events| !events.is_empty());
    if let Some(events) = events {
        let mut table = Table::new(&["TIME", "STEP", "VERSION", "SLOT", "BY", "WHY"]);
        for event in events {
            let time = event.get("time_s").and_then(Value::as_u64);
            let time = time.map_or("?".into(), |s| output::time(s.saturating_mul(1000)));
            let column = |name| text(event, name);
            table.row(vec![time, column("step"), column("version"), column("slot"), column("by"), column("why")]);
        }
        said.push_str(&table.render());
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_with_peers_is_drained_before_it_goes_down() {
        let node = |name: &str, voter: bool| json!({ "name": name, "voter": voter });
        let cluster = |nodes: Vec<Value>| json!({ "answered_by": "box-01", "nodes": nodes });
        let three = cluster(vec![node("box-01", true), node("box-02", true), node("box-03", true)]);
        assert_eq!(drains(&three), Some("box-01"));
        assert_eq!(drains(&cluster(vec![node("box-01", true), node("box-02", false)])), None, "the other only reads");
        assert_eq!(drains(&cluster(vec![node("box-02", true), node("box-03", true)])), None, "this one does not vote");
        assert_eq!(drains(&cluster(vec![node("box-01", true)])), None, "a node alone");
        assert_eq!(drains(&json!({})), None);
    }

    #[test]
    fn the_state_is_said_in_words() {
        let state = json!({
            "state": "fell-back", "message": "version 1.1.0 fell back: it crashed", "slot": "A", "version": "1.0.0",
            "standing": "confirmed", "spare": { "slot": "B", "version": "1.1.0", "standing": "bad" },
            "events": [{ "sequence": 1, "time_s": 86_400, "step": "fell-back", "version": "1.1.0", "slot": "B",
                         "by": "", "why": "it crashed" }],
        });
        assert_eq!(
            render(&state),
            "SLOT  VERSION  STATE\n\
             A     1.0.0    runs, confirmed\n\
             B     1.1.0    bad\n\
             version 1.1.0 fell back: it crashed\n\
             TIME                  STEP       VERSION  SLOT  BY  WHY\n\
             1970-01-02T00:00:00Z  fell-back  1.1.0    B     -   it crashed\n"
        );
    }
}
