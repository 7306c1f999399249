//! Owns: which pod of this node has which address, and when an address may be given out again.
//! Never: clocks (`now` is passed), files (the caller keeps the serialised [`Pool`]), or other nodes' addresses.
//! In → Out: handle, now → an address, or [`Exhausted`] with the numbers that explain it.
//! Read first: [`Pool::allocate`].

mod pool;

pub use pool::{Exhausted, Pool, Refused, gateway_of};

/// Time since the Unix epoch: it must mean the same to the next process.
pub type Now = std::time::Duration;
