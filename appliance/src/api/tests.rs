use samovar_fuzz::decoder;

use super::*;

fn seeds(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|t| t.as_bytes().to_vec()).collect()
}

#[test]
fn percent_decoding_is_strict() {
    assert_eq!(decode("a%2Fb+%C3%A9").expect("well-formed"), "a/b+\u{e9}");
    for bad in ["%", "%2", "a%zz", "%+1", "%FF", "%C0%AF", "%ED%A0%80"] {
        assert!(decode(bad).is_err(), "{bad:?} should be refused");
    }
}

/// What is decoded and encoded again names the same key.
#[test]
fn fuzz_key_in_path() {
    decoder("key-in-path", &seeds(&["a/b", "%7Eapi-keys/x", "caf%C3%A9", "a%2Fb%20c", "%00"]), |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let Ok(decoded) = decode(text) else { return };
        let encoded = percent_encoding::percent_encode(decoded.as_bytes(), percent_encoding::NON_ALPHANUMERIC);
        assert_eq!(decode(&encoded.to_string()).expect("encoded here"), decoded, "a key changes on its way");
        if let Ok(key) = Key::client(&decoded) {
            assert!(!key.is_reserved() && !key.as_str().chars().any(char::is_control), "{key:?} got through");
        }
    });
}

#[test]
fn fuzz_query() {
    let route = ROUTES.iter().find(|r| r.pattern == "/v1/keys").expect("the route is there");
    decoder("query", &seeds(&["prefix=a%2F&after=b&limit=7", "limit=18446744073709551615", "&&prefix"]), |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let Ok(values) = Values::parse(Some(text), route.query) else { return };
        let limit = values.limit();
        assert!((1..=1000).contains(&limit), "a limit of {limit} got through");
    });
}

/// The body of a transaction: whatever is taken is JSON that another strict parser takes too.
#[test]
fn fuzz_transaction_body() {
    let body = r#"{"require":[{"key":"a","revision":null}],"operations":[{"put":{"key":"a","value":{"x":[1,"\u00e9"]}}},
        {"put":{"key":"b","bytes":"AAEC","type":"image/png"}},{"delete":{"key":"c"}},{"erase":{"key":"d","revision":9}}]}"#;
    decoder("transaction-body", &seeds(&[body]), |bytes| {
        if transactions::from_json::<serde::de::IgnoredAny>(bytes).is_ok() {
            let read: serde_json::Value = serde_json::from_slice(bytes).expect("taken as JSON");
            assert!(read.to_string().len() <= 6 * bytes.len() + 32, "JSON grows as it is read");
        }
    });
}
