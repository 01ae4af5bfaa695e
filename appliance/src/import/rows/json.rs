//! JSON lines: the value is the object as it stands in the file, byte for byte; only the key fields are looked at.

use std::borrow::Cow;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Shape, push_key_part};
use crate::api::check_json_within;

/// Levels around a value in a transaction: body, operations, operation, put.
const DEPTH_IN_BODY: usize = 4;

/// Key and JSON object of a row.
pub(super) fn row(raw: &[u8], shape: &Shape) -> Result<(String, Vec<u8>), String> {
    let text = std::str::from_utf8(raw).map_err(|e| format!("not UTF-8 at byte {} of the row", e.valid_up_to() + 1))?;
    let text = text.trim_ascii();
    if text.starts_with('[') {
        return Err("an array, not an object; for a file that is one array: jq -c '.[]' FILE > FILE.jsonl".into());
    }
    check_json_within(text.as_bytes(), DEPTH_IN_BODY).map_err(|e| malformed(&e))?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let found = KeyFields(&shape.key_fields).deserialize(&mut reader).map_err(|e| malformed(&e))?;
    let mut key = shape.prefix.clone();
    for (n, (field, value)) in shape.key_fields.iter().zip(found).enumerate() {
        let value = value.ok_or_else(|| format!("there is no key field {field:?}"))?;
        push_key_part(&mut key, n == 0, field, &scalar(field, value)?)?;
    }
    Ok((key, text.as_bytes().to_vec()))
}

/// serde_json counts lines inside the row; a row is one line here.
fn malformed(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    format!("malformed JSON at byte {}: {what}", error.column())
}

/// A string's content, or a number or boolean as written.
fn scalar<'a>(field: &str, value: &'a RawValue) -> Result<Cow<'a, str>, String> {
    let raw = value.get();
    match raw.as_bytes().first() {
        Some(b'"') => serde_json::from_str::<String>(raw).map(Cow::Owned).map_err(|e| malformed(&e)),
        Some(b'{' | b'[' | b'n') | None => Err(format!("key field {field:?} is not a string, number or boolean")),
        Some(_) => Ok(Cow::Borrowed(raw)),
    }
}

/// Picks the values of some members of an object, in the order asked.
struct KeyFields<'f>(&'f [String]);

impl<'de> DeserializeSeed<'de> for KeyFields<'_> {
    type Value = Vec<Option<&'de RawValue>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for KeyFields<'_> {
    type Value = Vec<Option<&'de RawValue>>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = vec![None; self.0.len()];
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            match self.0.iter().position(|f| *f == name) {
                Some(i) => found[i] = Some(map.next_value()?),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found)
    }
}
