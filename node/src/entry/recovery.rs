//! The entry of a recovery: a node that is left of a cluster without quorum goes on with its log alone, as a new epoch.

use std::borrow::Cow;

use super::{Cosigners, Malformed, Reader, push_string};

/// Longest reason of a recovery, in bytes.
pub const REASON_BYTES_MAX: usize = 256;

/// The log goes on under another origin, by other keys. What was written after `last` is lost.
///
/// No quorum of the policy before vouches for it: a verifier follows only if it is told that the new key is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery<'a> {
    /// Who did it and when, and the keys from here on. The origin is the name of the log key.
    pub keys: Cosigners<'a>,
    /// Why, in the words of who did it.
    pub reason: Cow<'a, str>,
    /// The last checkpoint of the log before: its size is the index of this entry. Signed by the log key before and by the
    /// node that was left, so not by a quorum.
    pub last: Cow<'a, str>,
    /// A larger checkpoint of the log before that somebody still has, if one is known: what was lost is at least what lies
    /// between.
    pub known: Option<Cow<'a, str>>,
}

impl<'a> Recovery<'a> {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(br#"{"type":"recovery","#);
        self.keys.write_fields(out);
        out.extend_from_slice(br#","reason":"#);
        push_string(out, &self.reason);
        out.extend_from_slice(br#","last":"#);
        push_string(out, &self.last);
        out.extend_from_slice(br#","known":"#);
        match &self.known {
            Some(known) => push_string(out, known),
            None => out.extend_from_slice(b"null"),
        }
        out.push(b'}');
    }

    pub(super) fn read(r: &mut Reader<'a>) -> Result<Self, Malformed> {
        let keys = Cosigners::read_fields(r)?;
        r.expect(r#","reason":"#)?;
        let reason = r.name("a reason", REASON_BYTES_MAX)?;
        r.expect(r#","last":"#)?;
        let last = r.string()?;
        r.expect(r#","known":"#)?;
        let known = if r.accept("null") { None } else { Some(r.string()?) };
        r.expect("}")?;
        Ok(Self { keys, reason, last, known })
    }
}
