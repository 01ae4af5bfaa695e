use super::*;

fn status(body: &str) -> u16 {
    parse(body.as_bytes()).expect_err(body).status().as_u16()
}

#[test]
fn a_transaction_is_taken_as_written() {
    let body = r#"{"require":[{"key":"a","revision":3},{"key":"b","revision":null}],
        "operations":[{"put":{"key":"a","value":{ "x": [1, null] }}},{"put":{"key":"n","value":null}},
        {"put":{"key":"b","bytes":"AAEC","type":"image/png"}},{"delete":{"key":"c"}},{"erase":{"key":"d","revision":9}}]}"#;
    let (requirements, operations) = parse(body.as_bytes()).expect("well-formed");
    assert_eq!(requirements.iter().map(|r| r.revision).collect::<Vec<_>>(), [Some(3), None]);
    let key = |k: &str| Key::client(k).expect("a key");
    let put = |k: &str, value: &'static [u8], t: &str| Operation::Put {
        key: key(k),
        value: Bytes::from_static(value),
        media_type: t.into(),
        blob: false,
    };
    let want = vec![
        put("a", br#"{ "x": [1, null] }"#, JSON),
        put("n", b"null", JSON),
        put("b", &[0, 1, 2], "image/png"),
        Operation::Delete { key: key("c") },
        Operation::Erase { key: key("d"), revision: 9 },
    ];
    assert_eq!(operations, want);
}

/// JSON Schema calls each of these an integer, and so does a reader that has doubles only.
#[test]
fn whole_numbers_may_be_written_with_fraction_or_exponent() {
    let exact = "18446744073709551615.0";
    for (text, revision) in
        [("7", 7), ("7.0", 7), ("0.7E+1", 7), ("7000e-3", 7), ("-0", 0), ("0e9", 0), (exact, u64::MAX)]
    {
        let body = format!(
            r#"{{"require":[{{"key":"a","revision":{text}}}],"operations":[{{"erase":{{"key":"b","revision":{text}}}}}]}}"#
        );
        let (requirements, operations) = parse(body.as_bytes()).expect(text);
        assert_eq!(requirements[0].revision, Some(revision), "{text}");
        let erase = Operation::Erase { key: Key::client("b").expect("a key"), revision };
        assert_eq!(operations, [erase], "{text}");
    }
}

#[test]
fn malformed_json_is_400() {
    let deep = format!(r#"{{"operations":[{{"put":{{"key":"a","value":{}1{}}}}}]}}"#, "[".repeat(80), "]".repeat(80));
    let table = [
        "",
        "null",
        "[]",
        "{}",
        "{",
        r#"{"operations":1}"#,
        r#"{"operations":[{"delete":{"key":"a"}}],"x":1}"#,
        r#"{"operations":[{"delete":{"key":"a"}}],"operations":[]}"#,
        r#"{"operations":[{"delete":{"key":"a","x":1}}]}"#,
        r#"{"operations":[{"delete":{"key":"a","key":"b"}}]}"#,
        r#"{"operations":[{"delete":{}}]}"#,
        r#"{"operations":[{"delete":{"key":1}}]}"#,
        r#"{"operations":[{"rename":{"key":"a"}}]}"#,
        r#"{"operations":[{"delete":{"key":"a"},"put":{"key":"a","value":1}}]}"#,
        r#"{"operations":[{"put":{"key":"a","value":{"x":1,"x":2}}}]}"#,
        r#"{"operations":[{"put":{"key":"a","value":{"x":1,"\u0078":2}}}]}"#,
        r#"{"operations":[{"put":{"key":"a","value":1e999}}]}"#,
        r#"{"operations":[{"put":{"key":"a","value":01}}]}"#,
        r#"{"operations":[{"put":{"key":"a","value":NaN}}]}"#,
        r#"{"operations":[{"put":{"key":"a","value":"\ud800"}}]}"#,
        r#"{"operations":[{"put":{"key":"a","blob":1}}]}"#,
        r#"{"operations":[{"erase":{"key":"a"}}]}"#,
        r#"{"operations":[{"erase":{"key":"a","revision":-1}}]}"#,
        r#"{"operations":[{"erase":{"key":"a","revision":1.5}}]}"#,
        r#"{"operations":[{"erase":{"key":"a","revision":1e20}}]}"#,
        r#"{"operations":[{"erase":{"key":"a","revision":70e-2}}]}"#,
        r#"{"operations":[{"erase":{"key":"a","revision":true}}]}"#,
        r#"{"require":[{"key":"a","revision":-1.0}],"operations":[{"delete":{"key":"a"}}]}"#,
        r#"{"operations":[{"erase":{"key":"a","revision":"1"}}]}"#,
        r#"{"operations":[{"erase":{"key":"a","revision":18446744073709551616}}]}"#,
        r#"{"require":[{"key":"a"}],"operations":[{"delete":{"key":"a"}}]}"#,
        r#"{"operations":[{"delete":{"key":"a"}}]} x"#,
        r#"{"operations":[{"delete":{"key":""}}]}"#,
        r#"{"operations":[{"delete":{"key":"~api-keys/x"}}]}"#,
        r#"{"operations":[{"delete":{"key":"a\u0000"}}]}"#,
        &deep,
    ];
    for body in table {
        assert_eq!(status(body), 400, "{body}");
    }
    assert_eq!(
        parse(b"{\"operations\":[{\"delete\":{\"key\":\"\xff\"}}]}").expect_err("no UTF-8").status().as_u16(),
        400
    );
}

#[test]
fn what_cannot_be_done_is_422_or_413() {
    let many: Vec<_> = (0..=OPERATIONS_MAX).map(|i| format!(r#"{{"delete":{{"key":"k{i}"}}}}"#)).collect();
    let table = [
        (r#"{"operations":[]}"#.to_owned(), 422),
        (format!(r#"{{"operations":[{}]}}"#, many.join(",")), 422),
        (r#"{"operations":[{"delete":{"key":"a"}},{"erase":{"key":"a","revision":1}}]}"#.into(), 422),
        (
            r#"{"require":[{"key":"a","revision":1},{"key":"a","revision":2}],"operations":[{"delete":{"key":"a"}}]}"#
                .into(),
            422,
        ),
        (r#"{"operations":[{"put":{"key":"a"}}]}"#.into(), 422),
        (r#"{"operations":[{"put":{"key":"a","value":1,"bytes":""}}]}"#.into(), 422),
        (r#"{"operations":[{"put":{"key":"a","blob":"bafk"}}]}"#.into(), 422),
        (r#"{"operations":[{"put":{"key":"a","bytes":"A"}}]}"#.into(), 422),
        (r#"{"operations":[{"put":{"key":"a","bytes":"AB=="}}]}"#.into(), 422),
        (r#"{"operations":[{"put":{"key":"a","value":1,"type":"text"}}]}"#.into(), 415),
        (format!(r#"{{"operations":[{{"put":{{"key":"a","value":"{}"}}}}]}}"#, "x".repeat(VALUE_BYTES_MAX)), 413),
    ];
    for (body, want) in table {
        assert_eq!(status(&body), want, "{}", &body[..body.len().min(120)]);
    }
}
