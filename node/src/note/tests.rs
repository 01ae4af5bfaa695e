use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// Key and note of the example in the signed-note specification.
const KEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
const NOTE: &str = "This is an example message.\n\n— example.com/foo \
    Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";

fn rng() -> StdRng {
    let seed = rand::random();
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

fn signer(name: &str, scheme: Scheme, seed: u8) -> Signer {
    Signer::from_seed(name, scheme, &[seed; 32]).unwrap()
}

#[test]
fn the_example_of_the_specification_verifies() {
    let key = VerifierKey::parse(KEY).unwrap();
    assert_eq!((key.name(), key.scheme(), key.to_string().as_str()), ("example.com/foo", Scheme::Ed25519, KEY));
    let note = Note::parse(NOTE).unwrap();
    assert_eq!(note.text(), "This is an example message.\n");
    assert_eq!(note.verify(&key), Ok(Some(Signed { time_s: None })));
}

#[test]
fn a_cosignature_binds_text_and_time() {
    let text = "example.com/log\n5\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";
    let node = signer("node-1", Scheme::Cosignature, 1);
    let signed = assemble(text, &[node.sign(text, 1_679_315_147)]);
    let note = Note::parse(&signed).unwrap();
    assert_eq!(note.verify(node.verifier_key()), Ok(Some(Signed { time_s: Some(1_679_315_147) })));
    // The message is the one of the specification, signed here by hand.
    let message = format!("cosignature/v1\ntime 1679315147\n{text}");
    let raw = node.pair.sign(message.as_bytes());
    assert_eq!(note.signatures[0].bytes[8..], *raw.as_ref());
    for at in 0..72 {
        let mut forged = note.clone();
        forged.signatures[0].bytes[at] ^= 1;
        let refused = forged.verify(node.verifier_key());
        assert_eq!(refused, Err(NoteError::Signature("node-1".into())), "byte {at} of time and signature changed");
    }
    let mut late = note.clone();
    let message = cosigned_message(text, 1 << 63);
    late.signatures[0].bytes = [&(1_u64 << 63).to_be_bytes(), node.pair.sign(message.as_bytes()).as_ref()].concat();
    assert!(late.verify(node.verifier_key()).is_err(), "a time of 2^63 was accepted");
}

#[test]
fn the_same_key_signs_differently_as_log_and_as_cosigner() {
    let (log, node) = (signer("a", Scheme::Ed25519, 1), signer("a", Scheme::Cosignature, 1));
    assert_ne!(log.verifier_key().id, node.verifier_key().id);
    let note = assemble("text\n", &[log.sign("text\n", 9)]);
    let note = Note::parse(&note).unwrap();
    assert_eq!(note.verify(log.verifier_key()), Ok(Some(Signed { time_s: None })));
    assert_eq!(note.verify(node.verifier_key()), Ok(None), "a log's signature is no cosignature");
}

#[test]
fn unknown_signatures_are_passed_over_and_known_ones_must_all_hold() {
    let (a, b) = (signer("a", Scheme::Ed25519, 1), signer("b", Scheme::Ed25519, 2));
    let good = a.sign("text\n", 0);
    let read = |lines: &[String]| {
        let note = assemble("text\n", lines);
        Note::parse(&note).and_then(|n| n.verify(a.verifier_key()))
    };
    let same_name = signer("a", Scheme::Ed25519, 3).sign("text\n", 0);
    let unknown = "— a.example/with-ml-dsa qrvM3QECAwQF\n".to_owned();
    let long = format!("— {}\u{80} qrvM3QECAwQF\n", "n".repeat(NAME_BYTES_MAX));
    assert!(read(&[unknown, long, same_name, b.sign("text\n", 0), good.clone()]).is_ok_and(|s| s.is_some()));
    assert_eq!(read(&[b.sign("text\n", 0)]), Ok(None));
    let of_other_text = a.sign("other text\n", 0);
    assert!(read(&[good.clone(), of_other_text.clone()]).is_err(), "a false signature beside a good one");
    assert!(read(&[of_other_text, good.clone()]).is_err());
    assert!(read(&vec![good.clone(); SIGNATURES_MAX]).is_ok());
    assert!(read(&vec![good; SIGNATURES_MAX + 1]).is_err(), "more signatures than allowed");
}

#[test]
fn a_second_spelling_of_s_is_refused() {
    let key = VerifierKey::parse(KEY).unwrap();
    let mut note = Note::parse(NOTE).unwrap();
    samovar_fuzz::forge::with_large_s(&mut note.signatures[0].bytes);
    assert_eq!(note.verify(&key), Err(NoteError::Signature("example.com/foo".into())));
}

#[test]
fn malformed_notes_are_refused() {
    let line = NOTE.lines().last().unwrap();
    let base64 = line.rsplit(' ').next().unwrap();
    for (what, note) in [
        ("nothing", String::new()),
        ("no signature", "text\n\n".into()),
        ("no empty line", NOTE.replace("\n\n", "\n")),
        ("no text", format!("\n{line}\n")),
        ("CRLF", NOTE.replace('\n', "\r\n")),
        ("a tab", NOTE.replace("an example", "an\texample")),
        ("no newline at the end", NOTE.trim_end().into()),
        ("an empty line at the end", format!("{NOTE}\n")),
        ("a hyphen for the dash", NOTE.replace('—', "-")),
        ("no name", NOTE.replace("— example.com/foo ", "—  ")),
        ("a plus in the name", NOTE.replace("example.com/foo", "example.com+foo")),
        ("a wide space in the name", NOTE.replace("example.com/foo", "example.com\u{2003}foo")),
        ("two spaces", NOTE.replace("foo Uw", "foo  Uw")),
        ("unpadded base64", NOTE.replace("QM=", "QM")),
        ("base64 with unused bits", NOTE.replace("QM=", "QN=")),
        ("a short signature", NOTE.replace(base64, "Uw2QOg==")),
        ("text behind the signatures", format!("{NOTE}more\n")),
    ] {
        assert_ne!(note, NOTE, "{what}: the case changes nothing");
        assert!(Note::parse(&note).is_err(), "{what} was accepted: {note:?}");
    }
    assert!(Note::parse(&"x".repeat(NOTE_BYTES_MAX + 1)).is_err());
}

#[test]
fn malformed_verifier_keys_are_refused() {
    let node = signer("node-1", Scheme::Cosignature, 1).verifier_key().to_string();
    assert_eq!(VerifierKey::parse(&node).unwrap().to_string(), node);
    for (what, key) in [
        ("nothing", String::new()),
        ("a space at the end", format!("{KEY} ")),
        ("a newline at the end", format!("{KEY}\n")),
        ("two parts", KEY.replacen('+', "-", 1)),
        ("another name", KEY.replace("foo", "fop")),
        ("an id in capitals", KEY.replace("530d903a", "530D903A")),
        ("another id", KEY.replace("530d903a", "530d903b")),
        ("another key", KEY.replace("3U2k", "3U2l")),
        ("a short key", "a+00000000+Aek=".into()),
        ("no key", "a+00000000+".into()),
        ("an unknown type", "a+00000000+BukyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k".into()),
        ("an empty name", format!("+{}", KEY.split_once('+').unwrap().1)),
    ] {
        assert!(VerifierKey::parse(&key).is_err(), "{what} was accepted: {key:?}");
    }
    for name in ["", "a b", "a+b", "a\u{a0}b", "a\nb", &"n".repeat(256)] {
        assert!(VerifierKey::new(name, Scheme::Ed25519, [1; 32]).is_err(), "{name:?} was accepted as a name");
    }
}

#[test]
fn a_key_from_pkcs8_is_the_key_from_its_seed() {
    // RFC 8410, section 7: version 1, then the seed in an octet string in an octet string.
    let mut document = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    document.extend([7; 32]);
    let from_document = Signer::from_pkcs8("a", Scheme::Ed25519, &document).unwrap();
    assert_eq!(from_document.verifier_key(), signer("a", Scheme::Ed25519, 7).verifier_key());
    assert!(Signer::from_pkcs8("a", Scheme::Ed25519, &document[1..]).is_err());
    assert!(!format!("{from_document:?}").contains("pair"), "a private key is shown");
}

#[test]
fn mutated_keys_and_notes_never_panic_nor_verify() {
    let mut rng = rng();
    let key = VerifierKey::parse(KEY).unwrap();
    for _ in 0..20_000 {
        let mut bytes = NOTE.as_bytes().to_vec();
        mutate(&mut rng, &mut bytes);
        if let Some(note) = std::str::from_utf8(&bytes).ok().and_then(|text| Note::parse(text).ok()) {
            let verified = note.verify(&key);
            let kept = note.text() == "This is an example message.\n";
            assert!(!verified.is_ok_and(|v| v.is_some()) || kept, "a changed text verified");
        }
        let mut bytes = KEY.as_bytes().to_vec();
        mutate(&mut rng, &mut bytes);
        if let Some(other) = std::str::from_utf8(&bytes).ok().and_then(|text| VerifierKey::parse(text).ok()) {
            assert_eq!(other.to_string().into_bytes(), bytes, "a second spelling of a key");
        }
    }
}

fn mutate(rng: &mut StdRng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.gen_range(1..3) {
        let at = rng.gen_range(0..bytes.len().max(1));
        match rng.gen_range(0..4) {
            _ if bytes.is_empty() => {}
            0 => bytes[at] ^= 1 << rng.gen_range(0..8),
            1 => drop(bytes.remove(at)),
            2 => bytes.insert(at, b"\n +=\r\xe2"[rng.gen_range(0..6)]),
            _ => bytes.truncate(at),
        }
    }
}
