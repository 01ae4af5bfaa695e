//! Trust policies (C2SP tlog-policy): which logs are known, which witnesses, and which sets of cosignatures suffice.
//!
//! The policy of a cluster names each node as a witness and has a group [`NODES`]: a node's cosignature says more than a
//! witness's (see `docs/reference/formats.md`), so what leans on the state root asks for that group besides the quorum.

use crate::note::{NoteError, Scheme, VerifierKey};

/// Name of the group of the cluster's own nodes.
pub const NODES: &str = "nodes";
/// Largest policy in bytes.
pub const POLICY_BYTES_MAX: usize = 48 * 1024;
/// Most logs, witnesses and groups, of each; the format asks for at least 32.
pub const POLICY_ITEMS_MAX: usize = 64;

/// Why a text is not a policy: the line, from 1, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy, line {line}: {what}")]
pub struct PolicyError {
    /// Number of the line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// A checked policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    logs: Vec<VerifierKey>,
    /// Witnesses and groups in the order of their definition; a group refers to earlier ones only.
    names: Vec<Named>,
    quorum: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    name: Vec<u8>,
    is: Definition,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Definition {
    Witness(Box<VerifierKey>),
    Group { threshold: usize, members: Vec<usize> },
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// Names the line and what is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, PolicyError> {
        let whole = |what: &str| PolicyError { line: 1, what: what.to_owned() };
        if text.len() > POLICY_BYTES_MAX {
            return Err(whole("a policy has at most 48 KiB"));
        }
        let lines = text.strip_suffix(b"\n").ok_or_else(|| whole("the last line does not end in a newline"))?;
        let mut parser = Parser::default();
        for (n, line) in lines.split(|b| *b == b'\n').enumerate() {
            parser.line(line).map_err(|what| PolicyError { line: n + 1, what })?;
        }
        let quorum =
            parser.quorum.ok_or_else(|| whole("it has no quorum line; \"quorum none\" asks for no witness"))?;
        Ok(Self { logs: parser.logs, names: parser.names, quorum })
    }

    /// The policy of a cluster: its log, and a majority of its nodes, each with its name and cosigning key.
    #[must_use]
    pub fn of_cluster(log: &VerifierKey, nodes: &[(String, VerifierKey)]) -> String {
        let witnesses: String = nodes.iter().map(|(name, key)| format!("witness {name} {key}\n")).collect();
        let members: String = nodes.iter().map(|(name, _)| format!(" {name}")).collect();
        let quorum = match nodes {
            [] => "quorum none\n".to_owned(),
            _ => format!("group {NODES} {}{members}\nquorum {NODES}\n", nodes.len() / 2 + 1),
        };
        format!("log {log}\n{witnesses}{quorum}")
    }

    /// Keys of the logs it accepts; none: the log is known otherwise.
    #[must_use]
    pub fn logs(&self) -> &[VerifierKey] {
        &self.logs
    }

    /// The witnesses: name in the policy, as far as it is UTF-8, and key.
    pub fn witnesses(&self) -> impl Iterator<Item = (String, &VerifierKey)> {
        self.names.iter().filter_map(|named| match &named.is {
            Definition::Witness(key) => Some((String::from_utf8_lossy(&named.name).into_owned(), &**key)),
            Definition::Group { .. } => None,
        })
    }

    /// Whether the quorum is reached when exactly the witnesses with the keys for which `cosigned` says so have cosigned.
    pub fn is_met(&self, cosigned: impl FnMut(&VerifierKey) -> bool) -> bool {
        let Some(quorum) = self.quorum else { return true };
        self.evaluate(cosigned).get(quorum).is_some_and(|met| *met)
    }

    /// Whether the group [`NODES`] is reached; `None` when the policy has no such group.
    pub fn nodes_met(&self, cosigned: impl FnMut(&VerifierKey) -> bool) -> Option<bool> {
        let group = |named: &Named| named.name == NODES.as_bytes() && matches!(named.is, Definition::Group { .. });
        let nodes = self.names.iter().position(group)?;
        self.evaluate(cosigned).get(nodes).copied()
    }

    /// For each name whether it has witnessed; one pass, as groups refer backwards only.
    fn evaluate(&self, mut cosigned: impl FnMut(&VerifierKey) -> bool) -> Vec<bool> {
        let mut met: Vec<bool> = Vec::with_capacity(self.names.len());
        for named in &self.names {
            met.push(match &named.is {
                Definition::Witness(key) => cosigned(key),
                Definition::Group { threshold, members } => {
                    members.iter().filter(|m| met.get(**m).is_some_and(|met| *met)).count() >= *threshold
                }
            });
        }
        met
    }
}

#[derive(Default)]
struct Parser {
    logs: Vec<VerifierKey>,
    names: Vec<Named>,
    /// Whether each name is already a member of a group.
    grouped: Vec<bool>,
    /// Outer: whether there was a quorum line; inner: `none` or a name.
    quorum: Option<Option<usize>>,
}

impl Parser {
    fn line(&mut self, line: &[u8]) -> Result<(), String> {
        if let Some(byte) = line.iter().find(|b| (**b < 0x20 && **b != b'\t') || **b == 0x7f) {
            return Err(format!("control character 0x{byte:02x} (a carriage return?)"));
        }
        let words: Vec<&[u8]> = line.split(|b| matches!(b, b' ' | b'\t')).filter(|w| !w.is_empty()).collect();
        match words.as_slice() {
            [] => Ok(()),
            [first, ..] if first.starts_with(b"#") => Ok(()),
            [b"log", vkey] | [b"log", vkey, _] => self.log(vkey),
            [b"witness", name, vkey] | [b"witness", name, vkey, _] => self.witness(name, vkey),
            [b"group", name, threshold, members @ ..] => self.group(name, threshold, members),
            [b"quorum", name] => self.set_quorum(name),
            _ => Err(
                "expected log VKEY [URL], witness NAME VKEY [URL], group NAME all|any|K MEMBER…, or quorum NAME|none"
                    .into(),
            ),
        }
    }

    fn log(&mut self, vkey: &[u8]) -> Result<(), String> {
        let key = parse_key(vkey, Scheme::Ed25519, "a log's key has type 0x01")?;
        if self.logs.iter().any(|known| known.public() == key.public()) {
            return Err("a log with this public key stands above".into());
        }
        bound(self.logs.len(), "logs")?;
        self.logs.push(key);
        Ok(())
    }

    fn witness(&mut self, name: &[u8], vkey: &[u8]) -> Result<(), String> {
        let key = parse_key(vkey, Scheme::Cosignature, "a witness's key has type 0x04")?;
        let witnesses =
            self.names.iter().filter_map(|n| if let Definition::Witness(key) = &n.is { Some(key) } else { None });
        if witnesses.clone().any(|known| known.public() == key.public()) {
            return Err("a witness with this public key stands above".into());
        }
        bound(witnesses.count(), "witnesses")?;
        self.define(name, Definition::Witness(Box::new(key)))
    }

    fn group(&mut self, name: &[u8], threshold: &[u8], members: &[&[u8]]) -> Result<(), String> {
        let groups = self.names.iter().filter(|n| matches!(n.is, Definition::Group { .. })).count();
        bound(groups, "groups")?;
        let mut indexes = Vec::with_capacity(members.len());
        for member in members {
            let index = self.find(member)?;
            if std::mem::replace(&mut self.grouped[index], true) {
                return Err(format!("{} is already a member of a group", String::from_utf8_lossy(member)));
            }
            indexes.push(index);
        }
        let threshold = match threshold {
            b"all" => members.len(),
            b"any" => 1,
            number => decimal(number).ok_or("the threshold is all, any or a number")?,
        };
        if threshold == 0 || threshold > members.len() {
            return Err(format!(
                "{threshold} of {} members: a group has members and asks for 1 to all of them",
                members.len()
            ));
        }
        self.define(name, Definition::Group { threshold, members: indexes })
    }

    fn set_quorum(&mut self, name: &[u8]) -> Result<(), String> {
        if self.quorum.is_some() {
            return Err("a quorum line stands above".into());
        }
        self.quorum = Some(if name == b"none" { None } else { Some(self.find(name)?) });
        Ok(())
    }

    fn define(&mut self, name: &[u8], is: Definition) -> Result<(), String> {
        if name == b"none" {
            return Err("the name none has its own meaning".into());
        }
        if self.find(name).is_ok() {
            return Err(format!("the name {} is taken", String::from_utf8_lossy(name)));
        }
        self.names.push(Named { name: name.to_vec(), is });
        self.grouped.push(false);
        Ok(())
    }

    fn find(&self, name: &[u8]) -> Result<usize, String> {
        let undefined = || format!("{} is not defined above", String::from_utf8_lossy(name));
        self.names.iter().position(|n| n.name == name).ok_or_else(undefined)
    }
}

fn bound(count: usize, what: &str) -> Result<(), String> {
    if count < POLICY_ITEMS_MAX { Ok(()) } else { Err(format!("a policy has at most {POLICY_ITEMS_MAX} {what}")) }
}

fn parse_key(text: &[u8], scheme: Scheme, otherwise: &str) -> Result<VerifierKey, String> {
    let text = std::str::from_utf8(text).map_err(|_| NoteError::Key("it is not UTF-8").to_string())?;
    let key = VerifierKey::parse(text).map_err(|e| e.to_string())?;
    if key.scheme() == scheme { Ok(key) } else { Err(otherwise.to_owned()) }
}

fn decimal(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
