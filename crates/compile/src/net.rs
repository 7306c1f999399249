//! Links, addresses and routes of one node: to its pods (`wiring.rs`) on one side, to other nodes' (`fabric.rs`) on the other.
//!
//! ```text
//!   pod eth0 10.244.1.4/32 ── veth ──(isolated, locked port)── cni0 10.244.1.1/24
//!                                                        │ routed, so every packet meets the IP hooks
//!                                                      fabric ── other nodes' pods
//! ```
//!
//! IPv6 is the same beside it (fd00:10:244:1::4/128, gateway ::1), through the same links.

pub mod entry;
mod peers;
mod pods;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use kstate::net::NetState;
use semantics::Settings;
use semantics::node::Own;
use types::{Family, IfName, IpNet, Mac, hash8};

use crate::{fabric, wiring};

pub use peers::NetChange;
pub(crate) use peers::{Net, Turned};

/// The kernel's main routing table (RT_TABLE_MAIN).
pub const MAIN_TABLE: u32 = 254;

/// The hardware address that goes with a pod's or gateway's address: `0a:58` and the bytes of an IPv4 address, as the
/// bridge plugin has it, or a hash of an IPv6 one.
pub fn mac_of(address: IpAddr) -> Mac {
    let [a, b, c, d] = match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => hash_bytes(&v6.to_string()),
    };
    Mac([0x0a, 0x58, a, b, c, d])
}

/// [`mac_of`], and others for when that one is taken.
pub fn macs_of(address: IpAddr) -> impl Iterator<Item = Mac> {
    let others = (1_u32..).map(move |attempt| {
        let [a, b, c, d] = hash_bytes(&format!("{address} {attempt}"));
        Mac([0x0a, 0x58, a, b, c, d])
    });
    [mac_of(address)].into_iter().chain(others)
}

pub(crate) fn hash_bytes(text: &str) -> [u8; 4] {
    u32::from_str_radix(&hash8(text), 16).unwrap_or_default().to_be_bytes()
}

/// Links of a fixed name that are ours, of all choices: what was made by another choice is found by its name.
pub fn own_links() -> impl Iterator<Item = &'static str> {
    let of_wirings = types::Wiring::ALL.iter().filter_map(|wiring| wiring.link());
    of_wirings.chain(fabric::all().filter_map(|fabric| fabric.device()))
}

fn device(name: &str) -> Option<IfName> {
    IfName::new(name).ok()
}

/// What rtnetlink should say on this node without its peers and pods. `host_ports`: a pod of this node wants a port of it.
fn devices(own: Option<&Own>, settings: &Settings, host_ports: bool) -> NetState {
    let mut state = NetState { sysctls: sysctls(settings, host_ports), ..NetState::default() };
    let Some(lo) = device("lo") else { return state };
    for dns in &settings.dns_ips {
        state.addresses.insert((lo.clone(), IpNet::from(*dns)));
    }
    if let Some(own) = own {
        state.extend(wiring::of(settings.wiring).own(own, settings));
        state.extend(fabric::of(settings.fabric).own(own, settings));
    }
    state
}

/// The hardware address of the pods' gateway.
pub(crate) fn gateway_mac(own: &Own) -> Option<Mac> {
    own.subnets.first().map(|subnet| mac_of(subnet.gateway))
}

/// As the kernel makes it of the MAC (EUI-64, RFC 4291 appendix A).
pub(crate) fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// With br_netfilter our DNAT would happen while a frame is still in the bridge, which then hands it to the endpoint's
/// port itself (`bridged_dnat`, net/bridge/br_netfilter_hooks.c) and drops it there, since our ports are isolated:
/// every call of a Service that meets an endpoint on its own node would time out. Packets of pods are routed anyway,
/// so they lose nothing.
const BRIDGE_FILTERS: [(&str, &str); 2] =
    [("net/bridge/bridge-nf-call-iptables", "0"), ("net/bridge/bridge-nf-call-ip6tables", "0")];

/// On IPv6 nobody may advertise routes to our devices, and their addresses are to be usable at once.
///
/// A packet is forwarded if the link that it comes by forwards (IN_DEV_FORWARD in `ip_route_input_slow`): `ip_forward`
/// sets that of every link, and anybody may unset one. By the uplinks come answers of the outside to pods, and node ports.
/// IPv6 knows only `all` (`ip6_forward`); a link on which it is switched off has no addresses and hears nothing.
fn sysctls(settings: &Settings, host_ports: bool) -> BTreeMap<String, String> {
    let (wiring, fabric) = (wiring::of(settings.wiring), fabric::of(settings.fabric));
    let of_family = |family: Family| {
        let mut all = family.pick([
            vec![("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/all/send_redirects", "0")],
            vec![("net/ipv6/conf/all/forwarding", "1")],
        ]);
        all.extend(wiring.sysctls(host_ports, settings, family));
        all.extend(fabric.sysctls(family));
        all
    };
    let wanted = settings.families().flat_map(of_family).chain(BRIDGE_FILTERS);
    let wanted = wanted.map(|(path, value)| (path.to_owned(), value.to_owned()));
    let uplinks = settings.uplinks.iter().filter(|_| settings.families().any(|family| family == Family::V4));
    let uplinks = uplinks.map(|link| (format!("net/ipv4/conf/{link}/forwarding"), "1".to_owned()));
    wanted.chain(uplinks).collect()
}
