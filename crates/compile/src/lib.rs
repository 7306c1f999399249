//! Owns: what the kernel of one node should hold for what `semantics` has decided.
//! Never: I/O, clocks, chance, and no knowledge of what the kernel holds now.
//! In → Out: [`model::Synced`] cluster, [`semantics::Settings`] → [`Pieces`] of a backend's state, links and routes; diagnostics.
//! Read first: [`Compiler::update`], then `backend.rs`, `layout.rs`, `net.rs`, `fabric.rs` and `wiring.rs`.

pub mod backend;
mod compiler;
pub mod fabric;
mod fragment;
pub mod guard;
pub mod layout;
pub mod net;
pub mod policy;
pub mod refusal;
pub mod role;
pub mod service;
mod whole;
pub mod wiring;

pub use backend::Pieces;
pub use compiler::{Compiled, Compiler, guard_alone};
pub use net::NetChange;
pub use whole::{Desired, whole};
