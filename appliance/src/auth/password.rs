//! Passwords: argon2id, few at a time, and as much work for a user that does not exist as for one that does.

use argon2::password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use prometheus_client::metrics::counter::Counter;
use samovar_node::rt;
use serde::Deserialize;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::api::problem::Problem;

/// Least characters of a password that is all there is (NIST SP 800-63B-4, 3.1.1.2).
pub(crate) const CHARS_MIN: usize = 15;
/// Longest password, in bytes.
pub(crate) const BYTES_MAX: usize = 1024;
/// Least different characters of a password.
const DIFFERENT_MIN: usize = 5;
/// Memory of one run, in KiB; with [`PASSES`] and one lane what OWASP's password storage cheat sheet asks for.
const MEMORY_KIB: u32 = 19 << 10;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// Runs at once: they share the machine with everything else, and each takes its memory.
const RUNS_AT_ONCE: usize = 2;
/// Runs that may wait; more are refused (503), since they would wait too long anyway.
const WAITING_MAX: usize = 16;
/// What a refused client waits, in seconds: about as long as a full queue takes.
const RETRY_AFTER_S: u64 = 2;
/// Bytes of a salt.
const SALT_BYTES: usize = 16;

/// A password as it was sent. It has no `Debug`, so that no message can show it.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(String);

impl Secret {
    /// Whether it may become the password of a user, or why not.
    pub(crate) fn check(&self, user: &str) -> Result<(), Problem> {
        let text = &self.0;
        let different = text.chars().collect::<std::collections::HashSet<_>>().len();
        let why = if text.chars().count() < CHARS_MIN || text.len() > BYTES_MAX {
            format!("a password has at least {CHARS_MIN} characters and at most {BYTES_MAX} bytes")
        } else if different < DIFFERENT_MIN {
            format!("a password has at least {DIFFERENT_MIN} different characters")
        } else if text.to_lowercase().contains(user) && text.chars().count() < CHARS_MIN + user.len() {
            "the password is little more than the user's name".to_owned()
        } else {
            return Ok(());
        };
        Err(Problem::unprocessable(why))
    }
}

/// Runs argon2, within bounds.
pub(crate) struct Passwords {
    running: Semaphore,
    /// Places of those that run or wait.
    places: Semaphore,
    /// Runs since the start.
    runs: Counter,
}

impl Passwords {
    /// `runs` counts.
    pub(super) fn new(runs: Counter) -> Self {
        Self { running: Semaphore::new(RUNS_AT_ONCE), places: Semaphore::new(RUNS_AT_ONCE + WAITING_MAX), runs }
    }

    /// Whether the password is the one stored; where none is stored, the same work, and no.
    ///
    /// # Errors
    /// 503 when too many wait.
    pub(crate) async fn verify(&self, secret: Secret, stored: Option<String>) -> Result<bool, Problem> {
        let known = stored.is_some();
        let phc = stored.unwrap_or_else(nobodys);
        let right = self.run(move || verify(&secret, &phc)).await??;
        Ok(right && known)
    }

    /// The PHC string of a new password.
    ///
    /// # Errors
    /// 503 when too many wait.
    pub(crate) async fn hash(&self, secret: Secret) -> Result<String, Problem> {
        self.run(move || hash(&secret)).await?
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
        let busy = |_| Problem::too_busy("too many passwords are being checked; try again", RETRY_AFTER_S);
        let _place: SemaphorePermit<'_> = self.places.try_acquire().map_err(busy)?;
        let _turn = self.running.acquire().await.map_err(|e| Problem::internal(&e))?;
        self.runs.inc();
        tokio::task::spawn_blocking(work).await.map_err(|e| Problem::internal(&e))
    }
}

fn argon2() -> Result<Argon2<'static>, Problem> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(|e| Problem::internal(&e))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash(secret: &Secret) -> Result<String, Problem> {
    let mut salt = [0; SALT_BYTES];
    rt::fill_random(&mut salt);
    let salt = SaltString::encode_b64(&salt).map_err(|e| Problem::internal(&e))?;
    let hash = argon2()?.hash_password(secret.0.as_bytes(), &salt).map_err(|e| Problem::internal(&e))?;
    Ok(hash.to_string())
}

/// The comparison is argon2's, in constant time.
fn verify(secret: &Secret, phc: &str) -> Result<bool, Problem> {
    let hash = PasswordHash::new(phc).map_err(|e| Problem::internal(&e))?;
    match argon2()?.verify_password(secret.0.as_bytes(), &hash) {
        Ok(()) => Ok(true),
        Err(argon2::password_hash::Error::Password) => Ok(false),
        Err(other) => Err(Problem::internal(&other)),
    }
}

/// A string like that of any password, to which nobody knows the password.
fn nobodys() -> String {
    format!(
        "$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p={LANES}${}${}",
        "A".repeat(SALT_BYTES * 4 / 3 + 1),
        "A".repeat(43)
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn secret(text: &str) -> Secret {
        Secret(text.to_owned())
    }

    #[test]
    fn the_stored_form_is_argon2id_with_its_cost() {
        let phc = hash(&secret("correct horse battery")).expect("hashed");
        assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
        assert!(verify(&secret("correct horse battery"), &phc).expect("checked"), "the right password");
        assert!(!verify(&secret("correct horse batterz"), &phc).expect("checked"), "a wrong one");
        assert_ne!(hash(&secret("correct horse battery")).expect("hashed"), phc, "each has its own salt");
    }

    #[test]
    fn nobodys_password_costs_as_much_as_anybodys() {
        let (nobody, somebody) = (nobodys(), hash(&secret("correct horse battery")).expect("hashed"));
        let cost = |phc: &str| phc.split('$').take(4).collect::<Vec<_>>().join("$");
        assert_eq!(cost(&nobody), cost(&somebody));
        assert_eq!(nobody.len(), somebody.len());
        assert!(!verify(&secret(""), &nobody).expect("it is well-formed"));
    }

    #[tokio::test]
    async fn runs_are_counted_and_bounded() {
        let runs = Counter::default();
        let passwords = Arc::new(Passwords::new(runs.clone()));
        let one = |n: usize| {
            let passwords = passwords.clone();
            async move { passwords.verify(secret(&format!("guess {n}")), None).await }
        };
        let tasks: Vec<_> = (0..RUNS_AT_ONCE + WAITING_MAX + 5).map(|n| tokio::spawn(one(n))).collect();
        let mut refused = 0;
        for task in tasks {
            match task.await.expect("no panic") {
                Ok(right) => assert!(!right, "nobody has this password"),
                Err(problem) => {
                    assert_eq!(problem.status().as_u16(), 503);
                    refused += 1;
                }
            }
        }
        assert_eq!(refused, 5, "all that found no place are refused");
        assert_eq!(runs.get(), (RUNS_AT_ONCE + WAITING_MAX) as u64, "and run nothing");
    }

    #[test]
    fn what_may_be_a_password() {
        for bad in ["short", "aaaaaaaaaaaaaaaa", "alicealicealice", "alice-alice-2026"] {
            assert!(secret(bad).check("alice").is_err(), "{bad:?} should be refused");
        }
        assert!(secret(&"x1y2z".repeat(300)).check("alice").is_err(), "too long");
        for good in [
            "correct horse battery",
            "\u{e9}\u{e8}\u{ea}\u{eb}\u{e0}\u{e2}\u{e4}\u{f9}\u{fb}\u{fc}\u{f4}\u{f6}\u{ee}\u{ef}\u{e7}",
        ] {
            assert!(secret(good).check("alice").is_ok(), "{good:?} should be taken");
        }
    }
}
