//! `samovar recover`.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use serde_json::json;

use crate::output::{self, Format};
use crate::serve::{Preview, Source, Survivor, Wanted, read_known};

/// Go on from one node after the quorum was lost for good
///
/// Run it with the daemon stopped, as the daemon's user, on a node that is left. With --preview it shows what the node has and
/// what may be lost, and changes nothing. Preview every node that is left, with --output json, and show the files to the
/// next with --compare: only the most advanced one can be recovered from. The ledger then goes on as a new epoch with this
/// node alone, under another log key; the nodes of before have no part in it, and others join with samovar join.
#[derive(Debug, clap::Args)]
pub(super) struct Recover {
    /// Configuration file [default: /etc/samovar/samovar.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data directory, instead of the configured one
    #[arg(long, value_name = "DIR", env = "SAMOVAR_DATA", hide_env_values = true)]
    data: Option<PathBuf>,
    /// Key-encryption key under which the private keys are sealed [default: the configured one, or the credential samovar.kek]
    #[arg(long, value_name = "FILE")]
    kek: Option<PathBuf>,
    /// Show what is here and what may be lost, and change nothing
    #[arg(long)]
    preview: bool,
    /// Preview of another node that is left, as JSON
    #[arg(long, value_name = "FILE")]
    compare: Vec<PathBuf>,
    /// A checkpoint or receipt that somebody has, newer than what is here: it shows what is lost at least
    #[arg(long, value_name = "FILE")]
    known: Option<PathBuf>,
    /// Why, for whoever reads the log
    #[arg(long, value_name = "TEXT", default_value = "lost quorum")]
    reason: String,
    /// What the preview says may be lost, is lost
    #[arg(long)]
    accept_loss: bool,
    /// The majority is there, but no checkpoint meets the policy, since a node that it needs is gone for good
    #[arg(long)]
    unmet_policy: bool,
}

pub(super) fn run(recover: &Recover, format: Format) -> anyhow::Result<()> {
    let source = Source { file: recover.config.clone(), data: recover.data.clone() };
    let compared = recover.compare.iter().map(|path| {
        let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no preview of a node", path.display()))
    });
    let wanted = Wanted {
        compared: compared.collect::<anyhow::Result<Vec<Preview>>>()?,
        known: recover.known.as_deref().map(read_known).transpose()?,
        unmet_policy: recover.unmet_policy,
    };
    let mut config = source.load()?;
    if recover.kek.is_some() {
        config.kek.current.clone_from(&recover.kek);
    }
    let survivor = Survivor::open(config, wanted)?;
    if recover.preview {
        return show(&survivor.preview, format);
    }
    let unfinished = survivor.preview.unfinished;
    if !recover.accept_loss && !unfinished && survivor.preview.refused.is_none() {
        bail!(
            "nothing was changed: {} Look at the preview (samovar recover --preview) of every node that is left, and accept \
             that with --accept-loss",
            loss(&survivor.preview)
        );
    }
    let done = survivor.recover(recover.reason.clone())?;
    match format {
        Format::Json => output::json(&json!({
            "epoch": done.epoch, "origin": done.origin, "log_key": done.log, "entry": done.entry,
            "certain_entries": done.certain,
        }))?,
        Format::Text => output::text(&format!(
            "The ledger goes on as epoch {} with this node alone.\n\
             kept     all {} entries that were here\n\
             lost     what others acknowledged with revision {} or a higher one and is not among them\n\
             origin   {}\n\
             key      {}\n\
             Start the daemon, publish the new key by a way that those who verify trust, and let other nodes join: samovar \
             node token\n",
            done.epoch, done.entry, done.certain, done.origin, done.log,
        ))?,
    }
    Ok(())
}

fn show(preview: &Preview, format: Format) -> anyhow::Result<()> {
    if matches!(format, Format::Json) {
        return Ok(output::json(&serde_json::to_value(preview)?)?);
    }
    let Preview { raft, .. } = preview;
    let number = |n: Option<u64>| n.map_or_else(|| "none".into(), |n| n.to_string());
    let members: Vec<String> = preview.members.iter().map(|m| m.node.to_string()).collect();
    let list = |nodes: &[u64]| {
        let nodes: Vec<String> = nodes.iter().map(u64::to_string).collect();
        if nodes.is_empty() { "none".to_owned() } else { nodes.join(", ") }
    };
    let mut text = format!(
        "node           {} ({}), epoch {} of {}\n\
         members        {} ({} vote, {} are a quorum)\n\
         raft log       ends at index {}, term {}; committed {}, applied {}\n\
         waiting        {} transactions, which are kept\n\
         chain          {} entries in {} blocks, the newest of {}\n\
         cosigned       {} entries\n\
         answering      {}\n\
         compared with  {}\n\
         most advanced  node {}\n",
        preview.node,
        preview.name,
        preview.epoch,
        preview.origin,
        members.join(", "),
        preview.voters,
        preview.quorum,
        raft.last_index,
        raft.last_term,
        number(raft.committed),
        raft.applied,
        preview.waiting_writes,
        preview.size,
        preview.height,
        output::time(preview.time_ms),
        number(preview.promised),
        list(&preview.live),
        list(&preview.compared),
        preview.most_advanced,
    );
    text += &format!("loss           {}\n", loss(preview));
    text += &match (&preview.refused, preview.unfinished) {
        (_, true) => "next           a recovery was begun here: run samovar recover again, it goes on\n".to_owned(),
        (Some(why), _) => format!("not from here  {why}\n"),
        (None, _) => {
            "next           samovar recover --accept-loss, if no other node that is left is ahead\n".to_owned()
        }
    };
    Ok(output::text(&text)?)
}

/// What may be lost, in a sentence.
fn loss(preview: &Preview) -> String {
    let loss = &preview.loss;
    if loss.none {
        return "None: a majority of the voters was compared, and none has more.".into();
    }
    let least = match loss.at_least_up_to {
        Some(size) => format!("At least the entries up to {} are lost.", size.saturating_sub(1)),
        None => "How much that is cannot be known from here; it may be nothing.".into(),
    };
    format!(
        "Writes that others acknowledged with revision {} or a higher one may be lost: those that came after {} by the \
         ledger's clock and are not in this node's raft log. {least}",
        loss.from_revision,
        output::time(loss.after_ms),
    )
}
