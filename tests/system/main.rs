//! Tests of the binary, run as users run it. `tests/run` builds it first.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so by panicking")]

mod api;
mod bad_input;
mod damage;
mod durability;
mod erase;
mod full_disk;
mod limits;
mod proofs;
mod raw;
mod walk;
mod watch;
