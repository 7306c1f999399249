//! Policies in the vocabulary of each backend.

pub mod further;
pub mod nftables;
