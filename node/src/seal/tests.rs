use std::collections::BTreeMap;

use super::*;
use crate::disk::sim::{CrashPoint, SimDisk};

const DATA: &str = "/data";
const TLS_KEY: Role = Role("tls-key");
const FILES: [SecretFile; 4] = [NODE_FILES[0], NODE_FILES[1], NODE_FILES[2], ("tls/node.key", TLS_KEY)];

fn kek(byte: u8) -> Kek {
    Kek::of(&[byte; KEK_BYTES]).unwrap()
}

fn seal(current: u8, former: u8) -> Seal {
    let some = |byte| (byte != 0).then(|| kek(byte));
    Seal::new(some(current), some(former))
}

/// A disk with every file but `keys/log.next`, under the KEK of this byte (0: in the clear).
fn disk(under: u8) -> (SimDisk, BTreeMap<&'static str, Vec<u8>>) {
    let disk = SimDisk::new(7);
    let mut contents = BTreeMap::new();
    for (at, (name, role)) in FILES.iter().enumerate().filter(|(_, (name, _))| !name.ends_with(".next")) {
        let path = Path::new(DATA).join(name);
        disk.create_directory(path.parent().unwrap()).unwrap();
        let content = format!("secret {at} of {name}").into_bytes();
        durable::replace(&disk, &path, &seal(under, 0).close(*role, &content).unwrap()).unwrap();
        contents.insert(*name, content);
    }
    (disk, contents)
}

fn open_all(disk: &SimDisk, seal: &Seal) -> Result<BTreeMap<&'static str, Vec<u8>>, String> {
    let mut found = BTreeMap::new();
    for (name, role) in FILES {
        let path = Path::new(DATA).join(name);
        if let Some(stored) = disk.contents(&path) {
            found.insert(name, seal.open(&path, role, stored).map_err(|e| e.to_string())?);
        }
    }
    Ok(found)
}

/// The format is for ever: a second reader could be written from these bytes.
#[test]
fn a_sealed_file_is_the_line_a_nonce_and_the_ciphertext() {
    assert_eq!(kek(1).id(), "5f4732bf11b0381a");
    let stored = seal(1, 0).close(LOG_KEY, &[9; 32]).unwrap();
    assert!(stored.starts_with(b"samovar sealed 1 5f4732bf11b0381a\n"), "{}", stored.escape_ascii());
    assert_eq!(stored.len(), 34 + 12 + 32 + 16);
    assert_ne!(stored, seal(1, 0).close(LOG_KEY, &[9; 32]).unwrap(), "each time with a nonce of its own");
    let golden =
        [&b"samovar sealed 1 5f4732bf11b0381a\n"[..], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], &GOLDEN_BODY].concat();
    assert_eq!(seal(1, 0).open(Path::new("f"), LOG_KEY, golden).unwrap(), b"Samovar");
}

/// Of `Samovar` as a log key under the KEK of 32 bytes 0x01 and the nonce 00 01 … 0b, by another implementation (pyca/cryptography).
const GOLDEN_BODY: [u8; 23] =
    [232, 199, 248, 73, 86, 159, 116, 91, 117, 204, 160, 24, 77, 5, 120, 176, 15, 122, 5, 255, 250, 20, 163];

#[test]
fn what_was_changed_or_put_in_another_place_does_not_open() {
    let stored = seal(1, 0).close(LOG_KEY, b"content").unwrap();
    let path = Path::new("keys/log");
    let open = |seal: &Seal, role, stored: &[u8]| seal.open(path, role, stored.to_vec()).map_err(|e| e.to_string());
    assert_eq!(open(&seal(1, 0), LOG_KEY, &stored), Ok(b"content".to_vec()));
    assert_eq!(open(&seal(2, 1), LOG_KEY, &stored), Ok(b"content".to_vec()), "under the KEK before");
    let swapped = open(&seal(1, 0), COSIGNING_KEY, &stored).unwrap_err();
    assert!(swapped.contains("keys/log is damaged, or was sealed as another file"), "{swapped}");
    for bit in 8 * MARK.len()..8 * stored.len() {
        let mut changed = stored.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        // A changed line may be no line any more, and then the file no key either.
        assert_ne!(open(&seal(1, 0), LOG_KEY, &changed), Ok(b"content".to_vec()), "bit {bit}");
    }
    for length in MARK.len() + 2 * ID_BYTES..stored.len() {
        open(&seal(1, 0), LOG_KEY, &stored[..length]).expect_err("cut short, and it opened");
    }
    let (one, two) = (kek(1).id, kek(2).id);
    let other = open(&seal(2, 0), LOG_KEY, &stored).unwrap_err();
    assert_eq!(other, format!("keys/log is sealed under the key-encryption key {one}, given was {two}"));
    let none = open(&Seal::default(), LOG_KEY, &stored).unwrap_err();
    assert_eq!(none, format!("keys/log is sealed under the key-encryption key {one}, none was given"));
}

#[test]
fn under_another_key_nothing_is_changed() {
    let (disk, _) = disk(1);
    let before: Vec<_> = disk.files().iter().map(|path| disk.contents(path)).collect();
    for seal in [seal(2, 0), seal(2, 3), Seal::default()] {
        seal.settle(&disk, Path::new(DATA), &FILES).expect_err("sealed under another key");
        let after: Vec<_> = disk.files().iter().map(|path| disk.contents(path)).collect();
        assert_eq!(before, after);
    }
}

/// Sealing, another KEK, and back to the clear, cut at every durable operation and done again.
#[test]
fn nothing_is_lost_wherever_it_is_cut() {
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let seal = seal(to, from);
        for point in [CrashPoint::Before, CrashPoint::After] {
            let mut cuts = 0;
            loop {
                let (disk, contents) = disk(from);
                let what = format!("from {from} to {to}, cut {cuts} {point:?}");
                disk.crash_at(disk.durable_operations() + cuts + 1, point);
                let done = seal.settle(&disk, Path::new(DATA), &FILES);
                assert_eq!(done.is_err(), disk.is_dead(), "{what}: {done:?}");
                let whole = !disk.is_dead();
                disk.crash();
                assert_eq!(open_all(&disk, &seal).as_ref(), Ok(&contents), "{what}: a file is lost");
                let again = seal.settle(&disk, Path::new(DATA), &FILES).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(!whole || again.is_empty(), "{what}: done, and there was more: {again:?}");
                disk.crash();
                assert_eq!(open_all(&disk, &seal).as_ref(), Ok(&contents), "{what}: a file is lost at the second try");
                check_end_state(&disk, &seal, &contents, &what);
                if whole {
                    break;
                }
                cuts += 1;
            }
            assert!(cuts >= 6, "three files, each written, named and its place wiped: only {cuts} cuts");
        }
    }
}

fn check_end_state(disk: &SimDisk, seal: &Seal, contents: &BTreeMap<&str, Vec<u8>>, what: &str) {
    assert_eq!(disk.files().len(), contents.len(), "{what}: something is left over: {:?}", disk.files());
    for path in disk.files() {
        let stored = disk.contents(&path).unwrap();
        assert_eq!(kek_of(&stored), seal.kek_id(), "{what}: {}", path.display());
        let clear = contents.values().any(|c| stored.windows(c.len()).any(|part| part == c));
        assert_eq!(clear, seal.kek_id().is_none(), "{what}: {} holds a secret in the clear", path.display());
    }
}
