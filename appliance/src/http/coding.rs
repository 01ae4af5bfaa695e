//! Compressed answers: zstd or gzip, as the client asks.
//!
//! A length says something of what was compressed together (BREACH): who can put text beside a secret learns it from many
//! lengths. So only what handlers mark is compressed, lists and descriptions that hold no value, token or password;
//! everything else goes as it is. No answer depends on a cookie, so no foreign page can ask with somebody's credentials.

use std::io::Write as _;

use bytes::Bytes;
use flate2::{Compression, GzBuilder};
use hyper::Response;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderValue, VARY};

use super::body::Payload;

/// Below this, in bytes, compressing saves nothing worth the time.
const BYTES_MIN: usize = 1 << 10;
/// Above this, in bytes, compressing would hold up the listener's thread for long; it takes some 10 ms here.
const BYTES_MAX: usize = 1 << 20;
/// Both are told to be fast.
const ZSTD_LEVEL: i32 = 1;

/// Mark of an answer that may be compressed: an extension of the response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Compressible;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Zstd,
    Gzip,
}

impl Coding {
    /// What the client likes best of what there is; of two that it likes the same, zstd (RFC 9110, 12.5.3).
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let (mut zstd, mut gzip, mut others) = (None, None, None);
        for part in headers.get_all(ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')) {
            let (name, weight) = part.split_once(';').map_or((part, Some(1000)), |(name, w)| (name, milli(w)));
            let name = name.trim();
            if name.eq_ignore_ascii_case("zstd") {
                zstd = weight;
            } else if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
                gzip = weight;
            } else if name == "*" {
                others = weight;
            }
        }
        let (zstd, gzip) = (zstd.or(others).unwrap_or(0), gzip.or(others).unwrap_or(0));
        match (zstd, gzip) {
            (0, 0) => None,
            (zstd, gzip) if zstd >= gzip => Some(Self::Zstd),
            _ => Some(Self::Gzip),
        }
    }

    fn name(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        })
    }

    fn encode(self, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Zstd => zstd::bulk::compress(bytes, ZSTD_LEVEL),
            Self::Gzip => {
                let mut encoder = GzBuilder::new().write(Vec::with_capacity(bytes.len() / 4), Compression::fast());
                encoder.write_all(bytes)?;
                encoder.finish()
            }
        }
    }
}

/// `q=0.5` in thousandths; what is malformed counts as no wish.
fn milli(weight: &str) -> Option<u16> {
    let number: f32 = weight.trim().strip_prefix("q=").or(weight.trim().strip_prefix("Q="))?.parse().ok()?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 0 and 1000")]
    (0.0..=1.0).contains(&number).then_some((number * 1000.0) as u16)
}

/// Compresses an answer that is marked, if the client takes it and it becomes shorter.
pub(super) fn apply(response: &mut Response<Payload>, coding: Option<Coding>) {
    if response.extensions_mut().remove::<Compressible>().is_none() {
        return;
    }
    response.headers_mut().append(VARY, HeaderValue::from_static("Accept-Encoding"));
    let (Some(coding), Payload::Full(bytes)) = (coding, response.body()) else { return };
    if !(BYTES_MIN..=BYTES_MAX).contains(&bytes.len()) {
        return;
    }
    match coding.encode(bytes) {
        Ok(encoded) if encoded.len() < bytes.len() => {
            *response.body_mut() = Payload::Full(Bytes::from(encoded));
            response.headers_mut().insert(CONTENT_ENCODING, coding.name());
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "an answer could not be compressed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_chooses() {
        for (accepted, expected) in [
            ("", None),
            ("identity", None),
            ("br", None),
            ("gzip", Some(Coding::Gzip)),
            ("x-gzip", Some(Coding::Gzip)),
            ("gzip, deflate, br, zstd", Some(Coding::Zstd)),
            ("zstd;q=0.5, gzip", Some(Coding::Gzip)),
            ("zstd;q=0, gzip;q=0.001", Some(Coding::Gzip)),
            ("gzip;q=0", None),
            ("*", Some(Coding::Zstd)),
            ("*;q=0", None),
            ("zstd;q=0, *", Some(Coding::Gzip)),
            ("GZIP; q=1.0", Some(Coding::Gzip)),
            ("gzip;q=2", None),
            ("gzip;level=9", None),
        ] {
            let headers = [(ACCEPT_ENCODING, HeaderValue::from_static(accepted))].into_iter().collect();
            assert_eq!(Coding::of(&headers), expected, "Accept-Encoding: {accepted}");
        }
    }

    #[test]
    fn what_is_marked_and_large_enough_becomes_shorter() {
        let text: Bytes = "the samovar hums and hums. ".repeat(100).into();
        let answer = |bytes: &Bytes, marked: bool, coding| {
            let mut response = Response::new(Payload::Full(bytes.clone()));
            if marked {
                response.extensions_mut().insert(Compressible);
            }
            apply(&mut response, coding);
            let coded = response.headers().get(CONTENT_ENCODING).map(|v| v.to_str().expect("ASCII").to_owned());
            let Payload::Full(body) = response.into_body() else { panic!("the body is gone") };
            (coded, body)
        };
        let (coded, body) = answer(&text, true, Some(Coding::Zstd));
        assert_eq!(coded.as_deref(), Some("zstd"));
        assert_eq!(zstd::bulk::decompress(&body, text.len()).expect("zstd"), text);
        let (coded, body) = answer(&text, true, Some(Coding::Gzip));
        assert_eq!(coded.as_deref(), Some("gzip"));
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*body), &mut plain).expect("gzip");
        assert_eq!(plain, text);
        for (what, bytes, marked, coding) in [
            ("not marked", text.clone(), false, Some(Coding::Zstd)),
            ("not asked for", text.clone(), true, None),
            ("too short", text.slice(..BYTES_MIN - 1), true, Some(Coding::Gzip)),
            ("too long", vec![b'a'; BYTES_MAX + 1].into(), true, Some(Coding::Gzip)),
        ] {
            assert_eq!(answer(&bytes, marked, coding), (None, bytes.clone()), "{what}: it goes as it is");
        }
    }
}
