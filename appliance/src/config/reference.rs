//! The reference page and the sample file, made from the field docs.

use std::fmt::Write as _;

use super::{ConfigFile, FIELDS, SECTIONS};

/// A configuration file with every key at its default, commented out, and what it means.
pub(crate) fn sample() -> String {
    let mut out = String::from("# Samovar. Every key is optional; what stands here commented out is its default.\n");
    for (section, doc) in SECTIONS {
        let _ = write!(out, "\n#{}\n[{section}]\n", doc.join("\n#"));
        for field in FIELDS.iter().filter(|f| f.section == *section) {
            let _ = writeln!(out, "#{}\n# {} = {}", field.doc.join("\n#"), field.key, default_of(section, field.key));
        }
    }
    out
}

/// The reference page, Markdown.
pub(crate) fn reference() -> String {
    let mut out = String::from(
        "# Configuration\n\n\
         `samovar serve` reads `--config FILE`, else `samovar.toml` in the directory that `--data` names, else\n\
         `/etc/samovar/samovar.toml`, else the defaults: an empty file is valid. An unknown key is an error that names file,\n\
         line, column and the nearest key; `samovar config check FILE` looks without starting anything. Durations are written\n\
         `\"250ms\"`, `\"5s\"`, `\"2m\"`, `\"1h\"`, `\"3d\"`; sizes `\"512B\"`, `\"8KiB\"`, `\"64MiB\"`, `\"1GiB\"`,\n\
         quotas `\"60/1m\"` (60 requests at once, and 60 more each minute).\n\n\
         This page is made from the source; a test keeps them equal.\n",
    );
    for (section, doc) in SECTIONS {
        let _ = write!(out, "\n## `[{section}]`\n\n{}\n\n| key | default | meaning |\n|---|---|---|\n", joined(doc));
        for field in FIELDS.iter().filter(|f| f.section == *section) {
            let _ = writeln!(out, "| `{}` | `{}` | {} |", field.key, default_of(section, field.key), joined(field.doc));
        }
    }
    out
}

fn joined(doc: &[&str]) -> String {
    doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

fn default_of(section: &str, key: &str) -> String {
    let whole = toml::Value::try_from(ConfigFile::default()).ok();
    whole.and_then(|v| v.get(section)?.get(key).map(ToString::to_string)).unwrap_or_default()
}
