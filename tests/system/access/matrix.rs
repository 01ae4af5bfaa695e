//! The hand-written matrix, read and walked.

use std::collections::BTreeSet;

use hyper::Method;
use samovar_tests::Client;

use super::people::{KINDS, Kind, People, Person, ROLES};

const MATRIX: &str = include_str!("../access.matrix");
/// Runs only the lines of the matrix that hold this text.
const ONE_LINE: &str = "SAMOVAR_LINE";

/// A request with what everybody gets.
struct Line {
    number: usize,
    kinds: Vec<Kind>,
    method: Method,
    target: &'static str,
    body: Option<&'static str>,
    nobody: u16,
    unlimited: Vec<u16>,
    inside: Vec<u16>,
    outside: Option<Vec<u16>>,
}

fn read() -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    let mut kinds = KINDS.to_vec();
    for (at, text) in MATRIX.lines().enumerate() {
        let (number, text) = (at + 1, text.trim());
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        if let Some(body) = text.strip_prefix("> ") {
            lines.last_mut().expect("a body follows a request").body = Some(body);
        } else if text.starts_with('@') {
            let named = |name: &str| Kind::named(name).unwrap_or_else(|| panic!("line {number}: {name} is no kind"));
            kinds = text.split_whitespace().map(|word| named(&word[1..])).collect();
        } else {
            lines.push(line(number, text, std::mem::replace(&mut kinds, KINDS.to_vec())));
        }
    }
    lines
}

fn line(number: usize, text: &'static str, kinds: Vec<Kind>) -> Line {
    let mut blocks = text.split('|');
    let first: Vec<_> = blocks.next().expect("a request").split_whitespace().collect();
    let [method, target, nobody] = first[..] else { panic!("line {number}: METHOD TARGET STATUS | …") };
    let statuses = |block: &str| -> Vec<u16> {
        let all: Vec<_> = block.split_whitespace().map(|s| s.parse().expect("a status")).collect();
        assert_eq!(all.len(), ROLES.len(), "line {number}: a status for each role");
        all
    };
    let mut block = || blocks.next().map(statuses);
    let line = Line {
        number,
        kinds,
        method: method.parse().expect("a method"),
        target,
        body: None,
        nobody: nobody.parse().expect("a status"),
        unlimited: block().unwrap_or_else(|| panic!("line {number}: no statuses of the unlimited")),
        inside: block().unwrap_or_else(|| panic!("line {number}: no statuses of the limited")),
        outside: block(),
    };
    assert!(blocks.next().is_none(), "line {number}: too many blocks");
    line
}

impl Line {
    /// The same request about a key or entry within the prefix, or outside.
    fn fill(&self, text: &str, people: &People, inside: bool) -> String {
        let (key, n) = if inside { ("in/k", people.inside) } else { ("out/k", people.outside) };
        text.replace("{key}", key)
            .replace("{n}", &n.to_string())
            .replace("{height}", "1")
            .replace("{hash}", &"0".repeat(64))
            .replace("{unique}", &people.unique().to_string())
    }

    fn names_a_key(&self) -> bool {
        [Some(self.target), self.body].into_iter().flatten().any(|t| t.contains("{key}") || t.contains("{n}"))
    }

    async fn status(&self, people: &People, who: Option<&Person>, client: &mut Client, inside: bool) -> u16 {
        let target = self.fill(self.target, people, inside);
        if target.starts_with("/v1/watch") {
            // Its answer has no end, and takes a connection with it.
            return people.connect(who).await.status(&target).await.expect("an answer");
        }
        let json = [("content-type", "application/json")];
        let (headers, body) = match self.body {
            Some(body) => (&json[..], self.fill(body, people, inside)),
            None => (&[][..], String::new()),
        };
        client.request(self.method.clone(), &target, headers, body).await.expect("an answer").status
    }

    /// What a person is to get, inside and outside.
    fn expected(&self, person: &Person) -> Vec<(bool, u16)> {
        if !person.limited {
            return vec![(true, self.unlimited[person.role])];
        }
        let outside = self.outside.as_ref().map(|all| (false, all[person.role]));
        [(true, self.inside[person.role])].into_iter().chain(outside).collect()
    }
}

/// Every request of the matrix by everybody; the number of requests, and what came otherwise than it says.
pub(super) async fn walk(people: &People) -> (usize, Vec<String>) {
    let wanted = std::env::var(ONE_LINE).unwrap_or_default();
    let (mut asked, mut wrong) = (0, Vec::new());
    let mut nobody = people.connect(None).await;
    let mut clients = Vec::new();
    for person in &people.all {
        clients.push(people.connect(Some(person)).await);
    }
    for line in read().iter().filter(|l| l.target.contains(&wanted)) {
        let got = line.status(people, None, &mut nobody, true).await;
        asked += 1;
        note(&mut wrong, line, "nobody", true, line.nobody, got);
        for (person, client) in people.all.iter().zip(&mut clients).filter(|(p, _)| line.kinds.contains(&p.kind)) {
            for (inside, want) in line.expected(person) {
                let got = line.status(people, Some(person), client, inside).await;
                asked += 1;
                note(&mut wrong, line, &person.name(), inside, want, got);
            }
        }
    }
    (asked, wrong)
}

fn note(wrong: &mut Vec<String>, line: &Line, who: &str, inside: bool, want: u16, got: u16) {
    if want != got {
        let place = if line.names_a_key() && !inside { ", outside" } else { "" };
        wrong.push(format!(
            "access.matrix:{}: {} {} as {who}{place}: expected {want}, got {got}",
            line.number, line.method, line.target
        ));
    }
}

/// What the file lacks: routes of the description, kinds of credentials on a route, blocks on a line; and what it lists
/// that is no route.
pub(super) fn gaps(document: &serde_json::Value) -> Vec<String> {
    let lines = read();
    let mut routes = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys().filter(|m| *m != "head") {
            routes.insert((method.to_uppercase(), path.clone()));
        }
    }
    let mut gaps = Vec::new();
    let mut listed = vec![BTreeSet::new(); lines.len()];
    for (method, pattern) in &routes {
        let mut kinds = BTreeSet::new();
        for (at, line) in lines.iter().enumerate() {
            if line.method.as_str() == method && fits(pattern, line.target) {
                kinds.extend(line.kinds.iter().map(|k| k.name()));
                listed[at].insert(pattern);
            }
        }
        for kind in KINDS.iter().filter(|k| !kinds.contains(k.name())) {
            gaps.push(format!("{method} {pattern} is not listed for the credential `{}`", kind.name()));
        }
    }
    for (line, listed) in lines.iter().zip(listed) {
        if listed.is_empty() {
            gaps.push(format!("line {}: {} {} is no route", line.number, line.method, line.target));
        }
        if line.names_a_key() != line.outside.is_some() {
            gaps.push(format!("line {}: a third block belongs to requests with {{key}} or {{n}}", line.number));
        }
    }
    gaps
}

/// Whether a target is one of a route's. A placeholder of the matrix stands for one segment.
fn fits(pattern: &str, target: &str) -> bool {
    let path = target.split('?').next().unwrap_or("");
    let Some((before, rest)) = pattern.split_once('{') else { return pattern == path };
    let (name, after) = rest.split_once('}').expect("a parameter ends");
    let middle = path.strip_prefix(before).and_then(|p| p.strip_suffix(after));
    middle.is_some_and(|m| matches!(name, "key" | "tile") || !m.contains('/'))
}
