//! What serde lets through inside values that are kept as they were written: repeated fields, great depth, numbers that
//! no reader would agree on; and whole numbers, however they are written.

use std::collections::HashSet;
use std::fmt;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Deepest nesting of a body.
pub(super) const DEPTH_MAX: usize = 64;

/// Refuses JSON that repeats a field, is nested too deep, or has a number beyond what a double or a 64-bit integer holds.
pub(super) fn check(json: &[u8]) -> Result<(), serde_json::Error> {
    check_within(json, 0)
}

/// The same for a value that is to stand `depth` levels deep in a body.
pub(crate) fn check_within(json: &[u8], depth: usize) -> Result<(), serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    Any { depth }.deserialize(&mut deserializer)?;
    deserializer.end()
}

struct Any {
    depth: usize,
}

impl Any {
    fn deeper<E: de::Error>(&self) -> Result<Self, E> {
        if self.depth >= DEPTH_MAX {
            return Err(E::custom(format!("nested deeper than {DEPTH_MAX} levels")));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Any {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Any {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self.deeper()?)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(Name(name)) = fields.next_key()? {
            if seen.contains(&name) {
                return Err(de::Error::custom(format!("field `{name}` is given twice")));
            }
            seen.insert(name);
            fields.next_value_seed(self.deeper()?)?;
        }
        Ok(())
    }
}

/// A whole number. JSON has one kind of number, and many writers cannot tell `7` from `7.0`.
pub(crate) fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let json = <&RawValue>::deserialize(deserializer)?.get();
    whole_of(json).ok_or_else(|| de::Error::custom("expected a whole number below 2^64"))
}

/// A whole number or `null`.
pub(crate) fn whole_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    match <&RawValue>::deserialize(deserializer)?.get() {
        "null" => Ok(None),
        json => whole_of(json).map(Some).ok_or_else(|| de::Error::custom("expected a whole number below 2^64 or null")),
    }
}

/// The value of a JSON number that is whole, exactly: a double would round it.
fn whole_of(json: &str) -> Option<u64> {
    let (mantissa, exponent) = json.split_once(['e', 'E']).unwrap_or((json, "0"));
    let (negative, mantissa) = mantissa.strip_prefix('-').map_or((false, mantissa), |rest| (true, rest));
    let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [integer, fraction].concat();
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() && !digits.is_empty() {
        return Some(0);
    }
    let exponent = i64::from(exponent.parse::<i32>().ok()?);
    let zeros = i64::try_from(digits.len() - significant.len()).ok()?;
    let power = exponent.checked_sub(i64::try_from(fraction.len()).ok()?)?.checked_add(zeros)?;
    let factor = 10_u64.checked_pow(u32::try_from(power).ok()?)?;
    significant.parse::<u64>().ok().filter(|_| !negative)?.checked_mul(factor)
}

#[derive(PartialEq, Eq, Hash)]
struct Name<'a>(std::borrow::Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Name<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field name")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(text.into()))
            }
            fn visit_str<E>(self, text: &str) -> Result<Name<'de>, E> {
                Ok(Name(text.to_owned().into()))
            }
        }
        deserializer.deserialize_str(Text)
    }
}
