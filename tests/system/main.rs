//! Tests of the binary, run as users run it. `tests/run` builds it first.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so by panicking")]

mod access;
mod api;
mod bad_input;
mod blobs;
mod bundle;
mod cluster;
mod damage;
mod diagnostics;
mod doctor;
mod durability;
mod early_answers;
mod erase;
mod export;
mod full_disk;
mod http2;
mod limits;
mod manners;
mod open_loop;
mod overload;
mod profile_cost;
mod proofs;
mod quotas;
mod raw;
mod sealing;
mod tls;
mod under_load;
mod updates;
mod walk;
mod watch;
