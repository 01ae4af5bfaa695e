use std::io::Cursor;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::super::rows::{RowFormat, tests::shape};
use super::*;

fn cut(content: &[u8], from: Place, skip_bad: bool) -> (Vec<Batch>, Option<CutError>) {
    let mut rows = Rows::new(Cursor::new(content), shape(RowFormat::Jsonl, &["id"])).expect("rows");
    rows.resume_at(from).expect("seek");
    let mut cutter = Cutter::new(rows, skip_bad);
    let mut batches = Vec::new();
    loop {
        match cutter.next() {
            Ok(Some(batch)) => batches.push(batch),
            Ok(None) => return (batches, None),
            Err(e) => return (batches, Some(e)),
        }
    }
}

/// Keys of a batch in order, from its request body.
pub(in crate::import) fn keys_of(body: &[u8]) -> Vec<String> {
    let body: serde_json::Value = serde_json::from_slice(body).expect("the body is JSON");
    let operations = body["operations"].as_array().expect("operations");
    operations.iter().map(|o| o["put"]["key"].as_str().expect("a key").to_owned()).collect()
}

#[test]
fn batches_are_requests_within_the_limits() {
    let line = |id: &str, fill: usize| format!("{{\"id\":\"{id}\",\"v\":\"{}\"}}\n", "x".repeat(fill));
    let small: String = (0..300).map(|n| line(&n.to_string(), 1)).collect();
    let sizes = |content: &str| {
        let (batches, error) = cut(content.as_bytes(), Place::START, false);
        assert!(error.is_none(), "{error:?}");
        batches.iter().map(|b| b.rows).collect::<Vec<_>>()
    };
    assert_eq!(sizes(&small), [128, 128, 44], "at most 128 operations");
    let large: String = (0..5).map(|n| line(&n.to_string(), 400_000)).collect();
    assert_eq!(sizes(&large), [2, 2, 1], "at most about 1 MiB");
    let huge = line("a", VALUE_BYTES_MAX - 20) + &line("b", 1) + &line("c", VALUE_BYTES_MAX - 20);
    assert_eq!(sizes(&huge), [1, 1, 1], "one row of the largest value is a batch of its own");
    let keys: String = (0..128).map(|n| line(&format!("{n:0>500}"), 1)).collect();
    let (batches, _) = cut(keys.as_bytes(), Place::START, false);
    for batch in &batches {
        let entry: usize = keys_of(&batch.body).iter().map(|k| k.len() + 220).sum();
        assert!(entry < ENTRY_BYTES_MAX, "an entry of {} long keys takes up to {entry} bytes", batch.rows);
    }
    assert_eq!(batches.iter().map(|b| b.rows).sum::<u64>(), 128);
    assert_eq!(sizes(&["a", "b", "a", "a", "c"].map(|k| line(k, 1)).concat()), [2, 1, 2], "a key once per transaction");
    assert_eq!(sizes(""), [0; 0]);
}

#[test]
fn batches_depend_on_nothing_but_where_they_begin() {
    let seed = 5;
    let mut rng = StdRng::seed_from_u64(seed);
    for round in 0..40 {
        let content: String = (0..rng.gen_range(1..1500))
            .map(|n| match rng.gen_range(0..100) {
                0 => "{bad}\n".to_owned(),
                1 => "\n".to_owned(),
                2..10 => format!("{{\"id\":\"again\",\"n\":{n}}}\n"),
                _ => format!("{{\"id\":{n},\"v\":\"{}\"}}\n", "x".repeat(rng.gen_range(0..3000))),
            })
            .collect();
        let (batches, error) = cut(content.as_bytes(), Place::START, true);
        assert!(error.is_none(), "seed {seed}, round {round}: {error:?}");
        for pair in batches.windows(2) {
            assert_eq!(pair[0].end, pair[1].start, "seed {seed}, round {round}: no gap between two batches");
        }
        let n = rng.gen_range(0..batches.len());
        let (again, _) = cut(content.as_bytes(), batches[n].start, true);
        let request =
            |b: &Batch| (b.start, b.end, b.body.clone(), b.rejected.iter().map(|r| r.line).collect::<Vec<_>>());
        let (expected, found): (Vec<_>, Vec<_>) =
            (batches[n..].iter().map(request).collect(), again.iter().map(request).collect());
        assert!(expected == found, "seed {seed}, round {round}: cut again from batch {n}, the same requests come out");
        let (strict, error) = cut(content.as_bytes(), Place::START, false);
        let bad = batches.iter().position(|b| !b.rejected.is_empty());
        assert_eq!(error.is_some(), bad.is_some(), "seed {seed}, round {round}");
        let before = &batches[..bad.unwrap_or(batches.len())];
        assert!(
            strict.iter().map(request).eq(before.iter().map(request)),
            "seed {seed}, round {round}: up to the first bad row, not skipping cuts as skipping does"
        );
    }
}

#[test]
fn bad_row_is_told_after_the_rows_before_it() {
    let content = b"{\"id\":1}\n{\"id\":2}\n{\"x\":3}\n{\"id\":4}\n";
    let (batches, error) = cut(content, Place::START, false);
    assert_eq!(batches.iter().map(|b| b.rows).collect::<Vec<_>>(), [2]);
    assert_eq!(batches[0].end, Place { offset: 18, line: 3 }, "the next run begins at the bad row");
    assert!(matches!(error, Some(CutError::BadRow { line: 3, .. })), "{error:?}");
    let (batches, error) = cut(content, Place::START, true);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(batches.iter().map(|b| (b.rows, b.rejected.len())).collect::<Vec<_>>(), [(2, 0), (1, 1)]);
    assert_eq!(batches[1].rejected[0].raw, b"{\"x\":3}\n");
}
