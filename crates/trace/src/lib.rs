//! Owns: the way of a packet: through kernel state as values, through Kubernetes' semantics, and as seen in reality.
//! Never: I/O, clocks, and nothing of `compile`: this crate is what compile is judged by.
//! In → Out: [`eval`]: packet, kernel state → path; [`reference`]: packet, cluster → fates; [`expect`] and
//! [`compare`](mod@compare): what a traced packet should do, and did.
//! Read first: [`packet`], [`hop`].

pub mod back;
pub mod compare;
pub mod eval;
pub mod exchange;
pub mod expect;
pub mod fabric;
pub mod hop;
pub mod observed;
pub mod packet;
pub mod reference;
pub mod wiring;

pub use back::way_back;
pub use compare::{HopResult, Outcome, compare};
pub use expect::{Expected, Target, View, arrival, departure};
pub use hop::{Fact, Hop, Stage};
pub use observed::{Decision, Observed, Sighting};
pub use packet::{Packet, Place};
