//! Network state of the kernel as a value: [`observe`] it, [`apply`] a plan to it, hear of [`changes::Changes`].
//! All three work in the network namespace of the calling thread.

mod apply;
mod changes;
mod observe;
mod told;
mod uplink;

use std::collections::BTreeSet;

pub use apply::{Failure, apply};
pub use changes::{Change, Changes};
use kstate::net::NetState;
pub use observe::{observe, sysctl};
use types::{IfName, IpNet};
pub use uplink::{advertised_links, keep_advertisements};

/// Which part of the kernel's state is ours (docs/ownership.md). Routes are ours by their protocol, 112.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Our devices by name, such as `cni0` and `plumb.1`.
    pub links: BTreeSet<IfName>,
    /// What the names of our pods' veths begin with; none when they are left out.
    pub veth_prefix: Option<String>,
    /// Addresses on `lo` within these networks are ours (cluster addresses that this node answers for).
    pub loopback: Vec<IpNet>,
    /// Whose addresses pods have: routes of others to them, and rules, are worth a look.
    pub pods: Vec<IpNet>,
    /// The sysctls to read, as paths under /proc/sys with slashes.
    pub sysctls: BTreeSet<String>,
}

impl Scope {
    /// The scope that covers a desired state: its links (veths not by name), sysctls, and addresses on `lo`.
    pub fn of(desired: &NetState) -> Self {
        let is_ours = |(_, link): &(&IfName, &kstate::net::Link)| link.kind != kstate::net::LinkKind::Veth;
        let on_loopback = desired.addresses.iter().filter(|(link, _)| link.as_str() == "lo");
        Self {
            links: desired.links.iter().filter(is_ours).map(|(name, _)| name.clone()).collect(),
            veth_prefix: None,
            loopback: on_loopback.map(|(_, address)| *address).collect(),
            pods: Vec::new(),
            sysctls: desired.sysctls.keys().cloned().collect(),
        }
    }

    /// Whether a link of this name is ours.
    pub fn has_link(&self, name: &str) -> bool {
        let is_veth = self.veth_prefix.as_deref().is_some_and(|prefix| name.starts_with(prefix));
        is_veth || self.is_named(name)
    }

    /// Whether a link is ours by its whole name.
    pub fn is_named(&self, name: &str) -> bool {
        self.links.iter().any(|link| link.as_str() == name)
    }

    /// Whether an address on this link is ours.
    pub fn has_address(&self, link: &str, address: IpNet) -> bool {
        match link {
            "lo" => self.loopback.iter().any(|net| net.contains(&address)),
            _ => self.has_link(link),
        }
    }
}
