//! Owns: what each controller decides: `(world, key, now)` to writes that print themselves.
//! Never: performs a write, reads a clock, or remembers anything: the world it is given is all it knows.
//! In → Out: rows of objects → [`write::Write`]s.
//! Read first: [`brain::Brain`], [`world::World`], [`replica_set`], [`endpoint_slice`].

pub mod brain;
pub mod deployment;
pub mod endpoint_slice;
pub mod garbage;
pub mod kind;
pub mod namespace;
pub mod node_cidr;
pub mod node_life;
pub mod replica_set;
pub mod scheduler;
pub mod view;
pub mod wake;
pub mod world;
pub mod write;

#[cfg(test)]
mod memory;

pub use brain::{Brain, Settings, decide};
pub use kind::Kind;
pub use wake::wake;
pub use world::{Change, Row, World};
pub use write::{Decision, Write};
