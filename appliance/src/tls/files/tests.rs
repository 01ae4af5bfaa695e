//! Files as clients see them: what is accepted under which CA, at which time, after which accident.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt as _;

use super::super::ClientKeys;
use super::*;
use crate::durable::write_new;
use crate::live::Live;

const YEAR_MS: u64 = 365 * 86_400_000;
/// The time of the tests: 2026-11-24T00:00:00Z.
const NOW_MS: u64 = 1_795_478_400_000;

fn subject(name: &str) -> Subject {
    Subject::of(name, IpAddr::V4(Ipv4Addr::LOCALHOST), &[])
}

fn at(ms: u64) -> Times {
    Times::between(ms, ms)
}

fn made_at(ms: u64) -> (tempfile::TempDir, Files) {
    let data = tempfile::tempdir().expect("a directory");
    let files = Files::of(&Secrets::clear(data.path()));
    files.make(&subject("box-01"), at(ms)).expect("certificates are made");
    (data, files)
}

fn read(data: &tempfile::TempDir, name: &str) -> Vec<u8> {
    std::fs::read(data.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn tend(files: &Files, times: Times) -> Vec<String> {
    files.tend(&subject("box-01"), times).expect("tended")
}

/// Whether a client that has a copy of one CA certificate accepts what the node sends.
fn accepted(files: &Files, root: &CertificateDer<'static>, times: Times) -> Result<()> {
    let chain = files.chain()?;
    accepts(root, &chain[0], &chain[1..], &ServerName::try_from("box-01.local").expect("a name"), times)
}

#[test]
fn keys_are_readable_by_their_owner_only() {
    let (data, files) = made_at(NOW_MS);
    let mode = |name: &str| data.path().join(name).metadata().expect(name).permissions().mode() & 0o777;
    let got = ["ca.pem", "tls", "tls/ca.key", "tls/node.key", "tls/node.pem"].map(mode);
    assert_eq!(got, [0o644, 0o700, 0o600, 0o600, 0o600]);
    let clients = std::sync::Arc::new(ClientKeys::new([0; 32]));
    super::super::Own::read(&files)
        .and_then(|own| own.config(&clients, Live::new(None)))
        .expect("what was made can be served");
}

#[test]
fn what_holds_is_left_alone_for_two_thirds_of_its_life() {
    let (data, files) = made_at(NOW_MS);
    let before = read(&data, "tls/node.pem");
    let day_ms = 86_400_000;
    // 365 days from the backdated beginning; two thirds are 243 days, less at most 12 of jitter.
    assert_eq!(tend(&files, at(NOW_MS + 229 * day_ms)), Vec::<String>::new(), "before two thirds and jitter");
    assert_eq!(read(&data, "tls/node.pem"), before);
    let done = tend(&files, at(NOW_MS + 243 * day_ms));
    assert!(done.len() == 1 && done[0].contains("two thirds"), "a renewal was expected, got {done:?}");
    assert_ne!(read(&data, "tls/node.pem"), before);
    assert_eq!(tend(&files, at(NOW_MS + 243 * day_ms)), Vec::<String>::new(), "once is enough");
}

#[test]
fn everything_expired_heals_and_old_copies_of_the_ca_go_on_to_work() {
    let (_data, files) = made_at(NOW_MS - 20 * YEAR_MS);
    let old = files.roots().expect("ca.pem");
    assert!(files.hold(at(NOW_MS)).is_err(), "it must have expired, or this tests nothing");
    let done = tend(&files, at(NOW_MS));
    assert_eq!(done.len(), 2, "CA and node were to be made again: {done:?}");
    let new = files.roots().expect("ca.pem");
    assert_eq!(new.len(), 1, "a renewal is no roll-over");
    assert_ne!(new, old);
    for (whose, root) in [("the new", &new[0]), ("the old", &old[0])] {
        accepted(&files, root, at(NOW_MS)).unwrap_or_else(|e| panic!("a client with {whose} ca.pem refuses: {e:#}"));
    }
    assert_eq!(tend(&files, at(NOW_MS)), Vec::<String>::new(), "once is enough");
}

/// The chain knows that it is later than the clock says; once the clock is right, nothing is to be done.
#[test]
fn a_clock_a_year_back_and_then_set_right_breaks_nothing() {
    let (_data, files) = made_at(NOW_MS - 3 * YEAR_MS);
    let (back, right) = (Times::between(NOW_MS - YEAR_MS, NOW_MS), at(NOW_MS));
    assert!(files.hold(back).is_err(), "the node's certificate must have expired, or this tests nothing");
    let done = tend(&files, back);
    assert_eq!(done.len(), 1, "the node's certificate was to be made again: {done:?}");
    for (when, ms) in [("by the wrong clock", NOW_MS - YEAR_MS), ("by the right one", NOW_MS)] {
        accepted(&files, &files.roots().expect("ca.pem")[0], at(ms)).unwrap_or_else(|e| panic!("{when}: {e:#}"));
    }
    assert_eq!(tend(&files, right), Vec::<String>::new(), "set right, nothing is left to do");
    assert_eq!(tend(&files, at(NOW_MS + 90 * 86_400_000)), Vec::<String>::new(), "nor soon after");
}

/// A machine without a battery clock that was set up in 1970, and one whose clock ran ahead.
#[test]
fn what_a_wrong_clock_made_is_made_again_when_it_is_right() {
    for (what, made_ms) in
        [("in 1970", 0), ("a year back", NOW_MS - YEAR_MS), ("five years ahead", NOW_MS + 5 * YEAR_MS)]
    {
        let (_data, files) = made_at(made_ms);
        tend(&files, at(NOW_MS));
        files.hold(at(NOW_MS)).unwrap_or_else(|e| panic!("made {what}, it was to heal: {e:#}"));
        assert_eq!(tend(&files, at(NOW_MS)), Vec::<String>::new(), "made {what}: once is enough");
    }
}

#[test]
fn a_certificate_made_for_a_doubted_clock_is_shortened_afterwards() {
    let (_data, files) = made_at(NOW_MS);
    let doubted = Times::between(NOW_MS, NOW_MS + 4 * YEAR_MS);
    assert_eq!(tend(&files, doubted).len(), 1, "by that clock it has expired");
    assert_eq!(tend(&files, doubted), Vec::<String>::new(), "it holds by both clocks");
    let done = tend(&files, at(NOW_MS));
    assert!(done.len() == 1 && done[0].contains("live too long"), "got {done:?}");
}

#[test]
fn a_roll_over_serves_who_knows_only_the_old_ca_and_who_knows_only_the_new() {
    let (data, files) = made_at(NOW_MS);
    let old = files.roots().expect("ca.pem").remove(0);
    let made = files.next_authority(&subject("box-01"), at(NOW_MS)).expect("made");
    let new = made.certificate().clone();
    assert!(accepted(&files, &new, at(NOW_MS)).is_err(), "the new CA must not count before");
    files.roll_over(&made).expect("rolled over");
    assert_eq!(files.roots().expect("ca.pem"), [new.clone(), old.clone()]);
    for gone in ["tls/ca.key.next", "tls/node.key.old"] {
        assert!(!data.path().join(gone).exists(), "no key but the new ones may be left, but {gone} is there");
    }
    for later_ms in [0, YEAR_MS, 3 * YEAR_MS] {
        let now = at(NOW_MS + later_ms);
        tend(&files, now);
        for (whose, root) in [("the old", &old), ("the new", &new)] {
            accepted(&files, root, now).unwrap_or_else(|e| panic!("{whose} CA, {later_ms} ms later: {e:#}"));
        }
    }
    files.finish().expect("finished");
    let now = at(NOW_MS + 3 * YEAR_MS);
    accepted(&files, &new, now).expect("the new CA counts");
    assert!(accepted(&files, &old, now).is_err(), "the old CA must not count any more");
    assert_eq!(files.roots().expect("ca.pem"), [new]);
}

/// Ten years into a roll-over that nobody ended: the old CA is over, the new one is not held up by it.
#[test]
fn a_roll_over_that_is_never_finished_outlives_the_old_ca() {
    let (_data, files) = made_at(NOW_MS);
    let made = files.next_authority(&subject("box-01"), at(NOW_MS + 5 * YEAR_MS)).expect("made");
    files.roll_over(&made).expect("rolled over");
    let later = at(NOW_MS + 12 * YEAR_MS);
    tend(&files, later);
    accepted(&files, &files.roots().expect("ca.pem")[0], later).expect("the new CA counts");
}

#[test]
fn a_roll_over_that_breaks_off_anywhere_is_whole_after_the_next_start() {
    let names = ["ca.pem", "tls/ca.key", "tls/ca.key.next", "tls/ca-cross.pem", "tls/node.key", "tls/node.pem"];
    let (data, files) = made_at(NOW_MS);
    let old = files.roots().expect("ca.pem").remove(0);
    let snapshot = || names.map(|name| std::fs::read(data.path().join(name)).ok());
    let before = snapshot();
    let made = files.next_authority(&subject("box-01"), at(NOW_MS)).expect("made");
    files.roll_over(&made).expect("rolled over");
    let mut after = snapshot();
    let next_key = after[1].clone();
    // In the order in which `roll_over` writes them: the state after each of its steps.
    let steps: [&[usize]; 6] = [&[], &[2], &[2, 3], &[2, 3, 0], &[3, 0, 1], &[3, 0, 1, 4]];
    after[2] = next_key;
    for (step, written) in steps.iter().enumerate() {
        for (at, name) in names.iter().enumerate() {
            let path = data.path().join(name);
            remove(&path).expect("removed");
            let content = if written.contains(&at) { &after[at] } else { &before[at] };
            if let Some(content) = content {
                write_new(&path, content, Mode::Secret).expect("written");
            }
        }
        tend(&files, at(NOW_MS));
        files.hold(at(NOW_MS)).unwrap_or_else(|e| panic!("a crash after step {step}: {e:#}"));
        accepted(&files, &old, at(NOW_MS)).unwrap_or_else(|e| panic!("step {step}, the old CA: {e:#}"));
        let happened = written.contains(&0);
        assert_eq!(files.is_rolling_over(), happened, "step {step}: ca.pem decides");
        files.fresh_node(&subject("box-01"), at(NOW_MS)).unwrap_or_else(|e| panic!("step {step}, the next: {e:#}"));
        assert!(!data.path().join("tls/ca.key.next").exists(), "step {step}: nothing is left half done");
        assert_eq!(data.path().join("tls/ca-cross.pem").exists(), happened, "step {step}");
    }
}

#[test]
fn a_certificate_under_another_ca_is_made_again() {
    let ((data, files), (other, _)) = (made_at(NOW_MS), made_at(NOW_MS));
    for name in ["tls/node.pem", "tls/node.key"] {
        std::fs::copy(other.path().join(name), data.path().join(name)).expect("copied");
    }
    let before = read(&data, "tls/node.pem");
    tend(&files, at(NOW_MS));
    files.hold(at(NOW_MS)).expect("it holds for clients");
    assert_ne!(read(&data, "tls/node.pem"), before);
    assert_eq!(read(&data, "tls/node.pem.old"), before, "what was there is kept");
}

#[test]
fn a_machine_of_another_name_gets_what_its_ca_permits() {
    let (data, files) = made_at(NOW_MS);
    std::fs::remove_file(data.path().join("tls/node.key")).expect("removed");
    files.tend(&subject("renamed.example"), at(NOW_MS)).expect("made again");
    files.hold(at(NOW_MS)).expect("it holds for clients");
    let made = files.next_authority(&subject("renamed.example"), at(NOW_MS)).expect("made");
    files.roll_over(&made).expect("rolled over");
    files.finish().expect("finished");
    files.replace_node(&files.fresh_node(&subject("renamed.example"), at(NOW_MS)).expect("made")).expect("replaced");
    let (chain, root) = (files.chain().expect("node.pem"), files.roots().expect("ca.pem").remove(0));
    let name = ServerName::try_from("renamed.example").expect("a name");
    accepts(&root, &chain[0], &[], &name, at(NOW_MS)).expect("a new CA permits the new name");
}

#[test]
fn without_the_ca_key_what_to_do_is_said() {
    let (data, files) = made_at(NOW_MS);
    for name in ["tls/node.key", "tls/ca.key"] {
        std::fs::remove_file(data.path().join(name)).expect("removed");
    }
    let refused = files.tend(&subject("box-01"), at(NOW_MS)).expect_err("no key is left");
    let said = format!("{refused:#}");
    assert!(said.contains("node.key") && said.contains("ca.key"), "{said}");
}
