//! Who answers at the cluster's DNS address: each node its own pods, and while it has no agent others do.

use std::net::IpAddr;

use model::Cluster;
use types::{Family, Protocol};

use crate::Settings;
use crate::node::internal_ip;

/// Where queries are sent, by UDP and by TCP.
pub const PORT: u16 = 53;

/// Whether nodes answer there, and no Service does: a Service may have other ports at the cluster's DNS address.
pub fn answers(settings: &Settings, (address, protocol, port): (IpAddr, Protocol, u16)) -> bool {
    settings.dns_ips.contains(&address) && port == PORT && protocol != Protocol::Sctp
}

/// As many as never are all away at once. In a cluster of thousands each has others, and a Node that comes or goes
/// hardly ever changes whom this one would ask.
const STAND_INS: usize = 16;

/// Addresses of the nodes that answer while this one has no agent, sorted: those whose address, together with our
/// name, has the lowest number (rendezvous hashing, Thaler and Ravishankar 1998).
pub fn stand_ins(cluster: &Cluster, settings: &Settings, family: Family) -> Vec<IpAddr> {
    if settings.dns_ip(family).is_none() {
        return Vec::new();
    }
    let others = cluster.nodes.values().filter(|node| node.name != settings.node);
    let addresses = others.filter_map(|node| internal_ip(node, family));
    let us = mix(settings.node.bytes().fold(0, |seed, byte| mix(seed ^ u64::from(byte))));
    let mut peers: Vec<_> = addresses.map(|address| (rank(us, address), address)).collect();
    if peers.len() > STAND_INS {
        peers.select_nth_unstable(STAND_INS);
        peers.truncate(STAND_INS);
    }
    let mut peers: Vec<_> = peers.into_iter().map(|(_, address)| address).collect();
    peers.sort_unstable();
    peers
}

fn rank(us: u64, address: IpAddr) -> u64 {
    let number = match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    mix(mix(us ^ (number as u64)) ^ (number >> 64) as u64)
}

/// The finalizer of MurmurHash3: every bit of the input moves half of the output's.
/// With `hash8` (FNV-1a) all nodes would choose a few same ones.
fn mix(mut bits: u64) -> u64 {
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        bits = (bits ^ (bits >> 33)).wrapping_mul(factor);
    }
    bits ^ (bits >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Event, Node, Row};

    fn cluster(nodes: u32) -> Cluster {
        let mut cluster = Cluster::default();
        for number in 0..nodes {
            let address = std::net::Ipv4Addr::from_bits(0xc0a8_0000 + number).into();
            let row = Node { name: format!("node{number}"), addresses: vec![address], ..Node::default() };
            cluster.apply(Event::Upsert(Row::Node(row)));
        }
        cluster
    }

    fn of(node: u32, nodes: u32) -> Vec<IpAddr> {
        let settings = Settings {
            dns_ips: vec![[10, 96, 0, 10].into()],
            ..Settings::new(format!("node{node}"), Vec::new(), 1450)
        };
        stand_ins(&cluster(nodes), &settings, Family::V4)
    }

    #[test]
    fn few_nodes_are_all_asked() {
        assert_eq!(of(0, 3).len(), 2);
        assert_eq!(of(0, 17).len(), 16);
    }

    #[test]
    fn many_nodes_have_each_their_own_stand_ins_and_keep_them() {
        let before = of(0, 400);
        assert_eq!(before.len(), STAND_INS);
        let after = of(0, 402);
        assert!(before.iter().filter(|peer| after.contains(peer)).count() >= STAND_INS - 2);
        let mut asked = std::collections::BTreeMap::<IpAddr, usize>::new();
        (0..400).flat_map(|node| of(node, 400)).for_each(|peer| *asked.entry(peer).or_default() += 1);
        // 16 each on average.
        assert!(asked.len() > 390 && asked.values().all(|times| *times < 48), "{asked:?}");
    }
}
