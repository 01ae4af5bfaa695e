//! [`Principal`]: who makes a request and what it may do, whichever way it came in.

use std::sync::Arc;

use super::rights::{Grant, Right, Role};
use crate::api::problem::Problem;

/// Who makes a request, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Principal {
    /// Id, as entries name their author: `api-key/ID`, `user/NAME`, `local/UID`.
    pub(crate) id: Arc<str>,
    /// Role; none for requests without credentials.
    pub(crate) role: Option<Role>,
    /// Key prefixes that it is limited to; empty: not limited.
    pub(crate) prefixes: Vec<String>,
    /// Rights beside the role's.
    pub(crate) grants: Vec<Grant>,
    /// The user behind it, if there is one.
    pub(crate) user: Option<Arc<str>>,
    /// How it came in.
    pub(crate) way: Way,
}

/// The ways in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    /// No credentials.
    None,
    /// An API key.
    ApiKey,
    /// A session token: the session's id, and its end in milliseconds since 1970.
    Session {
        /// Id of the session.
        id: String,
        /// Its end.
        expires_ms: u64,
    },
    /// A TLS client certificate.
    Certificate,
    /// The Unix socket of the node.
    Local,
}

impl Way {
    /// Its name.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ApiKey => "api-key",
            Self::Session { .. } => "session",
            Self::Certificate => "certificate",
            Self::Local => "local",
        }
    }
}

impl Principal {
    /// Somebody without credentials.
    pub(crate) fn anonymous() -> Self {
        Self {
            id: Arc::from("anonymous"),
            role: None,
            prefixes: Vec::new(),
            grants: Vec::new(),
            user: None,
            way: Way::None,
        }
    }

    /// A process of this machine that the Unix socket let in.
    pub(super) fn local(uid: u32) -> Self {
        Self { id: Arc::from(format!("local/{uid}")), role: Some(Role::Admin), way: Way::Local, ..Self::anonymous() }
    }

    /// Whether the key lies within its prefixes.
    pub(crate) fn covers(&self, key: &str) -> bool {
        self.prefixes.is_empty() || self.prefixes.iter().any(|p| key.starts_with(p))
    }

    /// Whether it is limited to prefixes.
    pub(crate) fn is_limited(&self) -> bool {
        !self.prefixes.is_empty()
    }

    /// Whether it has the right, or why not: 401 without credentials, else 403.
    pub(crate) fn require(&self, right: Right) -> Result<(), Problem> {
        let Some(role) = self.role else {
            return Err(Problem::unauthenticated("this route needs a token: Authorization: Bearer TOKEN"));
        };
        if !role.has(right) && !self.grants.iter().any(|g| g.right() == right) {
            return Err(Problem::forbidden(format!("role {} may not {}", role.as_str(), right.describe())));
        }
        if right.is_whole() && self.is_limited() {
            return Err(Problem::forbidden("whoever is limited to key prefixes may not do what concerns all keys"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(role: Role, grants: &[Grant]) -> Principal {
        let prefixes = vec!["a/".into(), "b/".into()];
        Principal { role: Some(role), prefixes, grants: grants.to_vec(), ..Principal::anonymous() }
    }

    #[test]
    fn prefixes_limit() {
        let admin = limited(Role::Admin, &[]);
        assert!(admin.covers("a/1") && admin.covers("b/"), "within");
        assert!(!admin.covers("a") && !admin.covers("c/a/"), "outside");
        for whole in [Right::ReadLog, Right::ReadBlocks, Right::ManageAccess, Right::Rotate] {
            assert_eq!(admin.require(whole).expect_err("whole").status().as_u16(), 403, "{whole:?}");
        }
        assert!(admin.require(Right::ReadKeys).is_ok(), "keys are looked at one by one");
    }

    #[test]
    fn erasing_may_be_given_by_name() {
        assert!(limited(Role::Writer, &[]).require(Right::Erase).is_err(), "a writer may not erase");
        assert!(limited(Role::Writer, &[Grant::Erase]).require(Right::Erase).is_ok(), "unless it was given the right");
        assert!(limited(Role::Writer, &[Grant::Erase]).require(Right::Rotate).is_err(), "which is no other right");
    }

    #[test]
    fn nobody_is_asked_for_credentials() {
        assert_eq!(Principal::anonymous().require(Right::Own).expect_err("401").status().as_u16(), 401);
    }
}
