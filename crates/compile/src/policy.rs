//! NetworkPolicy: [`resolve`] decides who is isolated and what is allowed (Kubernetes' words only);
//! [`nftables`] says it in the vocabulary of one backend.

pub mod allow;
pub mod further;
pub mod nftables;
pub mod notes;
pub mod resolve;
