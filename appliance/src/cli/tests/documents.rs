//! The commands and settings that the operator's pages tell people to type are ones that this binary takes.

use std::path::{Path, PathBuf};

use clap::Parser as _;

use crate::cli::Cli;
use crate::config::Config;

/// `docs/operate` and its runbooks: path and text of each page.
fn pages() -> Vec<(PathBuf, String)> {
    let operate = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operate");
    let listed = [operate.clone(), operate.join("runbooks")]
        .into_iter()
        .flat_map(|directory| std::fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display())));
    let paths =
        listed.map(|entry| entry.expect("an entry").path()).filter(|p| p.extension().is_some_and(|x| x == "md"));
    paths.map(|path| (path.clone(), std::fs::read_to_string(&path).expect("a page"))).collect()
}

/// Blocks of a page that are fenced as this language, without their indentation.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<(bool, String)> = None;
    for line in page.lines().map(str::trim) {
        match (line.strip_prefix("```"), &mut open) {
            (Some(named), None) => open = Some((named == language, String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take().filter(|(wanted, _)| *wanted).map(|(_, text)| text)),
            (None, Some((_, text))) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}

/// What a shell would hand to samovar, of each command of a block.
fn samovar_words(block: &str) -> Vec<Vec<String>> {
    let joined = block.replace("\\\n", " ");
    let joined = joined.replace("runuser -u samovar -- ", "");
    let lines = joined.lines().filter(|line| !line.starts_with('#'));
    let commands = lines.flat_map(|line| line.split(['|', ';', '&']));
    let words = commands.map(|command| command.split_whitespace().map(|w| w.trim_matches('"').to_owned()));
    words
        .filter_map(|words| {
            let mut words = words.skip_while(|w| w == "time" || w == "sudo" || w.contains('='));
            (words.next()? == "samovar").then(|| words.take_while(|w| !w.starts_with(['>', '<', '#'])).collect())
        })
        .collect()
}

#[test]
fn commands_of_the_operators_pages_parse() {
    let mut seen = 0;
    for (path, page) in pages() {
        for words in blocks(&page, "sh").iter().flat_map(|block| samovar_words(block)) {
            let line = words.join(" ");
            Cli::try_parse_from(std::iter::once("samovar".to_owned()).chain(words))
                .map(drop)
                .or_else(|e| if e.exit_code() == 0 { Ok(()) } else { Err(e) })
                .unwrap_or_else(|e| panic!("{}: samovar {line}: {e}", path.display()));
            seen += 1;
        }
    }
    assert!(seen >= 20, "only {seen} commands were found in docs/operate: is the page format another one?");
}

#[test]
fn settings_of_the_operators_pages_are_known() {
    let mut seen = 0;
    for (path, page) in pages() {
        for block in blocks(&page, "toml") {
            Config::parse(&path.display().to_string(), &block).unwrap_or_else(|e| panic!("{e}\nin\n{block}"));
            seen += 1;
        }
    }
    assert!(seen >= 5, "only {seen} settings were found in docs/operate: is the page format another one?");
}

#[test]
fn blocks_and_words_are_found() {
    let page = "1. text\n\n   ```sh\n   a\n   time samovar get k > f   # why\n   x | samovar put k - --data \\\n     d\n   ```\n```toml\nb\n```\n";
    assert_eq!(blocks(page, "toml"), ["b\n"]);
    let words = samovar_words(&blocks(page, "sh")[0]);
    assert_eq!(words, [vec!["get", "k"], vec!["put", "k", "-", "--data", "d"]]);
}
