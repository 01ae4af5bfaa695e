//! Tests of the binary, run as users run it. `tests/run` builds it first.

mod walk;
