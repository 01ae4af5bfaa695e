//! Completions, manual pages and the reference page, all from the definitions of the commands.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;

use super::Cli;
use crate::output;

pub(super) fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "samovar", &mut script);
    Ok(output::bytes(&script)?)
}

/// One page for the program and one for each command.
pub(super) fn man_pages(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut program = Cli::command();
    program.build();
    page(&program, "samovar", directory)
}

fn page(command: &clap::Command, name: &str, directory: &Path) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).title(name).render(&mut text)?;
    let path = directory.join(format!("{name}.1"));
    let written = File::create(&path).and_then(|mut file| file.write_all(&text));
    written.with_context(|| format!("cannot write {}", path.display()))?;
    for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
        page(sub, &format!("{name}-{}", sub.get_name()), directory)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    /// The reference page: the help of every command, in the order in which `--help` lists them.
    fn reference() -> String {
        let mut program = Cli::command().term_width(100);
        program.build();
        let mut text = String::from(
            "# Command line\n\nMade from the definitions of the commands; after a change: \
             `UPDATE=1 cargo test -p samovar reference_page`.\n",
        );
        section(&mut program, "samovar", &mut text);
        text
    }

    fn section(command: &mut clap::Command, name: &str, text: &mut String) {
        let help = command.render_long_help().to_string();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        writeln!(text, "\n## {name}\n\n```text\n{}\n```", help.join("\n").trim()).expect("a string takes everything");
        let names: Vec<String> =
            command.get_subcommands().map(|c| c.get_name().to_owned()).filter(|n| n != "help").collect();
        for sub in names {
            if let Some(command) = command.find_subcommand_mut(&sub) {
                section(command, &format!("{name} {sub}"), text);
            }
        }
    }

    #[test]
    fn reference_page_is_that_of_the_definitions() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/cli.md");
        let expected = reference();
        if std::env::var_os("UPDATE").is_some() {
            File::create(&path).expect("create").write_all(expected.as_bytes()).expect("write");
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        let differs = found.lines().zip(expected.lines()).position(|(a, b)| a != b);
        assert!(
            found == expected,
            "docs/reference/cli.md differs from the definitions, first at line {differs:?}; run again with UPDATE=1"
        );
    }

    #[test]
    fn every_command_has_a_manual_page() {
        let dir = tempfile::tempdir().expect("temporary directory");
        man_pages(dir.path()).expect("pages");
        for name in ["samovar", "samovar-import", "samovar-api-key-create", "samovar-config-check"] {
            let text = fs::read_to_string(dir.path().join(format!("{name}.1"))).expect(name);
            assert!(text.contains(".TH") && text.contains(".SH SYNOPSIS"), "{name}.1 is a manual page");
        }
    }
}
