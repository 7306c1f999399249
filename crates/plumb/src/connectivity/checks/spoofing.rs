//! What a pod sends under other names than its own, which nobody may hear (docs/security.md, "A pod").
//!
//! ```text
//!   client-k ── UDP 8472 ──> every node and its tunnel ··> server-k, server-k+1        spoofing-tunnel
//!   forger-k ── as pods, nodes, Services, the outside ··> server-k, server-k+1         spoofing-source
//!   forger-k ── "prey-k is here" ··> the bridge and the node of prey-k                 spoofing-place
//! ```

use std::net::IpAddr;

use types::Mac;

use super::super::cast::{HTTP, Place, UDP};
use super::{Ask, Expect, From, Plan};
use crate::demo::spoof::{Forge, How};

/// Hosts of the networks for documentation (RFC 5737, RFC 3849), which nobody is.
const OUTSIDE: [&str; 2] = ["198.51.100.77", "2001:db8:51::77"];

impl Plan {
    /// `plain` has an ordinary socket, `raw` sends frames.
    pub(super) fn spoofing(&mut self, (plain, raw): (From<'_>, From<'_>), places: &[&Place]) {
        for victim in places {
            let Some(server) = victim.server(plain.family) else { continue };
            let to = victim.pod("server");
            if let Some(how) = self.tunnel(plain, places, victim) {
                self.forge("spoofing-tunnel", plain, (&to, server), how);
            }
            let sources = sources(raw, places, victim);
            self.forge("spoofing-source", raw, (&to, server), How::Sources(sources));
        }
        // Addresses go with hardware addresses by the pod's first.
        if let (Some(prey), Some(first)) = (raw.place.prey(raw.family), raw.place.prey.first()) {
            let how = How::Place { mac: compile::net::mac_of(*first) };
            self.forge("spoofing-place", raw, (&raw.place.pod("prey"), prey), how);
        }
    }

    fn forge(&mut self, test: &'static str, from: From<'_>, (name, victim): (&str, IpAddr), how: How) {
        let ask = Ask::Forge(Forge { victim, http: HTTP, udp: UDP, how });
        self.add(test, from, name, (ask, Expect::default()));
    }

    /// To every address at which a node may take the tunnel's packets, of whichever family.
    fn tunnel(&mut self, from: From<'_>, places: &[&Place], victim: &Place) -> Option<How> {
        let vteps: Vec<Mac> = places.iter().filter_map(|place| place.vtep).collect();
        if vteps.len() < places.len() {
            let annotation = types::wire::VTEP_MAC_ANNOTATION;
            self.skip(
                "spoofing-tunnel",
                &format!("a Node has no annotation {annotation}: no agent runs there"),
            );
            return None;
        }
        let own = |place: &&Place| {
            // Those of the tunnel itself, and of the pods' gateway.
            let ends = place.pod_cidrs.iter().map(|net| net.network());
            let ends = ends.flat_map(|first| [first, types::offset(first, 1)]);
            place.node_ips.iter().copied().chain(ends).collect::<Vec<_>>()
        };
        let other = places.iter().find(|place| place.index != victim.index).unwrap_or(&victim);
        let inner = other.locked(from.family)?;
        Some(How::Tunnel { to: places.iter().flat_map(own).collect(), vteps, inner })
    }
}

/// Everybody whom the forger may claim to be, but the victim, whom its own kernel would not believe.
fn sources(from: From<'_>, places: &[&Place], victim: &Place) -> Vec<(String, IpAddr)> {
    let family = from.family;
    let mut sources = Vec::new();
    let mut add = |whose: String, address: Option<IpAddr>| {
        sources.extend(address.map(|address| (whose, address)));
    };
    for place in places {
        add(format!("pod {}", place.pod("locked")), place.locked(family));
        if place.index != victim.index {
            add(format!("pod {}", place.pod("server")), place.server(family));
        }
        add(format!("node {}", place.node), place.node_ip(family));
        add(format!("Service {}", place.pod("server")), place.service(family));
        let last = place.pod_cidr(family).map(|net| unused(net.broadcast()));
        add(format!("nobody on {}", place.node), last);
    }
    add("the outside".to_owned(), family.pick(OUTSIDE).parse().ok());
    sources
}

/// The last address of a range that a pod can have is given out last.
fn unused(broadcast: IpAddr) -> IpAddr {
    match broadcast {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() & !1).into()),
        IpAddr::V6(_) => broadcast,
    }
}

#[cfg(test)]
mod tests {
    use types::Family;

    use super::*;

    #[test]
    fn nobody_is_the_last_host_of_a_range() {
        for (net, last) in
            [("10.244.1.0/24", "10.244.1.254"), ("fd00:10:244:1::/64", "fd00:10:244:1:ffff:ffff:ffff:ffff")]
        {
            let net: types::IpNet = net.parse().unwrap();
            assert_eq!(unused(net.broadcast()), last.parse::<IpAddr>().unwrap());
        }
        assert_eq!(Family::of(OUTSIDE[1].parse().unwrap()), Family::V6);
    }
}
