//! Checkpoints (C2SP tlog-checkpoint): the head of the chain log as the text of a signed note.

use crate::canonical::{decode_hash, push_base64};
use crate::merkle::Hash;
use crate::note::{Note, NoteError, VerifierKey};

/// Largest tree size.
pub(crate) const SIZE_MAX: u64 = i64::MAX as u64;

/// The head of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Identity of the log.
    pub origin: String,
    /// Number of entries.
    pub size: u64,
    /// Merkle root over them.
    pub root: Hash,
}

/// Why a checkpoint is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The note, or a signature of the log's key, is not right.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The text is no checkpoint.
    #[error("not a checkpoint: {0}")]
    Text(&'static str),
    /// The log's key did not sign it.
    #[error("the checkpoint carries no signature of {0}: another log's")]
    Unsigned(String),
    /// Another key of the same name signed it.
    #[error(
        "another log key of {0} signed the checkpoint than the one given: if the log key was rotated, fetch the receipts of \
         its changes (samovar receipt N > DIR/N, for each N that /v1/log lists under key_changes) and verify with \
         --chain DIR"
    )]
    OtherKey(String),
    /// It is another log's.
    #[error("the checkpoint is of the log {found}, not of {expected}")]
    Origin {
        /// Origin in the checkpoint.
        found: String,
        /// Origin that the key names.
        expected: String,
    },
}

impl Checkpoint {
    /// The text to be signed.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut root = Vec::with_capacity(44);
        push_base64(&mut root, &self.root);
        format!("{}\n{}\n{}\n", self.origin, self.size, String::from_utf8_lossy(&root))
    }

    /// Reads a note's text. Extension lines are passed over; they are signed, but say nothing here.
    ///
    /// # Errors
    /// When it is not the text of a checkpoint.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let lines = text.strip_suffix('\n').ok_or(CheckpointError::Text("its last line does not end in a newline"))?;
        let mut lines = lines.split('\n');
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
            return Err(CheckpointError::Text("it has three lines: origin, size, root"));
        };
        if origin.is_empty() || lines.any(str::is_empty) {
            return Err(CheckpointError::Text("it has an empty line"));
        }
        let size = parse_decimal(size).ok_or(CheckpointError::Text("the size is not a number below 2^63"))?;
        let root = decode_hash(root).ok_or(CheckpointError::Text("the root is not canonical base64 of 32 bytes"))?;
        Ok(Self { origin: origin.to_owned(), size, root })
    }

    /// The checkpoint of a note that `log` signed. Cosignatures are not looked at.
    ///
    /// # Errors
    /// When it is not signed by this key, malformed, or of another origin.
    pub fn open(note: &Note<'_>, log: &VerifierKey) -> Result<Self, CheckpointError> {
        if note.verify(log)?.is_none() {
            let name = log.name().to_owned();
            let other = note.is_signed_by_name(&name);
            return Err(if other { CheckpointError::OtherKey(name) } else { CheckpointError::Unsigned(name) });
        }
        let checkpoint = Self::parse(note.text())?;
        if checkpoint.origin != log.name() {
            return Err(CheckpointError::Origin { found: checkpoint.origin, expected: log.name().to_owned() });
        }
        Ok(checkpoint)
    }
}

/// A decimal number below 2^63 without leading zeros.
pub(crate) fn parse_decimal(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = (digits && (text == "0" || !text.starts_with('0'))).then(|| text.parse().ok())??;
    Some(number).filter(|n| *n <= SIZE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::note::{Scheme, Signer, assemble};

    const EXAMPLE: &str = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";

    #[test]
    fn the_example_of_the_specification_is_read_and_written() {
        let checkpoint = Checkpoint::parse(EXAMPLE).unwrap();
        assert_eq!((checkpoint.origin.as_str(), checkpoint.size), ("example.com/behind-the-sofa", 20_852_163));
        assert_eq!(checkpoint.to_text(), EXAMPLE);
        assert_eq!(Checkpoint::parse(&format!("{EXAMPLE}an extension\n")), Ok(checkpoint));
    }

    #[test]
    fn other_texts_are_refused() {
        for (what, text) in [
            ("nothing", String::new()),
            ("no newline at the end", EXAMPLE.trim_end().to_owned()),
            ("two lines", EXAMPLE.lines().take(2).collect::<Vec<_>>().join("\n") + "\n"),
            ("an empty origin", EXAMPLE.replace("example.com/behind-the-sofa", "")),
            ("a leading zero", EXAMPLE.replace("20852163", "020852163")),
            ("a sign", EXAMPLE.replace("20852163", "+20852163")),
            ("2^63", EXAMPLE.replace("20852163", "9223372036854775808")),
            ("no size", EXAMPLE.replace("20852163", "")),
            ("unused bits in the root", EXAMPLE.replace("q2I=", "q2J=")),
            ("a short root", EXAMPLE.replace("CsUY", "")),
            ("an empty extension line", format!("{EXAMPLE}\n")),
        ] {
            assert!(Checkpoint::parse(&text).is_err(), "{what} was accepted: {text:?}");
        }
        assert!(Checkpoint::parse(&EXAMPLE.replace("20852163", "9223372036854775807")).is_ok());
        assert!(Checkpoint::parse(&EXAMPLE.replace("20852163", "0")).is_ok());
    }

    #[test]
    fn a_checkpoint_opens_with_its_own_log_key_only() {
        let signer = |name, seed| Signer::from_seed(name, Scheme::Ed25519, &[seed; 32]).unwrap();
        let (log, other_key, other_log) = (signer("a.example", 1), signer("a.example", 2), signer("b.example", 3));
        let checkpoint = Checkpoint { origin: "a.example".into(), size: 5, root: [9; 32] };
        let text = checkpoint.to_text();
        let note = assemble(&text, &[other_log.sign(&text, 0), log.sign(&text, 0)]);
        let note = Note::parse(&note).unwrap();
        assert_eq!(Checkpoint::open(&note, log.verifier_key()), Ok(checkpoint));
        let refused = Checkpoint::open(&note, other_key.verifier_key());
        assert_eq!(refused, Err(CheckpointError::OtherKey("a.example".into())));
        let stranger = signer("c.example", 1);
        let refused = Checkpoint::open(&note, stranger.verifier_key());
        assert_eq!(refused, Err(CheckpointError::Unsigned("c.example".into())));
        let refused = Checkpoint::open(&note, other_log.verifier_key());
        assert!(matches!(refused, Err(CheckpointError::Origin { .. })), "{refused:?}");
    }
}
