use super::*;
use crate::command::{Committed, Key, OperationCommand, ProposalId};
use crate::raft::rounds::Secret;

const VOTE: Vote = Vote { term: 3, node: 2, committed: true };
const ID: EntryId = EntryId { term: 3, node: 2, index: 300 };

#[test]
fn the_bytes_of_messages_stay_what_they_are() {
    let write = WriteCommand {
        author: "a".into(),
        requirements: Vec::new(),
        operations: vec![OperationCommand::Delete { key: Key::stored("k".into()) }],
        idempotency: None,
        proposal: Some(ProposalId { node: 2, boot: 7, sequence: 1 }),
    };
    let requests: [(Request, &[u8]); 19] = [
        (
            Request::Append {
                vote: VOTE,
                previous: None,
                committed: Some(ID),
                entries: vec![(ID, Bytes::from_static(b"\x01\x00"))],
            },
            b"\x01\x00\x03\x02\x01\x00\x01\x03\x02\xac\x02\x01\x03\x02\xac\x02\x02\x01\x00",
        ),
        (Request::Vote { vote: VOTE, last: Some(ID) }, b"\x01\x01\x03\x02\x01\x01\x03\x02\xac\x02"),
        (Request::PreVote { last: None }, b"\x01\x02\x00"),
        (Request::SnapshotBegin { vote: VOTE }, b"\x01\x03\x03\x02\x01"),
        (Request::SnapshotChunk { vote: VOTE, chunk: Bytes::from_static(b"c") }, b"\x01\x04\x03\x02\x01\x01c"),
        (
            Request::SnapshotInstall { vote: VOTE, last: ID, members: Bytes::from_static(b"{}") },
            b"\x01\x05\x03\x02\x01\x03\x02\xac\x02\x02{}",
        ),
        (Request::Write { writes: vec![write] }, b"\x01\x06\x01\x01a\x00\x01\x01\x01k\x00\x01\x02\x07\x01"),
        (Request::ReadIndex, b"\x01\x07"),
        (Request::Permit { leader: VOTE, to: 300 }, b"\x01\x08\x03\x02\x01\xac\x02"),
        (Request::TakeOver { leader: VOTE, last: Some(ID) }, b"\x01\x09\x03\x02\x01\x01\x03\x02\xac\x02"),
        (Request::Clock, b"\x01\x0a"),
        (
            Request::Round(Question::Cosign { note: "n".into(), raft_index: 300, state: [7; 32] }),
            b"\x01\x0b\x00\x01n\xac\x02\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07",
        ),
        (
            Request::Round(Question::Publish { note: "n".into(), raft_index: 300 }),
            b"\x01\x0b\x01\x01n\xac\x02",
        ),
        (Request::Round(Question::Newest), b"\x01\x0b\x02"),
        (Request::Round(Question::Proof { key: Key::stored("k".into()) }), b"\x01\x0b\x03\x01k"),
        (
            Request::Round(Question::KeepLogKey { secret: Secret([7; 32]) }),
            b"\x01\x0b\x04\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07",
        ),
        (Request::Round(Question::LogKey { vkey: "v".into() }), b"\x01\x0b\x05\x01v"),
        (
            Request::Round(Question::Lacking { blobs: vec![[7; 32]] }),
            b"\x01\x0b\x06\x01\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07",
        ),
        (
            Request::Round(Question::Piece { blob: [7; 32], offset: 300 }),
            b"\x01\x0b\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\xac\x02",
        ),
    ];
    for (request, golden) in requests {
        let encoded = encode(&request);
        assert_eq!(encoded, golden, "{request:?}: {}", encoded.escape_ascii());
        assert_eq!(decode::<Request>(&encoded).unwrap(), request);
        let asker = Asker { start: 0x0102_0304_0506_0708, cluster: 0x0002_0000_0000_0009 };
        let asked = encode_request(asker, &request);
        let head = b"\x01\x02\x03\x04\x05\x06\x07\x08\x00\x02\x00\x00\x00\x00\x00\x09".as_slice();
        assert_eq!(asked, [head, golden].concat(), "{request:?}");
        assert_eq!(decode_request(&asked).unwrap(), (asker, request));
    }
    let committed = Outcome::Committed(Committed { transaction: 5, block: 2, created: vec![true] });
    let answers: [(Answer, &[u8]); 23] = [
        (Answer::Append(AppendAnswer::Partial(Some(ID))), b"\x01\x00\x01\x01\x03\x02\xac\x02"),
        (Answer::Vote { vote: VOTE, granted: true, last: None }, b"\x01\x01\x03\x02\x01\x01\x00"),
        (Answer::PreVote(PreVoteAnswer::Later(300)), b"\x01\x02\x01\xac\x02"),
        (Answer::SnapshotBegin { has: Bytes::from_static(b"m") }, b"\x01\x03\x01m"),
        (Answer::SnapshotChunk, b"\x01\x04"),
        (Answer::SnapshotInstall { vote: VOTE }, b"\x01\x05\x03\x02\x01"),
        (Answer::Write(vec![Ok(committed), Err(WriteError::Unknown)]), b"\x01\x06\x02\x00\x00\x05\x02\x01\x01\x01\x02"),
        (Answer::ReadIndex { index: 300 }, b"\x01\x07\xac\x02"),
        (Answer::Refused(Refused::NotLeader(Some(2))), b"\x01\x08\x00\x01\x02"),
        (Answer::Permit, b"\x01\x09"),
        (Answer::TakeOver, b"\x01\x0a"),
        (Answer::Clock { wall_ms: 300 }, b"\x01\x0b\xac\x02"),
        (Answer::Round(Reply::Cosigned("l".into())), b"\x01\x0c\x00\x01l"),
        (Answer::Round(Reply::Promised(300)), b"\x01\x0c\x01\xac\x02"),
        (
            Answer::Round(Reply::Differs([7; 32])),
            b"\x01\x0c\x02\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07",
        ),
        (Answer::Round(Reply::Published), b"\x01\x0c\x03"),
        (Answer::Round(Reply::Newest(Some(("n".into(), 300)))), b"\x01\x0c\x04\x01\x01n\xac\x02"),
        (Answer::Round(Reply::Proof("p".into())), b"\x01\x0c\x05\x01p"),
        (Answer::Round(Reply::LogKeyKept), b"\x01\x0c\x06"),
        (
            Answer::Round(Reply::LogKey(Secret([7; 32]))),
            b"\x01\x0c\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07",
        ),
        (Answer::Round(Reply::Refused("no".into())), b"\x01\x0c\x08\x02no"),
        (Answer::Round(Reply::Lacks(Vec::new())), b"\x01\x0c\x09\x00"),
        (Answer::Round(Reply::Piece { size: 300, bytes: Bytes::from_static(b"p") }), b"\x01\x0c\x0a\xac\x02\x01p"),
    ];
    for (answer, golden) in answers {
        let encoded = encode(&answer);
        assert_eq!(encoded, golden, "{answer:?}: {}", encoded.escape_ascii());
        assert_eq!(decode::<Answer>(&encoded).unwrap(), answer);
    }
}

#[test]
fn what_is_no_message_is_refused() {
    for bad in [&b""[..], b"\x00", b"\x02\x07", b"\x01", b"\x01\x63", b"\x01\x07\x00", b"\x01\x00\x03"] {
        decode::<Request>(&Bytes::copy_from_slice(bad)).expect_err("no message of this version");
    }
}
