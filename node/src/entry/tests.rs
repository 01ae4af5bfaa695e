use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ring::digest::SHA256;

use super::*;
use crate::canonical::NUMBER_MAX;

fn rng() -> StdRng {
    let seed = rand::random();
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

fn put(key: &str) -> Change<'_> {
    Change::Put {
        key: key.into(),
        previous: None,
        commitment: [7; 32],
        size: 5,
        media_type: "text/plain".into(),
        blob: false,
    }
}

fn text(rng: &mut StdRng, bytes_max: usize) -> String {
    let alphabet: Vec<char> = "abcz019~/ \"\\{}[]:,é日🫖".chars().collect();
    let mut text = String::from("k");
    while rng.gen_range(0..12) > 0 {
        let c = alphabet[rng.gen_range(0..alphabet.len())];
        if text.len() + c.len_utf8() <= bytes_max {
            text.push(c);
        }
    }
    text
}

fn number(rng: &mut StdRng) -> u64 {
    rng.gen_range(0..=NUMBER_MAX) >> rng.gen_range(0..53)
}

fn maybe(rng: &mut StdRng) -> Option<u64> {
    rng.r#gen::<bool>().then(|| number(rng))
}

fn change(rng: &mut StdRng, n: usize) -> Change<'static> {
    let key = Cow::Owned(format!("{}{n}", text(rng, 500)));
    match rng.gen_range(0..4) {
        0 => Change::Delete { key, previous: number(rng) },
        1 => Change::Erase { key, revision: number(rng), previous: maybe(rng) },
        _ => Change::Put {
            key,
            previous: maybe(rng),
            commitment: rng.r#gen(),
            size: number(rng),
            media_type: text(rng, 127).into(),
            blob: rng.r#gen(),
        },
    }
}

fn entry(rng: &mut StdRng) -> Entry<'static> {
    let time_ms = number(rng);
    let author = Cow::Owned(text(rng, 128));
    match rng.gen_range(0..6) {
        0 => {
            let height = number(rng).max(1);
            let previous = (height > 1).then(|| rng.r#gen());
            Entry::Block(Block { height, time_ms, count: number(rng), previous, state: rng.r#gen() })
        }
        1 => {
            let mut ids = || (0..rng.gen_range(0..6)).map(|_| number(rng)).collect();
            Entry::Membership(Membership { time_ms, voters: ids(), learners: ids() })
        }
        2 => Entry::Cosigners(Cosigners {
            time_ms,
            author,
            log: text(rng, 200).into(),
            cosigners: (0..rng.gen_range(0..6)).map(|_| text(rng, 200).into()).collect(),
            policy: format!("log x\n\tquorum {}\r\n\u{1}", text(rng, 200)).into(),
        }),
        3 => Entry::Recovery(Recovery {
            keys: Cosigners {
                time_ms,
                author,
                log: text(rng, 200).into(),
                cosigners: vec![text(rng, 200).into()],
                policy: text(rng, 200).into(),
            },
            reason: text(rng, 200).into(),
            last: format!("origin\n1\n{}\n", text(rng, 200)).into(),
            known: rng.r#gen::<bool>().then(|| text(rng, 200).into()),
        }),
        _ => {
            let changes = (0..rng.gen_range(1..8)).map(|n| change(rng, n)).collect();
            Entry::Transaction(Transaction { time_ms, author, changes })
        }
    }
}

#[test]
fn the_lines_are_those_of_the_format() {
    let changes = vec![
        put("a/\"b\\"),
        Change::Put {
            key: "c".into(),
            previous: Some(3),
            commitment: [0xff; 32],
            size: 59,
            media_type: "text/x".into(),
            blob: true,
        },
        Change::Delete { key: "d".into(), previous: 4 },
        Change::Erase { key: "e".into(), revision: 5, previous: Some(6) },
    ];
    let transaction = Entry::Transaction(Transaction { time_ms: 1_700_000_000_000, author: "p1".into(), changes });
    let block = Block { height: 2, time_ms: 9, count: 1, previous: Some([1; 32]), state: [2; 32] };
    let cosigners = Cosigners {
        time_ms: 9,
        author: "p1".into(),
        log: "l+00+x".into(),
        cosigners: vec!["a".into(), "b".into()],
        policy: "quorum none\n".into(),
    };
    let first = Block { height: 1, time_ms: 0, count: 0, previous: None, ..block };
    let cases = [
        (
            transaction,
            format!(
                concat!(
                    r#"{{"type":"transaction","time":1700000000000,"author":"p1","operations":["#,
                    r#"{{"put":{{"key":"a/\"b\\","previous":null,"commitment":"{}","size":5,"media":"text/plain"}}}},"#,
                    r#"{{"put":{{"key":"c","previous":3,"commitment":"{}","size":59,"media":"text/x","blob":true}}}},"#,
                    r#"{{"delete":{{"key":"d","previous":4}}}},{{"erase":{{"key":"e","revision":5,"previous":6}}}}]}}"#
                ),
                "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
                "//////////////////////////////////////////8=",
            ),
        ),
        (
            Entry::Block(block),
            format!(
                r#"{{"type":"block","height":2,"time":9,"count":1,"previous":"{}","state":"{}"}}"#,
                "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="
            ),
        ),
        (
            Entry::Block(first),
            format!(
                r#"{{"type":"block","height":1,"time":0,"count":0,"previous":null,"state":"{}"}}"#,
                "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="
            ),
        ),
        (
            Entry::Membership(Membership { time_ms: 9, voters: vec![1, 2], learners: vec![] }),
            r#"{"type":"membership","time":9,"voters":[1,2],"learners":[]}"#.into(),
        ),
        (
            Entry::Recovery(Recovery {
                keys: cosigners.clone(),
                reason: "fire".into(),
                last: "l\n1\n".into(),
                known: Some("l\n2\n".into()),
            }),
            concat!(
                r#"{"type":"recovery","time":9,"author":"p1","log":"l+00+x","cosigners":["a","b"],"policy":"quorum none\n","#,
                r#""reason":"fire","last":"l\n1\n","known":"l\n2\n"}"#
            )
            .into(),
        ),
        (
            Entry::Cosigners(cosigners),
            r#"{"type":"cosigners","time":9,"author":"p1","log":"l+00+x","cosigners":["a","b"],"policy":"quorum none\n"}"#
                .into(),
        ),
    ];
    for (entry, line) in cases {
        assert_eq!(String::from_utf8(entry.to_line()).unwrap(), line);
        assert_eq!(Entry::parse(line.as_bytes()), Ok(entry), "{line}");
    }
}

#[test]
fn reading_and_writing_are_inverse_and_serde_reads_the_same() {
    let mut rng = rng();
    for _ in 0..5_000 {
        let entry = entry(&mut rng);
        let line = entry.to_line();
        assert_eq!(Entry::parse(&line).as_ref(), Ok(&entry), "{}", String::from_utf8_lossy(&line));
        let json: serde_json::Value = serde_json::from_slice(&line).expect("every line is JSON");
        assert_eq!(json["time"].as_u64(), Some(entry.time_ms()));
        for (n, change) in entry.changes().iter().enumerate() {
            let (_, operation) = json["operations"][n].as_object().unwrap().iter().next().unwrap();
            assert_eq!(operation["key"].as_str(), Some(change.key()));
            assert_eq!(find_change(&line, change.key()).unwrap().as_ref(), Some(change));
        }
        assert_eq!(find_change(&line, "no such key"), Ok(None));
    }
}

#[test]
fn a_mutated_line_is_refused_or_is_another_entry() {
    let mut rng = rng();
    let mut accepted = 0;
    for _ in 0..40_000 {
        let mut line = entry(&mut rng).to_line();
        for _ in 0..rng.gen_range(1..4) {
            let at = rng.gen_range(0..line.len().max(1));
            match rng.gen_range(0..4) {
                _ if line.is_empty() => {}
                0 => line[at] ^= 1 << rng.gen_range(0..8),
                1 => drop(line.remove(at)),
                2 => line.insert(at, b"\"\\{}[],:0 \n\xff"[rng.gen_range(0..12)]),
                _ => line.truncate(at.max(1)),
            }
        }
        if let Ok(entry) = Entry::parse(&line) {
            accepted += 1;
            assert_eq!(entry.to_line(), line, "read, but written differently: {}", String::from_utf8_lossy(&line));
        }
        let _ = find_change(&line, "k1");
    }
    assert!(accepted > 0, "mutations inside of texts and numbers give other entries");
}

#[test]
fn other_json_is_refused() {
    let good = String::from_utf8(
        Entry::Transaction(Transaction { time_ms: 9, author: "p".into(), changes: vec![put("a"), put("b")] }).to_line(),
    )
    .unwrap();
    assert!(Entry::parse(good.as_bytes()).is_ok());
    let control = |c: char| good.replace("\"p\"", &format!("\"{c}\""));
    let cases = [
        ("white space", good.replace(",\"author", ", \"author")),
        ("a newline at the end", format!("{good}\n")),
        ("a carriage return", format!("{good}\r\n")),
        ("a BOM", format!("\u{feff}{good}")),
        ("a duplicate field", good.replace("\"time\":9,", "\"time\":9,\"time\":9,")),
        ("an unknown field", good.replace("\"time\":9,", "\"time\":9,\"more\":1,")),
        ("a missing field", good.replace("\"time\":9,", "")),
        ("reordered fields", good.replace("\"time\":9,\"author\":\"p\"", "\"author\":\"p\",\"time\":9")),
        ("a key twice", good.replace("\"key\":\"b\"", "\"key\":\"a\"")),
        ("an empty key", good.replace("\"key\":\"b\"", "\"key\":\"\"")),
        ("a long key", good.replace("\"key\":\"b\"", &format!("\"key\":\"{}\"", "k".repeat(513)))),
        ("an empty author", good.replace("\"p\"", "\"\"")),
        ("a long author", good.replace("\"p\"", &format!("\"{}\"", "p".repeat(129)))),
        ("an escaped slash", good.replace("text/plain", "text\\/plain")),
        ("an escaped letter", good.replace("\"p\"", "\"\\u0070\"")),
        ("a control character", control('\u{85}')),
        ("a bare tab", control('\t')),
        ("a float", good.replace(":9,", ":9.0,")),
        ("an exponent", good.replace(":9,", ":9e0,")),
        ("a negative number", good.replace(":9,", ":-9,")),
        ("a leading zero", good.replace(":9,", ":09,")),
        ("a large number", good.replace(":9,", ":9007199254740992,")),
        ("blob false", good.replace("\"text/plain\"", "\"text/plain\",\"blob\":false")),
        ("unpadded base64", good.replace("Bwc=\"", "Bwc\"")),
        ("base64 with unused bits", good.replace("Bwc=\"", "Bwd=\"")),
        ("no operations", r#"{"type":"transaction","time":9,"author":"p","operations":[]}"#.into()),
        ("another type", good.replace("transaction", "recovery")),
        ("height 0", r#"{"type":"block","height":0,"time":9,"count":1,"previous":null,"state":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="}"#.into()),
        ("no previous block", r#"{"type":"block","height":2,"time":9,"count":1,"previous":null,"state":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="}"#.into()),
        ("nothing", String::new()),
    ];
    for (what, line) in cases {
        assert_ne!(line, good, "{what}: the case changes nothing");
        assert!(Entry::parse(line.as_bytes()).is_err(), "{what} was accepted: {line}");
    }
    let many = Transaction { time_ms: 9, author: "p".into(), changes: vec![put("a"); OPERATIONS_MAX + 1] };
    let refused = Entry::parse(&Entry::Transaction(many).to_line()).unwrap_err().to_string();
    assert!(refused.ends_with("expected at most 128 items"), "{refused}");
    assert!(Entry::parse(&vec![b'{'; ENTRY_BYTES_MAX + 1]).unwrap_err().to_string().contains("65535"));
}

#[test]
fn the_bound_on_a_transaction_holds_and_is_tight() {
    let mut rng = rng();
    for _ in 0..2_000 {
        let author = text(&mut rng, 128);
        let mut operations = Vec::new();
        let mut changes = Vec::new();
        for n in 0..rng.gen_range(1..6) {
            let key = Key::client(&format!("{}{n}", text(&mut rng, 500))).unwrap();
            let media_type = text(&mut rng, 127);
            let name = Cow::Owned(key.as_str().to_owned());
            let (operation, change) = match rng.gen_range(0..3) {
                0 => (Operation::Delete { key }, Change::Delete { key: name, previous: NUMBER_MAX }),
                1 => (
                    Operation::Erase { key, revision: 1 },
                    Change::Erase { key: name, revision: NUMBER_MAX, previous: Some(NUMBER_MAX) },
                ),
                _ => (
                    Operation::Put { key, value: Bytes::new(), media_type: media_type.clone(), blob: true },
                    Change::Put {
                        key: name,
                        previous: Some(NUMBER_MAX),
                        commitment: [1; 32],
                        size: NUMBER_MAX,
                        media_type: media_type.into(),
                        blob: true,
                    },
                ),
            };
            operations.push(operation);
            changes.push(change);
        }
        let bound = transaction_bytes_max(&author, &operations);
        let line = Entry::Transaction(Transaction { time_ms: NUMBER_MAX, author: author.into(), changes }).to_line();
        assert_eq!(bound, line.len() + 1, "one comma more than the longest line");
    }
}

#[test]
fn commitments_and_map_values_have_known_bytes() {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let committed = commitment(&[0; 32], b"value");
    // printf '\0%.0s' {1..32} | cat - <(printf value) | sha256sum
    assert_eq!(hex(&committed), "df97c47b8acbf86f3ac8c52d5ca2d2daff323726504bd023a7cac29b1ccfef52");
    let value = MapValue { revision: 0x0102, commitment: committed, erased_by: None };
    assert_eq!(hex(&value.to_bytes()), format!("010000000000000102{}", hex(&committed)));
    let erased = MapValue { erased_by: Some(3), ..value };
    assert_eq!(hex(&erased.to_bytes()), format!("020000000000000102{}0000000000000003", hex(&committed)));
    for value in [value, erased] {
        assert_eq!(value.hash(), crate::merkle::to_hash(&ring::digest::digest(&SHA256, &value.to_bytes())));
    }
}
