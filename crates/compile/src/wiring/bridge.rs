//! A veth pair whose node end is an isolated port of one bridge: every packet of a pod is routed, and so meets the IP hooks.
//!
//! ```text
//!   pod eth0 10.244.1.4/32 ── veth ──(isolated, locked port)── cni0 10.244.1.1/24
//! ```

use std::net::IpAddr;

use kstate::net::{BridgePort, Forward, Link, LinkKind, NetState, PortOptions};
use kstate::nft::{CmpOp, Expr};
use semantics::Settings;
use semantics::node::{Own, PodSubnet};
use semantics::topology::Attached;
use semantics::view::Sender;
use types::wire::BRIDGE;
use types::{Family, IfName, IpNet};

use super::{PodSide, Wiring};
use crate::fragment::Fragment;
use crate::guard::links::{FROM_PORT, device};
use crate::guard::ports;
use crate::net::entry::Entry;
use crate::net::{gateway_mac, link_local};

pub struct Bridge;

fn bridge() -> Option<IfName> {
    IfName::new(BRIDGE).ok()
}

impl Wiring for Bridge {
    fn own(&self, own: &Own, settings: &Settings) -> NetState {
        let mut state = NetState::default();
        let Some(bridge) = bridge() else { return state };
        let (kind, mac) = (LinkKind::Bridge, gateway_mac(own));
        state.links.insert(bridge.clone(), Link { kind, mac, mtu: Some(settings.mtu), up: true, port: None });
        for subnet in &own.subnets {
            let gateway = IpNet::new(subnet.gateway, subnet.net.prefix_len()).unwrap_or(subnet.net);
            state.addresses.insert((bridge.clone(), gateway));
            state.subnets.insert((bridge.clone(), gateway));
        }
        state
    }

    /// `send_redirects` counts where either `all` or the interface says 1 (IN_DEV_TX_REDIRECTS, linux/inetdevice.h):
    /// a pod must not be told to reach its neighbour on the bridge directly, which isolation forbids.
    ///
    /// `route_localnet` lets the node's own 127.0.0.1 reach a pod's host port through the bridge. It is there only while
    /// a pod has one, and the layout's chain `raw` keeps everybody else from these addresses.
    ///
    /// Where pods may have further sources, the way back to these need not be the bridge: the greater of `all` and this
    /// one counts (IN_DEV_RPFILTER), and 2 asks only that there is a way (RFC 3704 §2.4). Who sends is looked at on each
    /// port.
    fn sysctls(
        &self,
        host_ports: bool,
        settings: &Settings,
        family: Family,
    ) -> Vec<(&'static str, &'static str)> {
        if family == Family::V6 {
            return vec![
                ("net/ipv6/conf/cni0/disable_ipv6", "0"),
                ("net/ipv6/conf/cni0/accept_ra", "0"),
                ("net/ipv6/conf/cni0/accept_dad", "0"),
            ];
        }
        let further = settings.allow_sources.iter().any(|net| Family::of_net(net) == Family::V4);
        let mut all = vec![
            ("net/ipv4/conf/cni0/route_localnet", if host_ports { "1" } else { "0" }),
            ("net/ipv4/conf/cni0/forwarding", "1"),
            ("net/ipv4/conf/cni0/send_redirects", "0"),
        ];
        all.extend(further.then_some(("net/ipv4/conf/cni0/rp_filter", "2")));
        all
    }

    fn host_link(&self, mtu: u32) -> Option<Link> {
        let port = BridgePort::new(bridge()?, PortOptions::OF_POD);
        Some(Link { kind: LinkKind::Veth, mac: None, mtu: Some(mtu), up: true, port: Some(port) })
    }

    /// A bridge has one entry for a MAC.
    fn entries(&self, pod: Attached<'_>, own: &Own, alone: bool) -> Vec<Entry> {
        let (host_if, mac) = (pod.host_if, pod.mac);
        let forward = alone.then(|| Entry::Forward((host_if.clone(), mac), Forward::Port));
        let of_bridge = |bridge: IfName| {
            let ips = neighbours(pod, own).into_iter();
            ips.map(move |ip| Entry::Neighbour((bridge.clone(), ip), mac))
        };
        forward.into_iter().chain(bridge().into_iter().flat_map(of_bridge)).collect()
    }

    fn pod_side(&self, ips: &[IpAddr], subnets: &[PodSubnet]) -> Result<PodSide, Family> {
        let mut side = PodSide::default();
        for ip in ips {
            let family = Family::of(*ip);
            let subnet = subnets.iter().find(|subnet| Family::of_net(&subnet.net) == family).ok_or(family)?;
            side.addresses.push(IpNet::from(*ip));
            side.gateways.push(subnet.gateway);
            side.routes.push((subnet.gateway.into(), None));
            side.routes.push((everywhere(family), Some(subnet.gateway)));
        }
        Ok(side)
    }

    fn past(&self) -> Option<&'static str> {
        Some(FROM_PORT)
    }

    fn guard(&self) -> Fragment {
        ports::base()
    }

    fn guard_pod(&self, sender: &Sender<'_>) -> Fragment {
        ports::pod(sender)
    }

    fn is_pods(&self, master: Option<&str>) -> bool {
        master == Some(BRIDGE)
    }

    fn behind(&self, load: Expr, pods: bool) -> Vec<Expr> {
        device(load, if pods { CmpOp::Eq } else { CmpOp::Ne }, BRIDGE)
    }
}

/// The default route's destination.
fn everywhere(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(ipnet::Ipv4Net::default()),
        Family::V6 => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

/// The addresses that a pod may have: the node never asks who has them, nor believes who says so. Of the families that
/// `cni0` has addresses of: the kernel takes no others.
fn neighbours(pod: Attached<'_>, own: &Own) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = pod.ips.iter().copied().filter(|ip| own.serves(Family::of(*ip))).collect();
    if all.iter().any(IpAddr::is_ipv6) {
        all.push(link_local(pod.mac).into());
    }
    all
}
