//! The whole program on running labs: real nodes, real packets, kubectl 1.37. Each module has labs of its own, with
//! names of their own, so that they run side by side; what they share is in [`cluster`].
//!
//! They run the binary in `PLUMB_BIN`, with `plumb-cni` beside it (`./run test` sets it), or else the one that cargo
//! built for this test.

mod alerts;
mod attacks;
mod claims;
mod cluster;
mod combinations;
mod commands;
mod faults;
mod help;
mod kills;
mod life;
mod network;
mod operate;
mod pcap;
mod pipeline;
mod resolvers;
#[allow(dead_code, reason = "shared by the tiers, each of which uses its part")]
mod said;
mod soak;
mod tour;
