//! What whole-system tests share: the [`Daemon`] under test, run as users run it, and an HTTPS [`Client`] that knows
//! nothing of its code.

pub mod bench;
mod client;
pub mod cluster;
mod control_group;
mod daemon;
pub mod durability;
pub mod faults;

pub use client::{Answer, Client, Ends};
pub use control_group::{ControlGroup, Limits};
pub use daemon::{Daemon, Settings, binary, free_port};
