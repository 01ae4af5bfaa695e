//! Several nodes in a simulated world, from one seed: the real code, over simulated disks, network, clocks and power.
//!
//! `tests/worlds` runs worlds with random faults: fresh ones, those of one seed, and a campaign.

mod auditor;
mod campaign;
mod chaos;
mod checkpoints;
mod clients;
mod copies;
mod elections;
mod faults;
mod follower;
mod hand_over;
mod history;
mod members;
mod planted;
mod rounds;
mod standing;
mod world;
