//! Test vectors for the parts that proof files are made of: `tests/vectors/parts.json`.

use samovar_fuzz::forge::base64;
use serde_json::{Value, json};

use super::ledger::Ledger;
use crate::entry::{Entry, MapValue, commitment};
use crate::merkle::{Tree, leaf_hash};
use crate::proof::map::tests::ModelMap;
use crate::tiles::{Kind, Tile};

pub(super) fn json(ledger: &Ledger) -> Vec<u8> {
    let parts = json!({
        "entries": entries(ledger),
        "commitments": commitments(),
        "state_maps": state_maps(),
        "merkle_roots": merkle_roots(),
        "tiles": tiles(),
    });
    let mut text = serde_json::to_vec_pretty(&parts).unwrap();
    text.push(b'\n');
    text
}

/// Lines that are entries, with their leaf hash, and lines that are not.
fn entries(ledger: &Ledger) -> Vec<Value> {
    let good = [0, 1, 2, 3, 5, 267, 269, 270].map(|index| ledger.line(index).to_owned());
    let line = &good[2];
    let bad = [
        line.replace(",\"author\"", ", \"author\""),
        line.replace("\"author\":\"importer\",", ""),
        line.replace("\"importer\"", "\"\""),
        line.replace("importer", "imp\\u006frter"),
        line.replace("importer", "imp\u{85}rter"),
        line.replace("\"size\":5", "\"size\":5.0"),
        line.replace("\"size\":5", "\"size\":05"),
        line.replace("\"size\":5", "\"size\":9007199254740992"),
        line.replace("\"previous\":null,", ""),
        line.replace("flights/1", ""),
        line.replace("flights/1", &"k".repeat(513)),
        line.replace("text/plain", "text\\/plain"),
        line.replace("\"transaction\"", "\"other\""),
        format!("{line}\n"),
        r#"{"type":"transaction","time":1,"author":"a","operations":[]}"#.into(),
        r#"{"type":"transaction","time":1,"author":"a","operations":[{"delete":{"key":"k","previous":null}}]}"#.into(),
        r#"{"type":"transaction","time":1,"author":"a","operations":[{"delete":{"key":"k","previous":1}},{"delete":{"key":"k","previous":1}}]}"#.into(),
    ];
    let row = |line: String| {
        let accept = Entry::parse(line.as_bytes()).is_ok();
        json!({ "line": line, "accept": accept, "leaf_hash": base64(&leaf_hash(line.as_bytes())) })
    };
    good.into_iter().chain(bad).map(row).collect()
}

fn commitments() -> Vec<Value> {
    let row = |(salt, value): (u8, &str)| {
        let committed = commitment(&[salt; 32], value.as_bytes());
        json!({ "salt": base64(&[salt; 32]), "value": base64(value.as_bytes()), "commitment": base64(&committed) })
    };
    [(0, ""), (1, "value"), (255, "{\"n\":1}")].map(row).to_vec()
}

/// The root after each of a row of changes, from the empty map on.
fn state_maps() -> Vec<Value> {
    let mut map = ModelMap::default();
    let mut rows = vec![json!({ "change": null, "root": base64(&map.root()) })];
    for n in 0..12_u8 {
        let key = format!("key {}", n % 7);
        let change = if n == 9 {
            map.remove(&key);
            json!({ "key": key, "map_value": null })
        } else {
            let erased_by = (n > 9).then_some(100);
            let value = MapValue { revision: n.into(), commitment: [n; 32], erased_by };
            map.set(&key, &value);
            json!({ "key": key, "map_value": base64(&value.to_bytes()) })
        };
        rows.push(json!({ "change": change, "root": base64(&map.root()) }));
    }
    rows
}

/// Roots over the first entries of a log whose entry n is n in decimal.
fn merkle_roots() -> Vec<Value> {
    let mut tree = Tree::new();
    let mut rows = Vec::new();
    for size in [0, 1, 2, 3, 7, 8, 255, 256, 257, 1000] {
        while tree.size() < size {
            tree.push(leaf_hash(tree.size().to_string().as_bytes()), &mut Vec::new());
        }
        rows.push(json!({ "size": size, "root": base64(&tree.root()) }));
    }
    rows
}

fn tiles() -> Vec<Value> {
    let row = |(level, index, width): (Option<u8>, u64, u16)| {
        let kind = level.map_or(Kind::Entries, Kind::Hashes);
        json!({ "level": level, "index": index, "width": width, "path": Tile { kind, index, width }.to_string() })
    };
    [(Some(0), 0, 256), (Some(1), 5, 17), (None, 273, 112), (Some(0), 1_234_067, 256), (Some(7), 0, 1)]
        .map(row)
        .to_vec()
}
