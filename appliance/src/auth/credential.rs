//! [`Credential`]: what a request, or the connection it came on, offers as a proof of who asks.

use hyper::header::{AUTHORIZATION, HeaderMap};
use ring::digest::{Context, SHA256};

use super::rows::{SECRET_CHARS, TOKEN_PREFIX, is_short_id};
use super::session;
use crate::api::problem::Problem;
use crate::http::{Peer, Proved};

/// A proof of who asks, not checked yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Credential<'a> {
    /// An API key.
    ApiKey { id: &'a str, secret: &'a str },
    /// A session token.
    Session(&'a str),
    /// Hash of the key of a client certificate.
    Certificate([u8; 32]),
    /// User of the process at the other end of the Unix socket.
    Local(u32),
}

impl<'a> Credential<'a> {
    /// What the request offers: the `Authorization` header, else what the connection proved. A header that holds no
    /// token of ours is refused rather than passed over: its sender means to be somebody.
    pub(super) fn of(headers: &'a HeaderMap, peer: &Peer) -> Result<Option<Self>, Problem> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let Some(value) = values.next() else {
            return Ok(match peer.proved {
                Proved::Nothing => None,
                Proved::Key(key) => Some(Self::Certificate(key)),
                Proved::User(user) => Some(Self::Local(user)),
            });
        };
        if values.next().is_some() {
            return Err(Problem::invalid("more than one Authorization header"));
        }
        value.to_str().ok().and_then(bearer).map(Some).ok_or_else(|| {
            Problem::unauthenticated("Authorization must be `Bearer TOKEN`, with a token of this ledger")
        })
    }

    /// Names the credential among those that were checked, without being it.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        match self {
            Self::ApiKey { id, secret } => [b"api-key", id.as_bytes(), secret.as_bytes()].map(|b| context.update(b)),
            Self::Session(token) => [&b"session"[..], token.as_bytes(), b""].map(|b| context.update(b)),
            Self::Certificate(key) => [&b"certificate"[..], key, b""].map(|b| context.update(b)),
            Self::Local(user) => [&b"local"[..], &user.to_be_bytes(), b""].map(|b| context.update(b)),
        };
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        digest
    }
}

/// The token of `Bearer TOKEN`, if it has the form of one of ours.
fn bearer(text: &str) -> Option<Credential<'_>> {
    let (scheme, token) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let token = token.trim();
    if token.starts_with(session::PREFIX) {
        return Some(Credential::Session(token));
    }
    let (id, secret) = token.strip_prefix(TOKEN_PREFIX)?.split_once('_')?;
    (is_short_id(id) && secret.len() == SECRET_CHARS).then_some(Credential::ApiKey { id, secret })
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    const NOBODY: Peer = Peer { address: IpAddr::V4(Ipv4Addr::LOCALHOST), proved: Proved::Nothing };

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().expect(value));
        headers
    }

    #[test]
    fn a_header_comes_before_the_connection() {
        let secret = "A".repeat(SECRET_CHARS);
        let good = headers(&format!("bearer samovar_0011223344556677_{secret}"));
        let key = Peer { proved: Proved::Key([7; 32]), ..NOBODY };
        let of = |headers: &HeaderMap, peer: &Peer| Credential::of(headers, peer).map(|c| format!("{c:?}"));
        let token = Credential::of(&good, &key).expect("well-formed").expect("present");
        assert_eq!(token, Credential::ApiKey { id: "0011223344556677", secret: &secret });
        assert_eq!(Credential::of(&HeaderMap::new(), &key).expect("fine"), Some(Credential::Certificate([7; 32])));
        let local = Peer { proved: Proved::User(0), ..NOBODY };
        assert_eq!(Credential::of(&HeaderMap::new(), &local).expect("fine"), Some(Credential::Local(0)));
        assert_eq!(Credential::of(&HeaderMap::new(), &NOBODY).expect("fine"), None);
        let refused = of(&headers("Bearer x"), &local).expect_err("a wrong token is not passed over");
        assert_eq!(refused.status().as_u16(), 401);
    }

    #[test]
    fn malformed_credentials_are_refused() {
        let secret = "A".repeat(SECRET_CHARS);
        for bad in [
            "Bearer".to_owned(),
            "Bearer ".into(),
            format!("Basic samovar_0011223344556677_{secret}"),
            format!("Bearer tea_0011223344556677_{secret}"),
            format!("Bearer samovar_0011223344556677_{secret}A"),
            format!("Bearer samovar_001122334455667G_{secret}"),
            "Bearer samovar_0011223344556677".into(),
            "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.".into(),
        ] {
            let problem = Credential::of(&headers(&bad), &NOBODY).expect_err(&bad);
            assert_eq!(problem.status().as_u16(), 401, "{bad:?}");
        }
        let mut twice = headers("Bearer a");
        twice.append(AUTHORIZATION, "Bearer b".parse().expect("value"));
        assert_eq!(Credential::of(&twice, &NOBODY).expect_err("two").status().as_u16(), 400);
    }
}
