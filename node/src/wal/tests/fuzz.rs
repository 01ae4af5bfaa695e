//! Fuzzing of what is read from segments.

use samovar_fuzz::decoder;

use crate::segment::{Frame, FrameBuilder, FrameHeader, SegmentHeader};
use crate::wal::format::{Record, SEGMENT_MAGIC, push, records};
use crate::wal::{EntryId, Vote};

const SEGMENT: SegmentHeader = SegmentHeader { number: 7, nonce: 0x0123_4567_89ab_cdef, capacity: 8 << 10 };

fn some_records() -> Vec<Record> {
    let id = EntryId { term: 3, node: 1, index: 9 };
    let entry = |moved| Record::Entry { id, payload: "payload".into(), moved };
    vec![
        Record::Vote(Vote { term: 3, node: 1, committed: true }),
        entry(false),
        entry(true),
        Record::Truncate(8),
        Record::Committed(id),
        Record::Purged { mark: id, first_segment: 2 },
        Record::Base(id),
    ]
}

fn frame(records: &[Record], header: &FrameHeader) -> Vec<u8> {
    let mut builder = FrameBuilder::default();
    for record in records {
        push(&mut builder, record, SEGMENT.nonce);
    }
    builder.seal(&SEGMENT, header).1.to_vec()
}

/// A changed frame is refused: what is still accepted has the same header and payload.
#[test]
fn raft_log_frame() {
    let header = FrameHeader { sequence: 5, durable: 4, previous: 77 };
    let seeds: Vec<_> = some_records().into_iter().map(|r| frame(&[r], &header)).collect();
    let payloads: Vec<_> =
        seeds.iter().map(|s| Frame::decode(&SEGMENT, s).expect("a frame").payload.to_vec()).collect();
    decoder("raft-log-frame", &seeds, |bytes| {
        let Some(frame) = Frame::decode(&SEGMENT, bytes) else { return };
        assert_eq!(frame.header, header, "a changed header passed its checksum");
        assert!(payloads.iter().any(|p| p == frame.payload), "a changed payload passed its checksum");
    });
}

/// Records behind a checksum that holds, but whoever wrote them: what is read is written again as the same bytes.
#[test]
fn raft_log_records() {
    let header = FrameHeader { sequence: 5, durable: 4, previous: 77 };
    let whole = frame(&some_records(), &header);
    let payload = Frame::decode(&SEGMENT, &whole).expect("a frame").payload.to_vec();
    decoder("raft-log-records", &[payload], |bytes| {
        let mut end = 0;
        for record in records(bytes) {
            let Ok((offset, record)) = record else { return };
            assert_eq!(offset, end, "records follow each other");
            end = offset + record.encoded_bytes();
            // The checksum of an entry is of the nonce of its log, which these bytes cannot know.
            if !matches!(record, Record::Entry { .. }) {
                let again = frame(std::slice::from_ref(&record), &header);
                let again = Frame::decode(&SEGMENT, &again).expect("a frame").payload.to_vec();
                assert_eq!(again, &bytes[offset..end], "a record was read that is not canonical: {record:?}");
            }
        }
        assert_eq!(end, bytes.len(), "the records end with the payload");
    });
}

#[test]
fn segment_header() {
    decoder("segment-header", &[SEGMENT.encode(SEGMENT_MAGIC).to_vec()], |bytes| {
        if let Some(header) = SegmentHeader::decode(SEGMENT_MAGIC, bytes) {
            assert_eq!(
                header.encode(SEGMENT_MAGIC),
                bytes[..SEGMENT.encode(SEGMENT_MAGIC).len()],
                "a changed header passed its checksum"
            );
        }
    });
}
