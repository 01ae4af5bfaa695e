//! Tests of the node through its door, on real files.

mod suite;
