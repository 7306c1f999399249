//! How a pod is attached to its node, in kernel state: one file for each alternative and one row in [`of`]. The host's side
//! is part of what a node should have; the pod's side is made once, by ADD, and both are said here.

pub mod bridge;

use std::net::IpAddr;

use kstate::net::{Link, NetState};
use kstate::nft::Expr;
use semantics::Settings;
use semantics::node::{Own, PodSubnet};
use semantics::topology::Attached;
use semantics::view::Sender;
use types::{Family, IpNet};

use crate::fragment::Fragment;
use crate::net::entry::Entry;

/// The value of a choice.
pub fn of(choice: types::Wiring) -> &'static dyn Wiring {
    match choice {
        types::Wiring::Bridge => &bridge::Bridge,
    }
}

/// Those of all choices: what an agent finds may be of another one than it has.
pub fn all() -> impl Iterator<Item = &'static dyn Wiring> {
    types::Wiring::ALL.iter().copied().map(of)
}

/// What one alternative has in the kernel of a node and in its pods.
pub trait Wiring: Sync {
    /// Links and addresses of the node, whichever pods it has.
    fn own(&self, own: &Own, settings: &Settings) -> NetState;

    /// By path. `host_ports`: a pod of this node wants a port of it.
    fn sysctls(
        &self,
        host_ports: bool,
        settings: &Settings,
        family: Family,
    ) -> Vec<(&'static str, &'static str)>;

    /// The host's end of a pod's link.
    fn host_link(&self, mtu: u32) -> Option<Link>;

    /// What leads to a pod. `alone`: nobody else has its MAC.
    fn entries(&self, pod: Attached<'_>, own: &Own, alone: bool) -> Vec<Entry>;

    /// What is inside a pod with these addresses. A family is missing that the node has no pods of.
    fn pod_side(&self, ips: &[IpAddr], subnets: &[PodSubnet]) -> Result<PodSide, Family>;

    /// The chain of the guard of links for what comes by a pod's own link. `None`: what pods send comes by it.
    fn past(&self) -> Option<&'static str>;

    /// The guard of senders: what is there once, and what of a pod.
    fn guard(&self) -> Fragment;
    fn guard_pod(&self, sender: &Sender<'_>) -> Fragment;

    /// Whether a link, a port of this one, is the node's end of a pod's, by whatever agent it was made.
    fn is_pods(&self, master: Option<&str>) -> bool;

    /// Of the link whose name this loads: that pods are behind it, or that none are.
    fn behind(&self, load: Expr, pods: bool) -> Vec<Expr>;
}

/// A pod's own end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSide {
    pub addresses: Vec<IpNet>,
    /// One for each address.
    pub gateways: Vec<IpAddr>,
    /// By which gateway, or on the link; a gateway's route before those through it.
    pub routes: Vec<(IpNet, Option<IpAddr>)>,
}
