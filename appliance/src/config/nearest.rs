//! "Did you mean": the known key nearest to an unknown one.

use super::{FIELDS, SECTIONS};

/// Most edits at which a key still counts as near.
const EDITS_MAX: usize = 3;

/// What to say of an unknown key.
pub(super) fn explain(key: &str) -> String {
    if let Some(field) = FIELDS.iter().find(|f| f.key == key) {
        return format!("`{key}` does not stand here; it belongs to section [{}]", field.section);
    }
    let names = SECTIONS.iter().map(|(name, _)| *name).chain(FIELDS.iter().map(|f| f.key));
    let near = names.map(|name| (edits(key, name), name)).min();
    match near {
        Some((distance, name)) if distance <= EDITS_MAX.min(key.len() / 2) => {
            format!("unknown key `{key}`; did you mean `{name}`?")
        }
        _ => format!("unknown key `{key}`; the keys stand in docs/reference/configuration.md"),
    }
}

/// Levenshtein distance, over bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_is_levenshtein() {
        for (a, b, want) in [("", "", 0), ("kitten", "sitting", 3), ("listen", "listne", 2), ("abc", "", 3)] {
            assert_eq!(edits(a, b), want, "{a:?} against {b:?}");
        }
    }
}
