//! The rights table: which role may do what. Each route names one right.

use serde::{Deserialize, Serialize};

/// What a route needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    /// Nothing: no token is asked for.
    Anyone,
    /// Values, listings, histories and proofs of keys; the change feed.
    ReadKeys,
    /// Put and delete.
    WriteKeys,
    /// Destroy values.
    Erase,
    /// Entries with their values, and receipts.
    ReadEntries,
    /// Blocks: a route that shows the whole log.
    ReadBlocks,
    /// Checkpoint and tiles: routes that show the whole log. Not asked for when `chain.public` is set.
    ReadLog,
    /// How the node is.
    ReadStatus,
    /// Metrics. Not asked for from the networks of `metrics.allow`.
    ReadMetrics,
    /// API keys.
    ManageApiKeys,
    /// Say that a doubted clock is right.
    AcceptClock,
}

/// A role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Everything.
    Admin,
    /// The machines, not the data.
    Operator,
    /// Reads and writes keys.
    Writer,
    /// Reads keys.
    Reader,
    /// Reads keys and the whole log.
    Auditor,
}

/// Every role.
pub(crate) const ROLES: [Role; 5] = [Role::Admin, Role::Operator, Role::Writer, Role::Reader, Role::Auditor];

impl Role {
    /// Its name.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::Writer => "writer",
            Self::Reader => "reader",
            Self::Auditor => "auditor",
        }
    }

    /// Whether it has a right.
    pub(crate) fn has(self, right: Right) -> bool {
        use Role::{Auditor, Operator, Reader, Writer};
        let roles: &[Self] = match right {
            Right::Anyone => return true,
            Right::ReadKeys | Right::ReadEntries => &[Writer, Reader, Auditor],
            Right::WriteKeys => &[Writer],
            Right::Erase | Right::ManageApiKeys | Right::AcceptClock => &[],
            Right::ReadBlocks | Right::ReadStatus => &[Operator, Writer, Reader, Auditor],
            Right::ReadLog => &[Auditor],
            Right::ReadMetrics => &[Operator, Reader],
        };
        self == Self::Admin || roles.contains(&self)
    }
}

impl Right {
    /// The right after "may not".
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Anyone => "do this",
            Self::ReadKeys => "read keys",
            Self::WriteKeys => "write keys",
            Self::Erase => "erase values",
            Self::ReadEntries => "read entries and receipts",
            Self::ReadBlocks => "read blocks",
            Self::ReadLog => "read checkpoint and tiles",
            Self::ReadStatus => "read the node's status",
            Self::ReadMetrics => "read metrics",
            Self::ManageApiKeys => "manage API keys",
            Self::AcceptClock => "accept the node's clock",
        }
    }

    /// Whether it shows or concerns the whole log, which is not for principals limited to key prefixes.
    pub(crate) fn is_whole_log(self) -> bool {
        match self {
            Self::ReadBlocks | Self::ReadLog | Self::ManageApiKeys | Self::AcceptClock => true,
            Self::Anyone
            | Self::ReadKeys
            | Self::WriteKeys
            | Self::Erase
            | Self::ReadEntries
            | Self::ReadStatus
            | Self::ReadMetrics => false,
        }
    }

    /// The roles that have it, for the documentation.
    pub(crate) fn roles(self) -> String {
        if self == Self::Anyone {
            return "no token needed".into();
        }
        let names: Vec<_> = ROLES.iter().filter(|r| r.has(self)).map(|r| r.as_str()).collect();
        names.join(", ")
    }
}
