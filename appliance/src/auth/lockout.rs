//! Guessing passwords is slowed down, per account and per network, without letting a stranger lock the owner out.
//!
//! A network (an IPv4 address, or an IPv6 /64) from which a user has logged in before is *known* for that user: attempts
//! from there have a record of their own, and nothing that others do elsewhere counts in it. All other attempts count
//! twice: for the account, as a stranger's, and for the network. After some free failures each further one doubles the
//! wait. Accounts that do not exist have records too, so that a lock tells nobody which do.
//!
//! Strangers' records lie in tables of fixed size, at a place drawn by a keyed hash: nothing that a stranger sends makes
//! them grow, and none can be pushed out. Two that share a place share a record, which costs a stranger a wait and the
//! owner nothing. All of it is this node's, in memory, and begins anew at a start.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::http::network_of;

/// Failures that cost no wait: of strangers to an account, of a network, and from a known network.
const FREE_ACCOUNT: u32 = 10;
const FREE_NETWORK: u32 = 20;
const FREE_KNOWN: u32 = 10;
/// The first wait; each failure doubles it, up to the longest.
const WAIT_FIRST: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(15 * 60);
/// Failures are forgotten after so long without another.
const FORGET_AFTER: Duration = Duration::from_secs(3600);
/// Places of each table of strangers' records.
const PLACES: usize = 4096;
/// Known pairs of user and network; beyond, the one that was used longest ago is forgotten.
const KNOWN_MAX: usize = 4096;

/// Failures in a row.
#[derive(Debug, Clone, Copy, Default)]
struct Record {
    failures: u32,
    last: Option<Instant>,
}

impl Record {
    /// How long it still forbids attempts.
    fn wait(&self, now: Instant, free: u32) -> Duration {
        let Some(last) = self.last else { return Duration::ZERO };
        let Some(over) = self.failures.checked_sub(free) else { return Duration::ZERO };
        let wait = WAIT_FIRST.saturating_mul(1 << over.min(20)).min(WAIT_MAX);
        (last + wait).saturating_duration_since(now)
    }

    /// Counts an attempt as a failure until it turns out to be none.
    fn attempt(&mut self, now: Instant) {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) > FORGET_AFTER) {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.last = Some(now);
    }

    /// Takes one attempt back. The others stay: a login does not vouch for the strangers before it.
    fn take_back(&mut self) {
        self.failures = self.failures.saturating_sub(1);
    }
}

/// A known pair.
#[derive(Default)]
struct Known {
    record: Record,
    used: Option<Instant>,
}

struct Tables {
    accounts: Box<[Record]>,
    networks: Box<[Record]>,
    known: HashMap<(Arc<str>, IpAddr), Known>,
}

/// The records.
pub(crate) struct Lockout {
    hasher: RandomState,
    /// Locked for a few instructions, never over an await.
    tables: Mutex<Tables>,
}

impl Default for Lockout {
    fn default() -> Self {
        let empty = || vec![Record::default(); PLACES].into_boxed_slice();
        let tables = Tables { accounts: empty(), networks: empty(), known: HashMap::new() };
        Self { hasher: RandomState::new(), tables: Mutex::new(tables) }
    }
}

impl Lockout {
    /// Counts an attempt, or says how long it is to wait. It counts before it is known how it ends, so that many at once
    /// are many.
    pub(crate) fn attempt(&self, account: &str, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let network = network_of(address);
        let (account_place, network_place) = (self.place(account), self.place(network));
        let mut tables = self.lock();
        let Tables { accounts, networks, known } = &mut *tables;
        if let Some(own) = known.get_mut(&(Arc::from(account), network)) {
            return count(&mut [(&mut own.record, FREE_KNOWN)], now);
        }
        let (account, network) = (&mut accounts[account_place], &mut networks[network_place]);
        count(&mut [(account, FREE_ACCOUNT), (network, FREE_NETWORK)], now)
    }

    /// The attempt was none: nothing was checked.
    pub(crate) fn take_back(&self, account: &str, address: IpAddr) {
        let network = network_of(address);
        let (account_place, network_place) = (self.place(account), self.place(network));
        let mut tables = self.lock();
        let Tables { accounts, networks, known } = &mut *tables;
        if let Some(own) = known.get_mut(&(Arc::from(account), network)) {
            return own.record.take_back();
        }
        accounts[account_place].take_back();
        networks[network_place].take_back();
    }

    /// The attempt was a login: it is taken back, and the network is known from now on.
    pub(crate) fn succeeded(&self, account: &Arc<str>, address: IpAddr, now: Instant) {
        let network = network_of(address);
        let (account_place, network_place) = (self.place(&**account), self.place(network));
        let mut tables = self.lock();
        let pair = (account.clone(), network);
        if !tables.known.contains_key(&pair) {
            tables.accounts[account_place].take_back();
            tables.networks[network_place].take_back();
            tables.make_room();
        }
        tables.known.insert(pair, Known { record: Record::default(), used: Some(now) });
    }

    fn place(&self, of: impl Hash) -> usize {
        // The remainder fits, since PLACES does.
        usize::try_from(self.hasher.hash_one(of) % PLACES as u64).unwrap_or(0)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn make_room(&mut self) {
        if self.known.len() < KNOWN_MAX {
            return;
        }
        let oldest = self.known.iter().min_by_key(|(_, k)| k.used).map(|(pair, _)| pair.clone());
        if let Some(pair) = oldest {
            self.known.remove(&pair);
        }
    }
}

/// Counts an attempt in all records, unless one of them forbids it.
fn count(records: &mut [(&mut Record, u32)], now: Instant) -> Result<(), Duration> {
    let wait = records.iter().map(|(record, free)| record.wait(now, *free)).max().unwrap_or_default();
    if !wait.is_zero() {
        return Err(wait);
    }
    records.iter_mut().for_each(|(record, _)| record.attempt(now));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// Attempts until one is refused; `from` gives the address of each.
    fn guesses(lockout: &Lockout, account: &str, from: impl Fn(u32) -> IpAddr, now: Instant) -> (u32, Duration) {
        for n in 0..10_000 {
            if let Err(wait) = lockout.attempt(account, from(n), now) {
                return (n, wait);
            }
        }
        panic!("10,000 guesses were let through");
    }

    #[test]
    fn waits_double_and_end() {
        let lockout = Lockout::default();
        let mut now = Instant::now();
        let stranger = address("192.0.2.1");
        let (free, mut wait) = guesses(&lockout, "alice", |_| stranger, now);
        assert_eq!((free, wait), (FREE_ACCOUNT, WAIT_FIRST));
        for _ in 0..20 {
            assert!(lockout.attempt("alice", stranger, now + wait - Duration::from_millis(1)).is_err(), "too early");
            now += wait;
            lockout.attempt("alice", stranger, now).expect("after the wait");
            let next = lockout.attempt("alice", stranger, now).expect_err("and no second one");
            assert!(next == (wait * 2).min(WAIT_MAX), "after {wait:?} came {next:?}");
            wait = next;
        }
        assert_eq!(wait, WAIT_MAX);
        now += FORGET_AFTER + Duration::from_secs(1);
        lockout.attempt("alice", stranger, now).expect("forgotten");
        lockout.attempt("alice", stranger, now).expect("and free again");
    }

    #[test]
    fn a_stranger_does_not_lock_the_owner_out() {
        let lockout = Lockout::default();
        let now = Instant::now();
        let (owner, alice) = (address("192.0.2.7"), Arc::<str>::from("alice"));
        lockout.attempt("alice", owner, now).expect("a first login");
        lockout.succeeded(&alice, owner, now);
        // From everywhere, the owner's own network among it for other accounts.
        guesses(&lockout, "alice", |n| IpAddr::from((0x0A00_0000 + n).to_be_bytes()), now);
        guesses(&lockout, "bob", |_| owner, now);
        lockout.attempt("alice", owner, now).expect("the owner from where the owner was before");
        let elsewhere = lockout.attempt("alice", address("198.51.100.9"), now);
        assert!(elsewhere.is_err(), "a new network is a stranger's");
        let own = (0..100).find_map(|_| lockout.attempt("alice", owner, now).err());
        assert!(own.is_some(), "guesses from a known network are not free either");
    }

    #[test]
    fn a_login_does_not_vouch_for_others() {
        let lockout = Lockout::default();
        let now = Instant::now();
        for n in 0..FREE_ACCOUNT - 1 {
            lockout.attempt("alice", IpAddr::from((0x0A00_0000 + n).to_be_bytes()), now).expect("free");
        }
        lockout.attempt("alice", address("192.0.2.7"), now).expect("the last free one");
        lockout.succeeded(&"alice".into(), address("192.0.2.7"), now);
        lockout.attempt("alice", address("198.51.100.1"), now).expect("the login was taken back");
        assert!(lockout.attempt("alice", address("198.51.100.2"), now).is_err(), "the failures before it were not");
    }

    #[test]
    fn one_network_has_one_record_over_all_accounts() {
        let lockout = Lockout::default();
        let now = Instant::now();
        let from = |n: u32| address(&format!("2001:db8::{n:x}"));
        let tried = (0..).find(|n| lockout.attempt(&format!("user-{n}"), from(*n), now).is_err());
        assert_eq!(tried, Some(FREE_NETWORK), "a /64 is one network");
        assert!(lockout.attempt("user-x", address("2001:db8:0:1::1"), now).is_ok(), "the next /64 is another");
    }

    #[test]
    fn known_pairs_are_bounded() {
        let lockout = Lockout::default();
        let start = Instant::now();
        for n in 0..=u32::try_from(KNOWN_MAX).expect("small") {
            let name = Arc::<str>::from(format!("user-{n}"));
            lockout.succeeded(&name, address("192.0.2.7"), start + Duration::from_millis(n.into()));
        }
        let known = &lockout.lock().known;
        assert_eq!(known.len(), KNOWN_MAX);
        assert!(!known.contains_key(&("user-0".into(), address("192.0.2.7"))), "the oldest one went");
    }
}
