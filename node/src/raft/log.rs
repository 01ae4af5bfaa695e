//! The raft log.
