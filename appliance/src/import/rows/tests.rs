use std::io::Cursor;

use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::*;

pub(in crate::import) fn shape(format: RowFormat, key: &[&str]) -> Shape {
    Shape {
        format,
        prefix: "p/".into(),
        key_fields: key.iter().map(|k| (*k).to_owned()).collect(),
        delimiter: b',',
        typed: false,
    }
}

fn all(content: &[u8], shape: &Shape) -> Vec<Row> {
    let mut rows = Rows::new(content, shape.clone()).expect("a good beginning");
    std::iter::from_fn(|| rows.next().expect("rows that end")).collect()
}

fn good(row: &Row) -> (String, String) {
    let (key, value) = row.content.as_ref().unwrap_or_else(|bad| panic!("line {}: {}", row.line, bad.reason));
    (key.as_str().to_owned(), String::from_utf8(value.clone()).expect("JSON is UTF-8"))
}

#[test]
fn csv_becomes_objects() {
    let content = "\u{feff}id,\"na\"\"me\",n\r\n1,\"a,\r\nb\",007\r\n\r\n2,5\" pipe,-1.5e3\n3,,true";
    let mut shape = shape(RowFormat::Csv, &["id"]);
    let rows = all(content.as_bytes(), &shape);
    let expected = [
        ("p/1", r#"{"id":"1","na\"me":"a,\r\nb","n":"007"}"#, 2),
        ("p/2", r#"{"id":"2","na\"me":"5\" pipe","n":"-1.5e3"}"#, 5),
        ("p/3", r#"{"id":"3","na\"me":"","n":"true"}"#, 6),
    ];
    assert_eq!(rows.len(), expected.len());
    for (row, (key, value, line)) in rows.iter().zip(expected) {
        assert_eq!((good(row), row.line), ((key.into(), value.into()), line));
    }
    shape.typed = true;
    shape.key_fields = vec!["n".into(), "id".into()];
    let values: Vec<_> = all(content.as_bytes(), &shape).iter().map(good).collect();
    assert_eq!(values[0], ("p/007/1".into(), r#"{"id":1,"na\"me":"a,\r\nb","n":"007"}"#.into()), "007 is no number");
    assert_eq!(values[1], ("p/-1.5e3/2".into(), r#"{"id":2,"na\"me":"5\" pipe","n":-1.5e3}"#.into()));
    assert_eq!(values[2], ("p/true/3".into(), r#"{"id":3,"na\"me":"","n":true}"#.into()));
}

#[test]
fn json_lines_stay_as_they_are() {
    let content = "{\"id\": 7, \"x\":[1,{\"id\":8}]}\n\n  {\"\\u0069d\":\"\\u00fc\",\"x\":1.0}\r\n{\"id\":true}";
    let rows: Vec<_> = all(content.as_bytes(), &shape(RowFormat::Jsonl, &["id"])).iter().map(good).collect();
    let expected = [
        ("p/7", "{\"id\": 7, \"x\":[1,{\"id\":8}]}"),
        ("p/ü", "{\"\\u0069d\":\"\\u00fc\",\"x\":1.0}"),
        ("p/true", "{\"id\":true}"),
    ];
    assert_eq!(rows, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
}

#[test]
fn bad_rows_say_why_and_are_kept() {
    let long = format!("{{\"id\":\"{}\"}}\n", "k".repeat(600));
    let large = format!("{{\"id\":1,\"v\":\"{}\"}}\n", "v".repeat(VALUE_BYTES_MAX));
    let deep = format!("{{\"id\":1,\"v\":{}{}}}\n", "[".repeat(60), "]".repeat(60));
    let json: [(&[u8], &str); 18] = [
        (b"{\"id\":1,}\n", "malformed JSON at byte 9"),
        (b"{\"id\":1} x\n", "malformed JSON at byte 10: trailing characters"),
        (b"{\"id\":1\n", "malformed JSON"),
        (b"[{\"id\":1}]\n", "jq -c"),
        (b"1\n", "malformed JSON"),
        (b"{\"id\":1,\"v\":{\"a\":1,\"a\":2}}\n", "field `a` is given twice"),
        (b"{\"id\":1,\"v\":1e999}\n", "number out of range"),
        (b"{\"id\":1,\"v\":\"\\ud800\"}\n", "malformed JSON"),
        (deep.as_bytes(), "nested deeper than 64 levels"),
        (b"{\"x\":1}\n", "there is no key field \"id\""),
        (b"{\"id\":null}\n", "not a string, number or boolean"),
        (b"{\"id\":{}}\n", "not a string, number or boolean"),
        (b"{\"id\":1,\"id\":2}\n", "field `id` is given twice"),
        (b"{\"id\":\"\"}\n", "\"id\" is empty"),
        (b"{\"id\":\"a\\u0000\"}\n", "control characters"),
        (b"{\"id\":\"\xff\"}\n", "not UTF-8 at byte 8"),
        (long.as_bytes(), "at most 512 bytes"),
        (large.as_bytes(), "the limit is 1048576"),
    ];
    let csv: [(&[u8], &str); 7] = [
        (b"1\n", "1 fields, the header has 2"),
        (b"1,2,3\n", "3 fields, the header has 2"),
        (b",2\n", "\"id\" is empty"),
        (b"1,\xff\n", "field 2 is not UTF-8"),
        (b"1,\"2\"x\n", "field 2: text after the closing quote"),
        (b"1,\"2", "field 2: the quote is not closed"),
        (b"\"a\nb\",2\n", "control characters"),
    ];
    let json = json.into_iter().map(|(row, reason)| (RowFormat::Jsonl, "", row, reason));
    let csv = csv.into_iter().map(|(row, reason)| (RowFormat::Csv, "id,x\n", row, reason));
    for (format, header, raw, reason) in json.chain(csv) {
        let rows = all(&[header.as_bytes(), raw].concat(), &shape(format, &["id"]));
        let shown = String::from_utf8_lossy(&raw[..raw.len().min(60)]).into_owned();
        let bad = rows[0].content.as_ref().expect_err(&shown);
        assert!(bad.reason.contains(reason), "{shown}: expected {reason:?}, said {:?}", bad.reason);
        assert_eq!(bad.raw, raw, "{shown} is kept byte for byte");
    }
    let reserved = Shape { prefix: "~x".into(), ..shape(RowFormat::Jsonl, &["id"]) };
    let rows = all(b"{\"id\":1}", &reserved);
    let bad = rows[0].content.as_ref().expect_err("reserved keys are refused here already");
    assert!(bad.reason.contains("system state"), "{}", bad.reason);
}

#[test]
fn headers_are_checked() {
    for (content, key, said) in [
        ("", "id", "the file is empty"),
        ("a,b\n", "id", "no column \"id\"; there are: a, b"),
        ("id,a,id\n", "id", "\"id\" occurs twice"),
        ("id,\"a\n", "id", "not closed"),
    ] {
        let error = Rows::new(content.as_bytes(), shape(RowFormat::Csv, &[key])).err().expect(said).to_string();
        assert!(error.contains(said) && error.starts_with("line 1"), "{content:?}: expected {said:?}, said {error:?}");
    }
}

#[test]
fn row_without_end_stops() {
    let endless = |head: &str, fill: u8| [head.as_bytes(), &vec![fill; ROW_BYTES_MAX + 10]].concat();
    for (format, content) in [
        (RowFormat::Csv, endless("id\n1\n\"", b'\n')),
        (RowFormat::Csv, endless("id\n1\n", b'x')),
        (RowFormat::Jsonl, endless("{\"id\":1}\n\n{\"id\":\"", b'x')),
    ] {
        let mut rows = Rows::new(content.as_slice(), shape(format, &["id"])).expect("header");
        rows.next().expect("a row").expect("a row");
        let stop = rows.next().expect_err("a row of more than 8 MiB is not kept in memory");
        assert!(matches!(stop, Stop::Endless { line: 3, .. }), "{stop}");
    }
}

/// Text of `n` fields a row with everything that makes CSV hard, and the fields as the `csv` crate writes them.
fn random_csv(rng: &mut StdRng, delimiter: u8) -> Vec<u8> {
    let terminator = [csv_oracle::Terminator::CRLF, csv_oracle::Terminator::Any(b'\n')];
    let mut writer = csv_oracle::WriterBuilder::new()
        .delimiter(delimiter)
        .terminator(*terminator.choose(rng).expect("two"))
        .quote_style(*[csv_oracle::QuoteStyle::Necessary, csv_oracle::QuoteStyle::Always].choose(rng).expect("two"))
        .from_writer(Vec::new());
    writer.write_record(["id", "a", "b"]).expect("header");
    for n in 0..rng.gen_range(0..40) {
        let field = |rng: &mut StdRng| -> String {
            let parts = ["x", "\"", ",", ";", "\n", "\r\n", " ", "ü", "\"\"", "long text "];
            (0..rng.gen_range(0..5)).map(|_| *parts.choose(rng).expect("parts")).collect()
        };
        let (a, b) = (field(rng), field(rng));
        writer.write_record([format!("k{n}"), a, b]).expect("row");
    }
    writer.into_inner().expect("bytes")
}

use ::csv as csv_oracle;

#[test]
fn csv_reads_as_the_csv_crate_does_from_any_row_on() {
    let seed = 1234;
    let mut rng = StdRng::seed_from_u64(seed);
    for round in 0..300 {
        let delimiter = *b",;".choose(&mut rng).expect("two");
        let content = random_csv(&mut rng, delimiter);
        let shape = Shape { delimiter, ..shape(RowFormat::Csv, &["id"]) };
        let mut oracle = csv_oracle::ReaderBuilder::new().delimiter(delimiter).from_reader(content.as_slice());
        let expected: Vec<serde_json::Value> = oracle
            .records()
            .map(|r| r.expect("the oracle reads what it wrote"))
            .map(|r| serde_json::json!({ "id": &r[0], "a": &r[1], "b": &r[2] }))
            .collect();
        let mut rows = Rows::new(Cursor::new(&content), shape.clone()).expect("header");
        let (mut places, mut found, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            places.push(rows.place());
            let Some(row) = rows.next().expect("rows that end") else { break };
            let (key, value) = good(&row);
            found.push(serde_json::from_str::<serde_json::Value>(&value).expect("a value is JSON"));
            keys.push(key);
        }
        assert_eq!(found, expected, "seed {seed}, round {round}: the same fields as the csv crate");
        let n = rng.gen_range(0..places.len());
        rows.resume_at(places[n]).expect("seek");
        let rest: Vec<_> = std::iter::from_fn(|| rows.next().expect("rows that end")).map(|r| good(&r).0).collect();
        assert_eq!(rest, keys[n..], "seed {seed}, round {round}: from row {n} on");
        let lines = 1 + content.iter().filter(|b| **b == b'\n').count() as u64;
        assert_eq!(rows.place(), Place { offset: content.len() as u64, line: lines }, "seed {seed}, round {round}");
    }
}

#[test]
fn any_bytes_are_rows_or_reasons() {
    let seed = 99;
    let mut rng = StdRng::seed_from_u64(seed);
    for round in 0..2000 {
        let alphabet = b"{}[]\":,\\nulltrue0189.eE-+ id\n\r\t\xff\xc3\xbc\x00";
        let bytes: Vec<u8> = (0..rng.gen_range(0..80)).map(|_| *alphabet.choose(&mut rng).expect("bytes")).collect();
        for (format, head) in [(RowFormat::Jsonl, ""), (RowFormat::Csv, "id,x\n")] {
            let content = [head.as_bytes(), &bytes].concat();
            let mut line = 0;
            for row in all(&content, &shape(format, &["id"])) {
                assert!(row.line > line, "seed {seed}, round {round}: rows go forward");
                line = row.line;
                if let Ok((_, value)) = row.content {
                    let parsed = serde_json::from_slice::<Box<serde_json::value::RawValue>>(&value);
                    assert!(parsed.is_ok(), "seed {seed}, round {round}: {value:?} is JSON");
                }
            }
        }
    }
}

/// Reads rows to their end: each place lies behind the one before, a value is JSON, and reading ends.
fn read_all(content: &[u8], shape: &Shape) {
    let Ok(mut rows) = Rows::new(content, shape.clone()) else { return };
    let mut before = rows.place();
    while let Ok(Some(row)) = rows.next() {
        assert!(rows.place().offset > before.offset, "no row takes no bytes");
        before = rows.place();
        if let Ok((key, value)) = row.content {
            assert!(key.as_str().starts_with("p/"), "{key:?} lacks its prefix");
            serde_json::from_slice::<serde::de::IgnoredAny>(&value).expect("a value is JSON");
        }
    }
    assert!(before.offset <= content.len() as u64, "the last row ends within the file");
}

#[test]
fn fuzz_csv_rows() {
    let seeds = ["id,\"na\"\"me\",n\r\n1,\"a,\r\nb\",007\r\n\r\n2,5\" pipe,-1.5e3\n3,,true", "id\n1\n"];
    let mut shape = shape(RowFormat::Csv, &["id"]);
    shape.typed = true;
    samovar_fuzz::decoder("csv-rows", &seeds.map(|s| s.as_bytes().to_vec()), |bytes| read_all(bytes, &shape));
}

#[test]
fn fuzz_json_rows() {
    let seeds = ["{\"id\":1,\"x\":{\"y\":[1,null]}}\n\n{\"id\":\"b\"}\r\n", "[1]\n{\"id\":true}"];
    let shape = shape(RowFormat::Jsonl, &["id"]);
    samovar_fuzz::decoder("json-rows", &seeds.map(|s| s.as_bytes().to_vec()), |bytes| read_all(bytes, &shape));
}
