//! Node CIDRs: one prefix of the cluster's CIDR per node, given once and kept for good.
//!
//! Index 0 stays free, so that nodeN can have 10.244.N.0/24 and addresses tell where a pod runs.

use std::collections::BTreeMap;

use serde_json::json;
use types::Ipv4Net;

use crate::brain::{Brain, Settings};
use crate::kind::Kind;
use crate::view::Node;
use crate::world::World;
use crate::write::{Decision, Notice, Target, Write};

/// Prefixes for all nodes that have none, oldest node first.
pub fn decide(world: &World, settings: &Settings) -> Decision {
    let pool: Vec<Ipv4Net> =
        settings.cluster_cidr.subnets(settings.node_prefix_len).map(Iterator::collect).unwrap_or_default();
    let mut taken: BTreeMap<usize, &str> = BTreeMap::new();
    for node in world.all::<Node>() {
        for (index, cidr) in pool.iter().enumerate() {
            if cidrs(node).any(|c| overlaps(*cidr, c)) {
                taken.insert(index, &node.metadata.name);
            }
        }
    }
    let mut waiting: Vec<&Node> = world.all::<Node>().filter(|n| cidrs(n).next().is_none()).collect();
    waiting.sort_by_key(|n| (n.metadata.creation_timestamp, n.metadata.name.clone()));
    let writes = waiting.into_iter().filter(|n| !n.metadata.terminating()).map(|node| {
        let preferred = number(&node.metadata.name).filter(|n| *n < pool.len() && !taken.contains_key(n));
        let index = preferred.or_else(|| (1..pool.len()).find(|i| !taken.contains_key(i)));
        match index.and_then(|i| Some((i, pool.get(i)?))) {
            Some((index, cidr)) => {
                taken.insert(index, &node.metadata.name);
                let cidr = cidr.to_string();
                let patch = json!({"spec": {"podCIDR": cidr, "podCIDRs": [cidr]}});
                Write::patch(Kind::Node, &node.metadata, patch)
            }
            None => Write::Post(Notice {
                about: Target::of(Kind::Node, &node.metadata),
                warning: true,
                reason: "CIDRNotAvailable",
                note: format!(
                    "all {} pod prefixes of {} are taken; remove nodes, or start the cluster with a wider pod CIDR",
                    pool.len().saturating_sub(1),
                    settings.cluster_cidr
                ),
                source: Brain::NodeCidr.component(),
            }),
        }
    });
    Decision::writes(writes.collect())
}

fn cidrs(node: &Node) -> impl Iterator<Item = Ipv4Net> {
    std::iter::once(&node.spec.pod_cidr)
        .chain(&node.spec.pod_cidrs)
        .filter_map(|text| text.parse::<Ipv4Net>().ok())
}

fn overlaps(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
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
    fn an_exhausted_range_is_said_on_the_node() {
        let mut api = Memory::default();
        api.settings.cluster_cidr = Ipv4Net::new_assert([10, 244, 0, 0].into(), 23);
        for name in ["node1", "node2"] {
            api.apply(Kind::Node, name, json!({}));
        }
        api.settle();
        let prefixes: BTreeSet<String> = ["node1", "node2"].map(|n| cidr(&api, n)).into();
        assert_eq!(prefixes, BTreeSet::from([String::new(), "10.244.1.0/24".to_owned()]));
        assert!(api.events.iter().any(|e| e.reason == "CIDRNotAvailable" && e.about.name.name == "node2"));
    }
}
