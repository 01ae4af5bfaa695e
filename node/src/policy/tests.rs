use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::note::Signer;

fn key(name: &str, scheme: Scheme, seed: u8) -> VerifierKey {
    Signer::from_seed(name, scheme, &[seed; 32]).unwrap().verifier_key().clone()
}

fn log() -> VerifierKey {
    key("example.com/log", Scheme::Ed25519, 200)
}

fn witness(n: u8) -> VerifierKey {
    key(&format!("w{n}"), Scheme::Cosignature, n)
}

/// `W1`…`W6` for the witness lines of that number.
fn parse(text: &str) -> Result<Policy, PolicyError> {
    let text =
        (1..=9).fold(text.to_owned(), |t, n| t.replace(&format!("W{n}\n"), &format!("witness {n} {}\n", witness(n))));
    Policy::parse(text.replace("LOG", &log().to_string()).as_bytes())
}

fn met(policy: &Policy, cosigned: &[u8]) -> bool {
    let keys: Vec<_> = cosigned.iter().map(|n| witness(*n)).collect();
    policy.is_met(|key| keys.contains(key))
}

#[test]
fn the_example_of_the_specification_is_evaluated() {
    let text = "log LOG\n\nW1\nW2\nW3\n# the first operator\ngroup X-witnesses 2 1 2 3\n\nW4\nW5\nW6\n\
        group Y-witnesses any 4 5 6\n\ngroup X-and-Y all X-witnesses Y-witnesses\nquorum X-and-Y\n";
    let policy = parse(text).unwrap();
    assert_eq!(policy.logs(), [log()]);
    for (cosigned, expected) in [
        (vec![1, 2, 4], true),
        (vec![2, 3, 6], true),
        (vec![1, 2, 3], false),
        (vec![1, 4, 5, 6], false),
        (vec![], false),
        (vec![1, 2, 3, 4, 5, 6], true),
    ] {
        assert_eq!(met(&policy, &cosigned), expected, "quorum with {cosigned:?}");
    }
    assert_eq!(policy.nodes_met(|_| true), None, "there is no group of nodes");
}

#[test]
fn the_policy_of_a_cluster_asks_for_a_majority_of_nodes() {
    for (count, majority) in [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)] {
        let nodes: Vec<_> = (1..=count).map(|n| (format!("node-{n}"), witness(n))).collect();
        let policy = Policy::parse(Policy::of_cluster(&log(), &nodes).as_bytes()).unwrap();
        for cosigned in 0..=count {
            let signed: Vec<u8> = (1..=cosigned).collect();
            assert_eq!(met(&policy, &signed), cosigned >= majority, "{cosigned} of {count}");
            let keys: Vec<_> = signed.iter().map(|n| witness(*n)).collect();
            assert_eq!(policy.nodes_met(|key| keys.contains(key)), Some(cosigned >= majority));
        }
        assert_eq!(policy.witnesses().map(|(name, key)| (name, key.clone())).collect::<Vec<_>>(), nodes);
    }
    let alone = Policy::parse(Policy::of_cluster(&log(), &[]).as_bytes()).unwrap();
    assert!(met(&alone, &[]));
}

#[test]
fn every_form_that_the_specification_allows_is_read() {
    for text in [
        "quorum none\n",
        "\n \t\n  # comment\n\tquorum\t none \n\n",
        "log LOG https://log.example/\nW1\nquorum 1\n",
        "W1\nW2\ngroup g 01 1 2\nquorum g\n",
        "W1\nquorum 1\nW2\nlog LOG\n",
        "W1\nW2\ngroup g any 1\ngroup h all g 2\nquorum none\n",
    ] {
        assert!(parse(text).is_ok(), "{text:?}: {:?}", parse(text));
    }
    let vkey = witness(1).to_string();
    let opaque = [b"witness \xff\xfe ".as_slice(), vkey.as_bytes(), b" http://\xff\nquorum \xff\xfe\n"];
    assert!(Policy::parse(&opaque.concat()).is_ok_and(|p| met(&p, &[1]) && !met(&p, &[])), "names are opaque octets");
}

#[test]
fn other_policies_are_refused_with_the_line() {
    let other_name = format!("witness other {}", key("other", Scheme::Cosignature, 1));
    let log_again = format!("log {}", key("other", Scheme::Ed25519, 200));
    for (what, line, text) in [
        ("nothing", 1, String::new()),
        ("no quorum", 1, "W1\n".into()),
        ("no newline at the end", 1, "quorum none".into()),
        ("two quorums", 2, "quorum none\nquorum none\n".into()),
        ("an undefined quorum", 1, "quorum x\n".into()),
        ("a quorum before its witness", 1, "quorum 1\nW1\n".into()),
        ("an undefined member", 2, "W1\ngroup g any 1 2\nquorum g\n".into()),
        ("none as a member", 2, "W1\ngroup g any none\nquorum g\n".into()),
        ("a group in itself", 1, "group g any g\nquorum g\n".into()),
        ("a name twice", 2, format!("W1\nwitness 1 {}\nquorum none\n", witness(2))),
        ("none as a name", 1, format!("witness none {}\nquorum none\n", witness(1))),
        ("a witness key twice", 2, format!("W1\n{other_name}\nquorum none\n")),
        ("a log key twice", 2, format!("log LOG\n{log_again}\nquorum none\n")),
        ("a member twice in a group", 2, "W1\ngroup g 2 1 1\nquorum g\n".into()),
        ("a member of two groups", 3, "W1\ngroup g any 1\ngroup h any 1\nquorum g\n".into()),
        ("no members", 1, "group g all\nquorum none\n".into()),
        ("a threshold of 0", 2, "W1\ngroup g 0 1\nquorum g\n".into()),
        ("a threshold above the members", 2, "W1\ngroup g 2 1\nquorum g\n".into()),
        ("a signed threshold", 2, "W1\ngroup g +1 1\nquorum g\n".into()),
        ("a huge threshold", 2, "W1\ngroup g 99999999999999999999999 1\nquorum g\n".into()),
        ("an unknown line", 1, "witnesses 1\nquorum none\n".into()),
        ("a quorum of two", 3, "W1\nW2\nquorum 1 2\n".into()),
        ("a log with too much", 1, "log LOG url more\nquorum none\n".into()),
        ("a carriage return", 1, "quorum none\r\n".into()),
        ("a delete character", 1, "# \u{7f}\nquorum none\n".into()),
        ("a witness's key for a log", 1, format!("log {}\nquorum none\n", witness(1))),
        ("a log's key for a witness", 1, "witness a LOG\nquorum none\n".into()),
        ("a malformed key", 1, "log x+y+z\nquorum none\n".into()),
    ] {
        let refused = parse(&text).expect_err(what);
        assert_eq!(refused.line, line, "{what}: {refused}");
    }
    assert!(Policy::parse(&vec![b'\n'; POLICY_BYTES_MAX + 1]).is_err());
}

#[test]
fn bounds_hold_at_their_edge() {
    let witnesses = |count: u8| (1..=count).map(|n| format!("witness {n} {}\n", witness(n))).collect::<String>();
    let logs = |count: u8| (1..=count).map(|n| format!("log {}\n", key("l", Scheme::Ed25519, n))).collect::<String>();
    let groups = |count: u8| {
        let first = format!("witness w {}\ngroup g1 any w\n", witness(1));
        first + &(2..=count).map(|n| format!("group g{n} any g{}\n", n - 1)).collect::<String>()
    };
    for (what, at, beyond) in
        [("witnesses", witnesses(64), witnesses(65)), ("logs", logs(64), logs(65)), ("groups", groups(64), groups(65))]
    {
        assert!(Policy::parse((at + "quorum none\n").as_bytes()).is_ok(), "64 {what}");
        let refused = Policy::parse((beyond + "quorum none\n").as_bytes()).expect_err(what);
        assert!(refused.what.contains("at most 64"), "{refused}");
    }
}

#[test]
fn mutated_policies_never_panic() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let nodes: Vec<_> = (1..=3).map(|n| (format!("n{n}"), witness(n))).collect();
    let text = Policy::of_cluster(&log(), &nodes).into_bytes();
    let mut accepted = 0;
    for _ in 0..20_000 {
        let mut bytes = text.clone();
        for _ in 0..rng.gen_range(1..4) {
            let at = rng.gen_range(0..bytes.len().max(1));
            match rng.gen_range(0..5) {
                _ if bytes.is_empty() => {}
                0 => bytes[at] ^= 1 << rng.gen_range(0..8),
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, b"\n \t#1+\xff"[rng.gen_range(0..7)]),
                3 => drop(bytes.drain(at..(at + 30).min(bytes.len()))),
                _ => bytes.truncate(at),
            }
        }
        if let Ok(policy) = Policy::parse(&bytes) {
            accepted += 1;
            assert!(policy.is_met(|_| true), "all witnesses together fulfil every policy");
        }
    }
    assert!(accepted > 0, "changes of names and comments give policies");
}
