//! Services in the vocabulary of each backend.

pub mod nftables;
