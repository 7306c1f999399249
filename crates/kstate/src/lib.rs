//! Owns: kernel state as plain values: nf_tables rulesets and the state rtnetlink speaks of; their diffs.
//! Never: I/O, Kubernetes words, or an opinion of what the state should be.
//! In → Out: desired and actual values of one type → a plan that prints itself.
//! Read first: [`nft`], then [`net`].

pub mod net;
pub mod nft;
