//! Node CIDRs: one prefix of the cluster's CIDR per node, given once and kept for good.
//!
//! Index 0 stays free, so that nodeN can have 10.244.N.0/24 and addresses tell where a pod runs.

use std::collections::BTreeMap;

use serde_json::json;
use types::{Family, IpNet};

use crate::brain::{Brain, Settings};
use crate::kind::Kind;
use crate::view::Node;
use crate::world::World;
use crate::write::{Decision, Notice, Target, Write};

/// Prefixes for all nodes that have none, oldest node first.
pub fn decide(world: &World, settings: &Settings) -> Decision {
    // One index for every family, so that 10.244.3.0/24 and fd00:10:244:3::/64 are of one node.
    let pools: Vec<Pool> = settings.cluster_cidrs.iter().map(|net| Pool::new(*net, settings)).collect();
    let len = pools.iter().map(|pool| pool.len).min().unwrap_or(0);
    let mut taken: BTreeMap<usize, &str> = BTreeMap::new();
    for node in world.all::<Node>() {
        for cidr in cidrs(node) {
            for index in pools.iter().flat_map(|pool| pool.indices(cidr)) {
                taken.insert(index, &node.metadata.name);
            }
        }
    }
    let mut waiting: Vec<&Node> = world.all::<Node>().filter(|n| cidrs(n).next().is_none()).collect();
    waiting.sort_by_key(|n| (n.metadata.creation_timestamp, n.metadata.name.clone()));
    let writes = waiting.into_iter().filter(|n| !n.metadata.terminating()).map(|node| {
        let preferred = number(&node.metadata.name).filter(|n| *n < len && !taken.contains_key(n));
        let index = preferred.or_else(|| (1..len).find(|i| !taken.contains_key(i)));
        match index {
            Some(index) => {
                taken.insert(index, &node.metadata.name);
                let all: Vec<String> = pools.iter().map(|pool| pool.at(index).to_string()).collect();
                let patch = json!({"spec": {"podCIDR": all.first(), "podCIDRs": all}});
                Write::patch(Kind::Node, &node.metadata, patch)
            }
            None => Write::Post(Notice {
                about: Target::of(Kind::Node, &node.metadata),
                warning: true,
                reason: "CIDRNotAvailable",
                note: format!(
                    "all {} pod prefixes of {} are taken; remove nodes, or start the cluster with a wider pod CIDR",
                    len.saturating_sub(1),
                    settings.cluster_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
                ),
                source: Brain::NodeCidr.component(),
            }),
        }
    });
    Decision::writes(writes.collect())
}

fn cidrs(node: &Node) -> impl Iterator<Item = IpNet> {
    std::iter::once(&node.spec.pod_cidr)
        .chain(&node.spec.pod_cidrs)
        .filter_map(|text| text.parse::<IpNet>().ok())
}

/// A range as so many prefixes of equal length; counted, not listed, since IPv6 has 65536 of them.
struct Pool {
    net: IpNet,
    prefix_len: u8,
    len: usize,
}

/// More nodes than anyone has: an IPv6 range may be much wider.
const MOST: usize = 1 << 16;

impl Pool {
    fn new(net: IpNet, settings: &Settings) -> Self {
        let prefix_len = Family::of_net(&net).pick(settings.node_prefix_lens);
        let bits = u32::from(prefix_len.saturating_sub(net.prefix_len()));
        let whole = prefix_len >= net.prefix_len();
        let len = if whole { 1_usize.checked_shl(bits).unwrap_or(MOST).min(MOST) } else { 0 };
        Self { net: net.trunc(), prefix_len, len }
    }

    /// How far apart two prefixes are, as a power of two.
    fn shift(&self) -> u32 {
        u32::from(self.net.max_prefix_len() - self.prefix_len)
    }

    fn at(&self, index: usize) -> IpNet {
        let address = types::offset(self.net.network(), (index as u128) << self.shift());
        IpNet::new(address, self.prefix_len).unwrap_or(self.net)
    }

    /// The prefixes that overlap with a network.
    fn indices(&self, other: IpNet) -> std::ops::Range<usize> {
        if other.contains(&self.net) {
            return 0..self.len;
        }
        if !self.net.contains(&other) {
            return 0..0;
        }
        // It lies within ours, so it is of our family and not in front of us.
        let distance = |to| types::number(to) - types::number(self.net.network());
        let index = |address| usize::try_from(distance(address) >> self.shift()).unwrap_or(usize::MAX);
        index(other.network()).min(self.len)..index(other.broadcast()).saturating_add(1).min(self.len)
    }
}

/// The K of a node called nodeK.
fn number(name: &str) -> Option<usize> {
    name.strip_prefix("node")?.parse().ok().filter(|n| *n > 0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::memory::Memory;

    fn cidr(api: &Memory, node: &str) -> String {
        api.object(Kind::Node, node)["spec"]["podCIDR"].as_str().unwrap_or_default().to_owned()
    }

    #[test]
    fn a_numbered_node_gets_its_number_and_others_the_lowest_free_one() {
        let mut api = Memory::default();
        for name in ["node7", "worker", "node1"] {
            api.apply(Kind::Node, name, json!({}));
        }
        api.settle();
        assert_eq!(cidr(&api, "node7"), "10.244.7.0/24");
        assert_eq!(cidr(&api, "node1"), "10.244.1.0/24");
        assert_eq!(cidr(&api, "worker"), "10.244.2.0/24");
        // Stable: a newcomer takes the hole, nobody moves.
        api.remove(Kind::Node, "node1");
        api.apply(Kind::Node, "edge", json!({}));
        api.settle();
        assert_eq!(cidr(&api, "edge"), "10.244.1.0/24");
        assert_eq!(cidr(&api, "worker"), "10.244.2.0/24");
    }

    #[test]
    fn both_families_of_a_node_have_one_number() {
        let mut api = Memory::default();
        let ranges = ["fd00:10:244::/48", "10.244.0.0/16"];
        api.settings.cluster_cidrs = ranges.map(|net| net.parse().expect("a prefix")).to_vec();
        // Somebody gave a node a prefix by hand.
        api.apply(Kind::Node, "old", json!({"spec": {"podCIDRs": ["10.244.1.0/25"]}}));
        for name in ["node3", "worker"] {
            api.apply(Kind::Node, name, json!({}));
        }
        api.settle();
        let all = |node| api.object(Kind::Node, node)["spec"]["podCIDRs"].clone();
        assert_eq!(all("node3"), json!(["fd00:10:244:3::/64", "10.244.3.0/24"]));
        assert_eq!(all("worker"), json!(["fd00:10:244:2::/64", "10.244.2.0/24"]));
    }

    #[test]
    fn an_exhausted_range_is_said_on_the_node() {
        let mut api = Memory::default();
        api.settings.cluster_cidrs = vec!["10.244.0.0/23".parse().expect("a prefix")];
        for name in ["node1", "node2"] {
            api.apply(Kind::Node, name, json!({}));
        }
        api.settle();
        let prefixes: BTreeSet<String> = ["node1", "node2"].map(|n| cidr(&api, n)).into();
        assert_eq!(prefixes, BTreeSet::from([String::new(), "10.244.1.0/24".to_owned()]));
        assert!(api.events.iter().any(|e| e.reason == "CIDRNotAvailable" && &*e.about.name.name == "node2"));
    }
}
