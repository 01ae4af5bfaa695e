//! Several nodes in a simulated world, from one seed: the real code, over simulated disks, network, clocks and power.
//!
//! `SAMOVAR_SEED=N cargo test -p samovar-node --lib node::tests::cluster::chaos -- --nocapture` repeats one world;
//! `SAMOVAR_SEEDS=N` runs so many fresh ones.

mod chaos;
mod checkpoints;
mod copies;
mod elections;
mod hand_over;
mod history;
mod members;
mod planted;
mod rounds;
mod standing;
mod world;
