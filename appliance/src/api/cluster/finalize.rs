//! `/v1/cluster/format`: which format of commands is in force, and its raising once nobody is left who could not read what is
//! proposed then ([`samovar_node::format`]). There is no way back, so it waits for the spare slot of every box as well.

use samovar_node::format::{self, InForce};

use super::*;
use crate::auth::{COMMANDS, FORMATS};

#[derive(Serialize)]
struct Format {
    /// The newest format that may be proposed.
    in_force: u8,
    /// The newest that the version of the node that answers reads: what finalizing makes of it.
    newest: u8,
    /// What keeps it from being finalized, a sentence each.
    waits_for: Vec<String>,
}

/// `GET /v1/cluster/format`.
pub(crate) async fn show(call: Call) -> Handled {
    let app = &call.app;
    let in_force = number(in_force(&app.node).await?.as_ref());
    let waits_for = waits_for(&view::all(app).await?, format::NEWEST);
    render::json(StatusCode::OK, &Format { in_force, newest: format::NEWEST, waits_for })
}

/// `POST /v1/cluster/format`: finalizes. 200 and no entry when there is nothing to do.
pub(crate) async fn finalize(call: Call) -> Handled {
    let (app, node) = (&call.app, &call.app.node);
    node.barrier().await?;
    let held = in_force(node).await?;
    let before = number(held.as_ref());
    let done = Format { in_force: before.max(format::NEWEST), newest: format::NEWEST, waits_for: Vec::new() };
    if before >= format::NEWEST {
        return render::json(StatusCode::OK, &done);
    }
    let rows = NODES.all(node).await?;
    let waits_for = waits_for(&view::all(app).await?, format::NEWEST);
    if !waits_for.is_empty() {
        let detail = format!("format {} cannot be put in force yet: {}", format::NEWEST, waits_for.join("; "));
        return Err(Problem::conflict("finalize-waits", detail).with("waits_for", waits_for));
    }
    // Nobody was admitted meanwhile.
    let nobody_new = NODES.unchanged(&join::next_id(&rows, node).to_string(), None)?;
    let requirements = vec![FORMATS.unchanged(COMMANDS, held.map(|held| held.revision))?, nobody_new];
    let put = FORMATS.put(COMMANDS, &InForce { format: format::NEWEST })?;
    let committed = commit(node, &call.principal.id, requirements, vec![put]).await?;
    tracing::info!(
        from = before,
        to = format::NEWEST,
        "the ledger was finalized: older versions cannot read it any more"
    );
    Ok(render::committed(render::json(StatusCode::OK, &done)?, &committed))
}

/// The row, as this node has it.
async fn in_force(node: &Node) -> Result<Option<Stored<InForce>>, Problem> {
    FORMATS.find(node, COMMANDS).await
}

/// The format that a row puts in force; without one, the first.
fn number(row: Option<&Stored<InForce>>) -> u8 {
    row.map_or(format::FIRST, |stored| stored.row.format)
}

/// Refuses a node that would not read what is proposed here; what must still hold when it is admitted.
pub(super) async fn check_joining(node: &Node, reads: Option<u8>) -> Result<samovar_node::Requirement, Problem> {
    let held = in_force(node).await?;
    let (in_force, reads) = (number(held.as_ref()), reads.unwrap_or(format::FIRST));
    if reads < in_force {
        let detail = format!(
            "the ledger was finalized for commands of format {in_force}, the version of this node reads {reads}: install the version \
             that the other nodes have, and join with it"
        );
        return Err(Problem::conflict("version-too-old", detail));
    }
    FORMATS.unchanged(COMMANDS, held.map(|held| held.revision))
}

/// Who would not read a format, or might not.
fn waits_for(nodes: &[view::Shown], format: u8) -> Vec<String> {
    let mut waits = Vec::new();
    for shown in nodes {
        let name = &shown.name;
        match (shown.format, shown.spare_format) {
            _ if !shown.live => waits.push(format!("{name} is not heard of: start it, or remove it")),
            (None, _) => waits.push(format!("{name} has not said yet what it reads: ask again")),
            (Some(reads), _) if reads < format => {
                waits.push(format!("{name} runs a version that reads format {reads}: update it"));
            }
            (_, Some(reads)) if reads < format => waits.push(format!(
                "{name} could go back to the version in its spare slot, which reads format {reads}: install the version that runs there too"
            )),
            _ => {}
        }
    }
    waits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_that_is_written_is_the_one_that_the_node_goes_by() {
        assert_eq!(FORMATS.key(COMMANDS).expect("an id").as_str(), format::KEY);
    }

    #[test]
    fn finalizing_waits_for_every_node_and_its_spare_slot() {
        let shown = |live, format, spare_format| {
            let mut shown = view::Shown::example("box-02");
            (shown.live, shown.format, shown.spare_format) = (live, format, spare_format);
            shown
        };
        for (node, waits) in [
            (shown(true, Some(6), None), ""),
            (shown(true, Some(6), Some(6)), ""),
            (shown(true, Some(7), Some(9)), ""),
            (shown(false, Some(6), Some(6)), "box-02 is not heard of"),
            (shown(true, None, None), "has not said yet"),
            (shown(true, Some(5), None), "runs a version that reads format 5"),
            (shown(true, Some(6), Some(5)), "spare slot, which reads format 5"),
        ] {
            let said = waits_for(&[shown(true, Some(6), None), node.clone()], 6).join("; ");
            assert!(
                said.is_empty() == waits.is_empty() && said.contains(waits),
                "{node:?}: {said:?}, expected {waits:?}"
            );
        }
    }
}
