//! The rights: what each shows, what it is called, and which roles have it, in one table. The table of routes
//! (`api/routes.rs`) names one of them for every route; nothing else decides.

use serde::{Deserialize, Serialize};

use Role::{Auditor, Operator, Reader, Writer};

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

/// A right that may be given by name, beside a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Grant {
    /// [`Right::Erase`].
    Erase,
}

/// What a right reaches, and so what key prefixes do to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Nothing that is anybody's: no credentials are asked for.
    Open,
    /// Only what is the principal's own.
    Own,
    /// Keys; the handlers hold each of them against the prefixes.
    Keys,
    /// The node, no keys.
    Node,
    /// The whole log or everybody's access: refused to whoever is limited to prefixes.
    Whole,
}

/// Declares the rights once: the type, and a row for each.
macro_rules! rights {
    ($( $(#[doc = $doc:literal])* $right:ident: $reach:ident, $does:literal, $roles:expr; )*) => {
        /// What a route needs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Right { $( $(#[doc = $doc])* $right, )* }

        /// Every right, for the documentation.
        #[cfg(test)]
        pub(crate) const RIGHTS: &[Right] = &[ $( Right::$right, )* ];

        impl Right {
            /// Its row: reach, what it lets one do, and the roles that have it beside `admin`.
            const fn row(self) -> (Reach, &'static str, &'static [Role]) {
                match self { $( Self::$right => (Reach::$reach, $does, &$roles), )* }
            }
        }
    };
}

rights! {
    /// Nothing: no credentials are asked for.
    Anyone:       Open,  "do this",                              [Operator, Writer, Reader, Auditor];
    /// Its own session and password.
    Own:          Own,   "see who it is and change its password", [Operator, Writer, Reader, Auditor];
    /// Values, listings, histories and proofs of keys; the change feed.
    ReadKeys:     Keys,  "read keys, histories and proofs, watch", [Writer, Reader, Auditor];
    /// Put and delete.
    WriteKeys:    Keys,  "put and delete keys",                  [Writer];
    /// Destroy values. Also given by name ([`Grant::Erase`]).
    Erase:        Keys,  "erase values",                         [];
    /// Entries with their values, and receipts.
    ReadEntries:  Keys,  "read entries and receipts",            [Writer, Reader, Auditor];
    /// Blocks.
    ReadBlocks:   Whole, "read blocks",                          [Operator, Writer, Reader, Auditor];
    /// Checkpoint and tiles. Not asked for when `chain.public` is set.
    ReadLog:      Whole, "read checkpoint and tiles",            [Auditor];
    /// How the node is.
    ReadStatus:   Node,  "read the node's status",               [Operator, Writer, Reader, Auditor];
    /// Metrics. Not asked for from the networks of `metrics.allow`.
    ReadMetrics:  Node,  "read metrics",                         [Operator, Reader];
    /// Users, API keys, certificates, and other people's sessions.
    ManageAccess: Whole, "manage users, API keys and certificates", [];
    /// Say that a doubted clock is right.
    AcceptClock:  Whole, "accept a clock that is not believed", [];
    /// Take nodes into the cluster, and out of it.
    ManageNodes:  Whole, "take nodes into the cluster and out of it", [];
    /// Take nodes out of service for a while, and put them back.
    ServeNodes:   Node,  "drain nodes and have the permit to go down", [Operator];
    /// Look into the running process: profiles, traces, level of the journal.
    Diagnose:     Whole, "take profiles, change the level of the journal", [];
    /// Updates of the box: install one, go back, start it again; and their end, the newest format in force.
    Update:       Whole, "update this box, finalize",            [Operator];
    /// Secrets of the ledger: replace them by new ones.
    Rotate:       Whole, "rotate secrets",                       [Operator];
    /// Replace the key that signs the log: verifiers everywhere must follow.
    RotateLogKey: Whole, "rotate the log key",                   [];
}

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
        self == Self::Admin || right.row().2.contains(&self)
    }
}

impl Grant {
    /// The right that it gives.
    pub(crate) fn right(self) -> Right {
        match self {
            Self::Erase => Right::Erase,
        }
    }
}

impl Right {
    /// The right after "may not".
    pub(crate) fn describe(self) -> &'static str {
        self.row().1
    }

    /// Whether it is refused to principals limited to key prefixes.
    pub(crate) fn is_whole(self) -> bool {
        self.row().0 == Reach::Whole
    }

    /// Whether no credentials are asked for.
    pub(crate) fn is_open(self) -> bool {
        self.row().0 == Reach::Open
    }

    /// The roles that have it, for the documentation.
    pub(crate) fn roles(self) -> String {
        if self.is_open() {
            return "no token needed".into();
        }
        let names: Vec<_> = ROLES.iter().filter(|r| r.has(self)).map(|r| r.as_str()).collect();
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../../docs/reference/api.md");

    /// The page's table of rights says what the code says.
    #[test]
    fn the_reference_page_has_this_table() {
        let mut table = String::new();
        for right in RIGHTS.iter().filter(|r| !r.is_open()) {
            let cells = ROLES.map(|role| if role.has(*right) { " yes |" } else { " |" });
            table += &format!("| {} |{}\n", right.describe(), cells.concat());
        }
        assert!(PAGE.contains(&table), "docs/reference/api.md must hold this table of rights:\n{table}");
    }
}
