//! `samovar join` and `samovar node`: the nodes of the cluster.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use hyper::Method;
use serde_json::{Value, json};

use super::api_key::save_token;
use super::keys::figure;
use super::status;
use crate::client::{Client, Request, Target, key_path};
use crate::config::Span;
use crate::output::{self, Format};
use crate::secrets::KekFiles;

/// Join a cluster: make the data directory of another node
///
/// The node makes its own keys and shows a join token (`samovar node token`), which is good for one node and says which
/// ledger it is for. Then start it with `samovar serve`: it gets everything from its peers, and votes once it lags little.
#[derive(Debug, clap::Args)]
pub(super) struct Join {
    /// URL of a node of the cluster that votes, `https://HOST:8443`
    url: String,
    /// File with the join token, or - for standard input
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// Data directory; must be empty or not exist
    #[arg(long, value_name = "DIR", env = "SAMOVAR_DATA", hide_env_values = true)]
    data: PathBuf,
    /// Name of the node [default: the machine's]
    #[arg(long, value_name = "NODE")]
    name: Option<String>,
    /// Address of its API [default: 0.0.0.0:8443]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// More names and addresses of its certificate, as `tls.names`
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    tls_names: Vec<String>,
    /// Address for its peers [default: 0.0.0.0:8444]
    #[arg(long, value_name = "ADDR:PORT")]
    peers: Option<SocketAddr>,
    /// Where peers reach it [default: the address of --peers, or the machine's host name]
    #[arg(long, value_name = "HOST:PORT")]
    peers_address: Option<String>,
    /// Key-encryption key under which its private keys are sealed [default: the credential samovar.kek, if there is one]
    #[arg(long, value_name = "FILE")]
    kek: Option<PathBuf>,
}

/// What the permit to go down is asked for with.
#[derive(Debug, clap::Args)]
pub(super) struct PermitArgs {
    /// What for, for whoever looks at the ledger
    #[arg(long, value_name = "TEXT", required_unless_present = "without_quorum")]
    reason: Option<String>,
    /// How long the permit is good, such as 30m; it does not end while its holder is down
    #[arg(long, value_name = "TIME", default_value = "30m")]
    expires: Span,
    /// Nothing can be written while the node is away, and that is wanted
    #[arg(long)]
    accept_outage: bool,
    /// Take it although there is no quorum that could grant it, and why: root of the machine, for the node of the machine. It is
    /// put on the ledger later
    #[arg(long, value_name = "REASON", conflicts_with = "reason")]
    without_quorum: Option<String>,
}

impl PermitArgs {
    /// Whoever takes it without a quorum is root of the machine, whatever keys lie there.
    fn client(&self, target: &Target) -> Result<Client, crate::client::Error> {
        if self.without_quorum.is_some() { Client::open_local(target) } else { Client::open(target) }
    }

    fn body(&self) -> Value {
        json!({
            "reason": self.reason.as_ref().or(self.without_quorum.as_ref()), "expires_s": self.expires.0.as_secs(),
            "accept_outage": self.accept_outage, "without_quorum": self.without_quorum.is_some(),
        })
    }
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Permit {
    /// Show which node has it
    Show {
        #[command(flatten)]
        target: Target,
    },
    /// Ask for it, for the node that answers or another one
    ///
    /// At most one node has it. It is refused while another voter is down, behind or says that something is wrong, and when
    /// nothing could be written without the node. A node that is ill itself gets it, to be cured.
    Acquire {
        #[command(flatten)]
        target: Target,
        /// Name of the node [default: the one that answers]
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
        #[command(flatten)]
        permit: PermitArgs,
    },
    /// Give it back
    Release {
        #[command(flatten)]
        target: Target,
        /// Name of the node that has it
        node: String,
    },
}

pub(super) async fn permit(command: &Permit, format: Format) -> anyhow::Result<()> {
    let mut taken = Vec::new();
    let held = match command {
        Permit::Show { target } => {
            let answer = Client::open(target)?.send(Request::get("/v1/permits")).await?.json()?;
            taken.extend(answer.get("taken").and_then(Value::as_array).cloned().unwrap_or_default());
            answer.get("permit").cloned().unwrap_or_default()
        }
        Permit::Acquire { target, node, permit } => {
            let mut body = permit.body();
            body["node"] = json!(node);
            permit.client(target)?.send(json_request("/v1/permits".into(), &body)?).await?.json()?
        }
        Permit::Release { target, node } => {
            let request = Request::write(Method::DELETE, key_path("/v1/permits", node), "");
            Client::open(target)?.send(request).await?;
            Value::Null
        }
    };
    match format {
        Format::Json => output::json(&json!({ "permit": held, "taken": taken }))?,
        Format::Text => {
            let mut said =
                if held.is_null() { "no node has the permit to go down\n".into() } else { may_go_down(&held) };
            for row in &taken {
                said.push_str(&format!("not on the ledger yet: {}", may_go_down(row)));
            }
            output::text(&said)?;
        }
    }
    Ok(())
}

fn may_go_down(held: &Value) -> String {
    let is = |what| held.get(what).and_then(Value::as_bool) == Some(true);
    let until = held.get("expires_ms").and_then(Value::as_u64).map_or("?".into(), output::time);
    let (name, by, reason) = (figure(held, "name"), figure(held, "by"), figure(held, "reason"));
    let over = if is("over") { ", over" } else { "" };
    let taken = if is("without_quorum") { ", taken without a quorum" } else { "" };
    format!("{name} may go down until {until}{over}{taken}: {} ({by})\n", output::printable(&reason))
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Node {
    /// Make a token with which one node may join
    ///
    /// Whoever has it can become a node of the cluster and gets the key that signs the log: hand it over as you would hand over
    /// that. It is good once, and for an hour unless said otherwise.
    Token {
        #[command(flatten)]
        target: Target,
        /// File to write the token to, readable for its owner only; must not exist
        #[arg(long, value_name = "FILE")]
        save: PathBuf,
        /// How long it is good, such as 30m; at most 24h
        #[arg(long, value_name = "TIME", default_value = "1h")]
        expires: Span,
        /// The node gets everything and votes on nothing, until it is promoted
        #[arg(long)]
        learner: bool,
        /// The node takes the place of this one, which is removed when it joins
        #[arg(long, value_name = "NODE")]
        replaces: Option<String>,
    },
    /// List the nodes and how each of them is
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Make a learner a voter, once it lags little
    Promote {
        #[command(flatten)]
        target: Target,
        /// Name of the node
        node: String,
    },
    /// Take a node out of service: it gets the permit to go down and hands the lead over
    ///
    /// It then says that it is not ready, so that balancers leave it, answers whoever asks all the same, and may be stopped or
    /// started again. `samovar node resume` ends that.
    Drain {
        #[command(flatten)]
        target: Target,
        /// Name of the node
        node: String,
        #[command(flatten)]
        permit: PermitArgs,
    },
    /// Put a node back into service, and give the permit back
    Resume {
        #[command(flatten)]
        target: Target,
        /// Name of the node
        node: String,
    },
    /// Take a node out of the cluster, for good
    ///
    /// A node that was removed is refused by its peers. Its machine comes back as a new node only: with an empty data directory
    /// and a join token.
    Remove {
        #[command(flatten)]
        target: Target,
        /// Name of the node
        node: String,
    },
}

pub(super) async fn join(join: &Join, format: Format) -> anyhow::Result<()> {
    let kek = KekFiles { current: join.kek.clone(), old: None }.or_credentials();
    let shown = crate::serve::Shown { listen: join.listen, names: join.tls_names.clone() };
    let wanted = crate::serve::Join {
        url: &join.url,
        token_file: &join.token_file,
        data: &join.data,
        name: join.name.as_deref(),
        shown: &shown,
        peers: join.peers,
        address: join.peers_address.as_deref(),
        kek: &kek,
    };
    let crate::serve::Joined { node, name, voter } = crate::serve::join(&wanted).await?;
    let data = join.data.display();
    match format {
        Format::Json => output::json(&json!({ "node": node, "name": name, "voter": voter, "data": join.data }))?,
        Format::Text => {
            let what = if voter { "a voter, once it has caught up" } else { "a learner" };
            output::text(&format!("node   {node}, {name}: {what}\nnext   samovar serve --data {data}\n"))?;
        }
    }
    Ok(())
}

pub(super) async fn run(command: &Node, format: Format) -> anyhow::Result<()> {
    match command {
        Node::Token { target, save, expires, learner, replaces } => {
            let body = json!({
                "expires_s": expires.0.as_secs(), "voter": !learner, "replaces": replaces,
            });
            let issued = save_token(&Client::open(target)?, "/v1/cluster/join-tokens", Some(&body), save).await?;
            let (id, end) = (figure(&issued, "id"), issued.get("expires_ms").and_then(Value::as_u64));
            match format {
                Format::Json => output::json(&json!({ "id": id, "file": save, "expires_ms": end }))?,
                Format::Text => output::text(&format!(
                    "{id} is in {}, good for one node until {}\n",
                    save.display(),
                    end.map_or("?".into(), output::time)
                ))?,
            }
            Ok(())
        }
        Node::List { target } => status::list(target, format).await,
        Node::Promote { target, node } => {
            let path = key_path("/v1/cluster/nodes", node) + "/promote";
            changed(target, Request::write(Method::POST, path, ""), format).await
        }
        Node::Drain { target, node, permit } => {
            let path = key_path("/v1/cluster/nodes", node) + "/drain";
            changed_by(&permit.client(target)?, json_request(path, &permit.body())?, format).await
        }
        Node::Resume { target, node } => {
            let path = key_path("/v1/cluster/nodes", node) + "/resume";
            changed(target, Request::write(Method::POST, path, ""), format).await
        }
        Node::Remove { target, node } => {
            let path = key_path("/v1/cluster/nodes", node);
            changed(target, Request::write(Method::DELETE, path, ""), format).await
        }
    }
}

fn json_request(path: String, body: &Value) -> anyhow::Result<Request> {
    Ok(Request::write(Method::POST, path, body.to_string()).header("content-type", "application/json")?)
}

async fn changed(target: &Target, request: Request, format: Format) -> anyhow::Result<()> {
    changed_by(&Client::open(target)?, request, format).await
}

async fn changed_by(client: &Client, request: Request, format: Format) -> anyhow::Result<()> {
    let answer = client.send(request).await?.json()?;
    let state = answer.get("state").and_then(Value::as_str).context("the node's answer names no state")?;
    let name = figure(&answer, "name");
    match format {
        Format::Json => output::json(&answer)?,
        Format::Text if state == "removing" || state == "catching up" => {
            output::text(&format!("{name}: {state}; the leader goes on with it, see samovar node list\n"))?
        }
        Format::Text if state == "drained" => {
            output::text(&format!("{name}: drained, ready to be stopped; afterwards: samovar node resume {name}\n"))?
        }
        Format::Text => output::text(&format!("{name}: {state}\n"))?,
    }
    Ok(())
}
