//! Owns: what the kernel of one node should hold for a cluster; Kubernetes' network semantics, once, for all backends.
//! Never: I/O, clocks, chance, and no knowledge of what the kernel holds now.
//! In → Out: [`model::Synced`] cluster, [`Settings`] → [`Desired`] rules, links and routes; [`Diagnostic`]s.
//! Read first: [`Compiler::update`], then `service::plan` and `policy::resolve`.

mod compiler;
mod diagnostic;
pub mod fabric;
mod fragment;
pub mod layout;
pub mod policy;
pub mod service;

pub use compiler::{Compiled, Compiler, Desired, whole};
pub use diagnostic::{Diagnostic, Severity};
pub use fabric::vtep_mac;

use std::net::IpAddr;

use types::IpNet;

/// What a node must know that no object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The name of the node that this is compiled for.
    pub node: String,
    /// Where all pods of the cluster live; what leaves these is masqueraded.
    pub cluster_cidrs: Vec<IpNet>,
    /// Where ClusterIPs live; an address in here that no Service has goes nowhere (V-08).
    pub service_cidrs: Vec<IpNet>,
    /// The cluster's DNS address, answered on this node; `None`: no DNS of ours.
    pub dns_ip: Option<IpAddr>,
    /// MTU of pods, bridge and tunnel: that of the underlay less 50 bytes of VXLAN over IPv4.
    pub mtu: u32,
}
