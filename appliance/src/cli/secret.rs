//! Passwords on their way in: asked for at the terminal without showing them, or read from a file. Never an argument,
//! which every process of the machine could read.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use super::Usage;

/// Longest password, in bytes; a bound against `--password-file` on something else.
const BYTES_MAX: u64 = 4096;

/// The password in a file, or asked for; `twice` for new ones.
pub(super) fn password(file: Option<&Path>, prompt: &str, twice: bool) -> anyhow::Result<String> {
    let Some(path) = file else { return ask(prompt, twice) };
    let read = || -> anyhow::Result<String> {
        if path.metadata()?.len() > BYTES_MAX {
            bail!("is too large for a password");
        }
        let text = std::fs::read_to_string(path)?;
        Ok(text.strip_suffix('\n').map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t)).to_owned())
    };
    read().with_context(|| format!("{}", path.display()))
}

fn ask(prompt: &str, twice: bool) -> anyhow::Result<String> {
    let Ok(terminal) = OpenOptions::new().read(true).write(true).open("/dev/tty") else {
        return Err(Usage("there is no terminal to ask for the password: pass a file with it".into()).into());
    };
    let first = hidden(&terminal, prompt)?;
    if twice && hidden(&terminal, "The same again: ")? != first {
        bail!("the two passwords differ");
    }
    Ok(first)
}

/// One line from the terminal, not shown.
fn hidden(terminal: &File, prompt: &str) -> anyhow::Result<String> {
    let quiet = Quiet::of(terminal).context("cannot keep the terminal from showing the password")?;
    let mut to = terminal;
    to.write_all(prompt.as_bytes())?;
    let mut line = String::new();
    let read = BufReader::new(std::io::Read::take(terminal, BYTES_MAX)).read_line(&mut line);
    drop(quiet);
    to.write_all(b"\n")?;
    read.context("cannot read the password")?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// A terminal that shows nothing until this is dropped.
struct Quiet<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn of(terminal: &'a File) -> rustix::io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(terminal, OptionalActions::Flush, &quiet)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // Nothing is left to do about a terminal that is gone.
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_one_password() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("password");
        for (content, password) in [("a b \n", "a b "), ("a\r\n", "a"), ("a", "a"), ("a\n\n", "a\n")] {
            std::io::Write::write_all(&mut File::create(&path).expect("made"), content.as_bytes()).expect("written");
            assert_eq!(super::password(Some(&path), "", true).expect("read"), password, "of {content:?}");
        }
        let said = super::password(Some(&dir.path().join("none")), "", false).expect_err("no file");
        assert!(format!("{said:#}").contains("none"), "names the file: {said:#}");
    }
}
