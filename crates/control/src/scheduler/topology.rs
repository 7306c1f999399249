//! Rules about who else runs in the same domain: a node, a zone, whatever label divides the nodes.

use std::collections::BTreeMap;

use types::Labels;

use crate::view::{AntiAffinityTerm, LabelSelector, Node, Pod, SpreadConstraint};

const HOSTNAME: &str = "kubernetes.io/hostname";

pub(super) struct Topology<'a> {
    nodes: Vec<&'a Node>,
    placed: Vec<(&'a Node, &'a Pod)>,
}

impl<'a> Topology<'a> {
    pub fn new(nodes: Vec<&'a Node>, placed: &[(&str, &'a Pod)]) -> Self {
        let on = |name: &str| nodes.iter().copied().find(|n| n.metadata.name == name);
        let placed = placed.iter().filter_map(|(name, pod)| Some((on(name)?, *pod))).collect();
        Self { nodes, placed }
    }

    /// Why this pod may not run in the domains of this node, in kube-scheduler's words.
    pub fn refusal(&self, node: &Node, pod: &Pod) -> Option<&'static str> {
        let together =
            |key: &str, other: &Node| domain(node, key).is_some() && domain(node, key) == domain(other, key);
        for (other_node, other) in &self.placed {
            let meets = |who: &Pod, whom: &Pod| {
                let terms = who.spec.affinity.pod_anti_affinity.required.iter();
                terms.into_iter().any(|t| together(&t.topology_key, other_node) && avoids(t, who, whom))
            };
            if meets(pod, other) {
                return Some("node(s) didn't match pod anti-affinity rules");
            }
            if meets(other, pod) {
                return Some("node(s) didn't satisfy existing pods anti-affinity rules");
            }
        }
        let hard =
            pod.spec.topology_spread_constraints.iter().filter(|c| c.when_unsatisfiable != "ScheduleAnyway");
        for constraint in hard {
            let Some(here) = domain(node, &constraint.topology_key) else {
                return Some("node(s) didn't match pod topology spread constraints (missing required label)");
            };
            if self.skew(constraint, pod, here) > constraint.max_skew.max(1) {
                return Some("node(s) didn't match pod topology spread constraints");
            }
        }
        None
    }

    /// How far the domain would be above the emptiest one with this pod in it.
    fn skew(&self, constraint: &SpreadConstraint, pod: &Pod, here: &str) -> i64 {
        let eligible =
            |node: &Node| pod.spec.node_selector.iter().all(|(k, v)| node.metadata.labels.get(k) == Some(v));
        let nodes = self.nodes.iter().filter(|n| eligible(n));
        let domains = nodes.filter_map(|n| domain(n, &constraint.topology_key));
        let mut counts: BTreeMap<&str, i64> = domains.map(|d| (d, 0)).collect();
        for (node, other) in &self.placed {
            let counted = other.active()
                && other.metadata.namespace == pod.metadata.namespace
                && matches(constraint.label_selector.as_ref(), &other.metadata.labels);
            if let Some(count) = domain(node, &constraint.topology_key).and_then(|d| counts.get_mut(d)) {
                *count += i64::from(counted);
            }
        }
        let itself = i64::from(matches(constraint.label_selector.as_ref(), &pod.metadata.labels));
        let least = counts.values().min().copied().unwrap_or(0);
        counts.get(here).copied().unwrap_or(0) + itself - least
    }
}

/// The value that a label divides the nodes by; a node without a hostname label is its own.
fn domain<'n>(node: &'n Node, key: &str) -> Option<&'n str> {
    let label = node.metadata.labels.get(key);
    label.or((key == HOSTNAME).then_some(&node.metadata.name)).map(String::as_str)
}

fn avoids(term: &AntiAffinityTerm, who: &Pod, whom: &Pod) -> bool {
    let namespace = &whom.metadata.namespace;
    let there = match term.namespaces.as_slice() {
        [] => *namespace == who.metadata.namespace,
        named => named.contains(namespace),
    };
    there && matches(term.label_selector.as_ref(), &whom.metadata.labels)
}

/// No selector matches nothing; an empty one matches everything (metav1.LabelSelectorAsSelector).
fn matches(selector: Option<&LabelSelector>, labels: &Labels) -> bool {
    selector.and_then(LabelSelector::read).is_some_and(|s| s.matches(labels))
}
