//! Owns: what the kernel of one node should hold for what `semantics` has decided.
//! Never: I/O, clocks, chance, and no knowledge of what the kernel holds now.
//! In → Out: [`model::Synced`] cluster, [`semantics::Settings`] → [`Desired`] rules, links and routes; diagnostics.
//! Read first: [`Compiler::update`], then `layout.rs`, `net.rs`, `fabric.rs` and `wiring.rs`.

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
pub mod wiring;

pub use compiler::{Compiled, Compiler, Desired, guard_alone, whole};
pub use net::NetChange;
