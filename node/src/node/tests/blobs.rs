//! Blobs in the simulation: named, erased, collected, damaged; over restarts, losses and crashes.

use super::*;
use crate::blobs::Cid;
use crate::command::Refusal;

/// Longer than several pieces, and no whole number of them.
const BLOB_BYTES: usize = 200_003;

pub(super) fn content(n: u8) -> Bytes {
    (0..BLOB_BYTES).map(|i| u8::try_from(i % 251).unwrap() ^ n).collect::<Vec<_>>().into()
}

pub(super) async fn upload(node: &Node, n: u8) -> Cid {
    let mut upload = node.upload(None).await.unwrap();
    for piece in content(n).chunks(1000) {
        upload = upload.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    let (cid, size) = upload.finish(None).await.unwrap();
    assert_eq!(size, BLOB_BYTES as u64);
    cid
}

pub(super) fn put_blob(key: &str, cid: &Cid) -> Operation {
    let key = Key::client(key).unwrap();
    Operation::Put { key, value: cid.to_string().into(), media_type: "application/x-tar".into(), blob: true }
}

pub(super) async fn committed(node: &Node, operation: Operation) -> u64 {
    let write =
        Write { author: "client".into(), requirements: Vec::new(), operations: vec![operation], idempotency: None };
    match node.write(write).await.unwrap() {
        Outcome::Committed(committed) => committed.transaction,
        Outcome::Refused(refusal) => panic!("expected the write to be committed, it was refused: {refusal:?}"),
    }
}

pub(super) async fn erased(node: &Node, key: &str, revision: u64) {
    committed(node, Operation::Erase { key: Key::client(key).unwrap(), revision }).await;
}

pub(super) async fn read(node: &Node, cid: Cid) -> Result<Vec<u8>, Error> {
    let blob = node.blob(cid).await?;
    let mut all = Vec::new();
    while let piece = blob.read(all.len() as u64).await?
        && !piece.is_empty()
    {
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

fn names(machine: &Machine) -> Vec<String> {
    let directory = Config::new(DATA).data.join("blobs");
    let files = machine.disk.files().into_iter().filter(|file| file.starts_with(&directory));
    files.map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

/// Longer than an unnamed blob is kept.
async fn their_time_passes() {
    rt::sleep(UNNAMED_BLOB_AGE + Duration::from_secs(60)).await;
}

#[test]
fn a_named_blob_stays_whatever_is_lost_and_an_unnamed_one_goes() {
    for loss in LOSSES {
        let machine = Machine::new(20);
        let (mut named, mut unnamed) = (None, None);
        simulate(20, async {
            let node = machine.start().await.unwrap();
            named = Some(upload(&node, 1).await);
            committed(&node, put_blob("k", &named.unwrap())).await;
            unnamed = Some(upload(&node, 2).await);
            node.stop().await;
        });
        machine.lose(loss);
        simulate(20, async {
            let node = machine.start().await.unwrap();
            their_time_passes().await;
            let (named, unnamed) = (named.unwrap(), unnamed.unwrap());
            assert_eq!(read(&node, named).await.unwrap(), content(1), "the named blob after losing {loss:?}");
            assert!(matches!(read(&node, unnamed).await, Err(Error::NotFound(_))), "the unnamed one ({loss:?})");
            assert_eq!(names(&machine), [named.to_string()], "files after losing {loss:?}");
            let status = node.status().blobs;
            assert_eq!((status.count, status.unnamed, status.missing), (1, 0, 0), "{status:?}");
            node.stop().await;
        });
    }
}

#[test]
fn a_blob_goes_with_the_last_value_that_names_it() {
    for loss in LOSSES {
        let machine = Machine::new(21);
        let (mut cid, mut revisions) = (None, Vec::new());
        simulate(21, async {
            let node = machine.start().await.unwrap();
            let blob = upload(&node, 1).await;
            for key in ["a", "b", "a"] {
                revisions.push(committed(&node, put_blob(key, &blob)).await);
            }
            cid = Some(blob);
            erased(&node, "a", revisions[0]).await;
            node.stop().await;
        });
        machine.lose(loss);
        let cid = cid.unwrap();
        simulate(21, async {
            let node = machine.start().await.unwrap();
            erased(&node, "b", revisions[1]).await;
            assert_eq!(read(&node, cid).await.unwrap(), content(1), "one value still names it ({loss:?})");
            erased(&node, "a", revisions[2]).await;
            assert!(matches!(read(&node, cid).await, Err(Error::NotFound(_))), "no value names it ({loss:?})");
            rt::sleep(Duration::from_secs(60)).await;
            assert_eq!(names(&machine), [""; 0], "files a minute after the last erase ({loss:?})");
            let write = Write {
                author: "client".into(),
                requirements: Vec::new(),
                operations: vec![put_blob("c", &cid)],
                idempotency: None,
            };
            assert!(matches!(node.write(write).await, Err(Error::NoBlob(_))), "a blob that is gone cannot be named");
            let again = node.write(Write {
                author: "client".into(),
                requirements: Vec::new(),
                operations: vec![Operation::Erase { key: Key::client("a").unwrap(), revision: revisions[2] }],
                idempotency: None,
            });
            assert!(matches!(again.await, Ok(Outcome::Refused(Refusal::AlreadyErased { .. }))));
            node.stop().await;
        });
    }
}

/// The power goes at once after an erase was answered: what it erased must not come back.
#[test]
fn an_erased_blob_stays_erased_over_crashes() {
    for seed in 0..20 {
        let machine = Machine::new(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut cids = Vec::new();
        simulate(seed, async {
            let node = machine.start().await.unwrap();
            let (kept, gone) = (upload(&node, 1).await, upload(&node, 2).await);
            committed(&node, put_blob("kept", &kept)).await;
            let revision = committed(&node, put_blob("gone", &gone)).await;
            rt::sleep(Duration::from_millis(rng.gen_range(0..8000))).await;
            erased(&node, "gone", revision).await;
            rt::sleep(Duration::from_millis(rng.gen_range(0..8000))).await;
            cids = vec![kept, gone];
        });
        machine.crash(&mut rng);
        simulate(seed, async {
            let node = machine.start().await.unwrap();
            rt::sleep(Duration::from_secs(60)).await;
            assert_eq!(names(&machine), [cids[0].to_string()], "seed {seed}: files after the crash");
            assert_eq!(read(&node, cids[0]).await.unwrap(), content(1), "seed {seed}");
            node.stop().await;
        });
    }
}

#[test]
fn a_broken_upload_leaves_nothing() {
    let machine = Machine::new(22);
    // Held over the crash: dropped, it would clean up after itself.
    let _open = simulate(22, async {
        let node = machine.start().await.unwrap();
        let mut begun = node.upload(None).await.unwrap();
        for _ in 0..3 {
            begun = begun.write(content(1)).await.unwrap();
        }
        assert_eq!(names(&machine).len(), 1, "the upload has a file of its own");
        drop(begun);
        assert_eq!(names(&machine), [""; 0], "a dropped upload");
        let wrong = node.upload(None).await.unwrap().write(content(1)).await.unwrap().finish(Some([0; 32])).await;
        assert!(matches!(wrong, Err(Error::DigestMismatch(_))), "{wrong:?}");
        assert_eq!(names(&machine), [""; 0], "an upload with another digest");
        let large = node.upload(Some((4 << 30) + 1)).await.err();
        assert!(matches!(large, Some(Error::TooLarge { .. })), "{large:?}");
        // In mid-upload when the power goes.
        let open = node.upload(None).await.unwrap().write(content(1)).await.unwrap();
        let path = Config::new(DATA).data.join("blobs");
        machine.disk.sync_directory(&path).unwrap();
        open
    });
    machine.disk.crash();
    simulate(22, async {
        let node = machine.start().await.unwrap();
        assert_eq!(names(&machine), [""; 0], "what the crash left goes at the start");
        node.stop().await;
    });
}

#[test]
fn a_damaged_blob_is_never_given_out_and_mended_by_another_upload() {
    for (found_by, byte) in [("a read", 0), ("a read", 150_000), ("the scrub", 70_000), ("the scrub", BLOB_BYTES + 40)]
    {
        let machine = Machine::new(23);
        simulate(23, async {
            let node = machine.start().await.unwrap();
            let cid = upload(&node, 1).await;
            committed(&node, put_blob("k", &cid)).await;
            let path = Config::new(DATA).data.join("blobs").join(cid.to_string());
            assert!(machine.disk.flip_bit(&path, 8 * byte as u64), "{}", path.display());
            if found_by == "the scrub" {
                rt::sleep(Duration::from_secs(3600)).await;
            } else {
                let blob = node.blob(cid).await.unwrap();
                let mut at = 0;
                let error = loop {
                    match blob.read(at as u64).await {
                        Ok(piece) => {
                            assert_eq!(piece, content(1)[at..at + piece.len()], "a damaged byte went out");
                            at += piece.len();
                        }
                        Err(error) => break error,
                    }
                };
                assert!(matches!(error, Error::DamagedBlob(_)), "{error:?}");
            }
            assert!(matches!(read(&node, cid).await, Err(Error::DamagedBlob(_))), "found by {found_by} at {byte}");
            let status = node.status().blobs;
            assert_eq!((status.damaged, status.missing, status.count), (1, 1, 0), "{status:?}");
            assert_eq!(names(&machine), [format!("{cid}.damaged")], "it is set aside");
            assert_eq!(upload(&node, 1).await, cid);
            assert_eq!(read(&node, cid).await.unwrap(), content(1), "mended");
            assert_eq!(names(&machine), [cid.to_string()], "and the damaged one is gone");
            assert_eq!(node.status().blobs.missing, 0);
            node.stop().await;
        });
    }
}
