//! From when until when a certificate holds (RFC 5280, 4.1.2.5): the one field of a certificate that rustls checks but does
//! not tell.

use time::{Date, Month, PrimitiveDateTime, Time};

pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const BIT_STRING: u8 = 0x03;
const EXPLICIT_VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// When a certificate holds, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    /// Its beginning; 0 for one before 1970.
    pub(super) not_before_s: u64,
    /// Its end.
    pub(super) not_after_s: u64,
}

/// Validity of a certificate in DER. Nothing if this is no certificate, or it ended before 1970.
pub(super) fn of(der: &[u8]) -> Option<Validity> {
    let (certificate, _) = take(der, SEQUENCE)?;
    let (mut fields, _) = take(certificate, SEQUENCE)?;
    if let Some((_, after_version)) = take(fields, EXPLICIT_VERSION) {
        fields = after_version;
    }
    for _serial_signature_issuer in 0..3 {
        fields = any(fields)?.2;
    }
    let (validity, _) = take(fields, SEQUENCE)?;
    let (begin_tag, begin, after_not_before) = any(validity)?;
    let (end_tag, end, _) = any(after_not_before)?;
    let not_before_s = seconds(begin_tag, std::str::from_utf8(begin).ok()?).unwrap_or(0);
    Some(Validity { not_before_s, not_after_s: seconds(end_tag, std::str::from_utf8(end).ok()?)? })
}

/// The content of the element at the start if it has this tag, and what follows it.
pub(super) fn take(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    any(bytes).filter(|element| element.0 == tag).map(|(_, content, rest)| (content, rest))
}

/// Tag and content of the element at the start, and what follows it (X.690, 8.1; lengths of up to four bytes).
pub(super) fn any(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let digits = usize::from(first & 0x7f);
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(digits)?;
            (length.iter().fold(0, |n, byte| n << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDhhmmssZ` with years 1950 to 2049, or `YYYYMMDDhhmmssZ`.
fn seconds(tag: u8, text: &str) -> Option<u64> {
    let digits = text.strip_suffix('Z').filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let (year, rest) = digits.split_at(2);
            let year: i32 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        (GENERALIZED_TIME, 14) => {
            let (year, rest) = digits.split_at(4);
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let part = |at: usize| rest.get(at..at + 2)?.parse::<u8>().ok();
    let date = Date::from_calendar_date(year, Month::try_from(part(0)?).ok()?, part(2)?).ok()?;
    let time = Time::from_hms(part(4)?, part(6)?, part(8)?).ok()?;
    u64::try_from(PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use time::OffsetDateTime;

    use super::*;

    #[test]
    fn the_end_is_read_as_it_was_written() {
        let key = KeyPair::generate().expect("a key");
        for end in [
            34_401_906,      // 1971-02-03 04:05:06
            1_835_481_599,   // 2028-02-29 23:59:59
            2_524_607_999,   // 2049-12-31 23:59:59
            2_524_608_000,   // 2050-01-01 00:00:00
            253_402_300_799, // 9999-12-31 23:59:59
        ] {
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
            params.not_before = OffsetDateTime::from_unix_timestamp(end / 2).expect("a time");
            params.not_after = OffsetDateTime::from_unix_timestamp(end).expect("a time");
            let der = params.self_signed(&key).expect("signed").der().to_vec();
            let life = of(&der).map(|v| (v.not_before_s.cast_signed(), v.not_after_s.cast_signed()));
            assert_eq!(life, Some((end / 2, end)), "a certificate until {end} seconds after 1970");
            for cut in 0..der.len() {
                assert_eq!(of(&der[..cut]), None, "{cut} of {} bytes are no certificate", der.len());
            }
        }
    }

    #[test]
    fn nonsense_is_no_time() {
        for (tag, text) in [
            (UTC_TIME, "20280229235959Z"),
            (UTC_TIME, "280230000000Z"),
            (UTC_TIME, "281301000000Z"),
            (UTC_TIME, "2802290000Z"),
            (GENERALIZED_TIME, "20280229235959+0100"),
            (GENERALIZED_TIME, "20280229245959Z"),
            (0x13, "20280229235959Z"),
        ] {
            assert_eq!(seconds(tag, text), None, "{text} under tag {tag:#x}");
        }
    }
}
