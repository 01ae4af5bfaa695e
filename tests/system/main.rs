//! Tests of the binary, run as users run it. `tests/run` builds it first.

mod api;
mod bad_input;
mod limits;
mod raw;
mod walk;
mod watch;
