//! Policies: [`tier`] is what judges a pod, whoever wrote it; each sort of policy makes a tier of its own
//! ([`network_policy`]). [`lookup`] brings rules into the form that a datapath can look up, [`resolve`] says whom they are
//! about, [`exempt`] what none of them judges.

pub mod exempt;
pub mod lookup;
pub mod network_policy;
pub mod notes;
pub mod resolve;
pub mod tier;
