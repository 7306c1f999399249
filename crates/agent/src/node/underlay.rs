//! Whether this machine has the address at which other nodes reach it, ranges that fit it, and a way to each of theirs. A UDP socket that is
//! connected sends nothing: the kernel looks the route up as it does for the tunnel's packets.
//!
//! ```text
//!   InternalIP on no interface, or in a range of pods or Services ─> nothing is made (or, later, changed less): 503
//!   pod CIDR outside of --cluster-cidr                            ─> the same
//!   no way to a peer           ─> all else works: told, and its state stays, for the way may come at any moment
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use compile::{Diagnostic, Severity, fabric};
use model::{Key, Kind};
use types::wire::VXLAN_PORT;
use types::{Family, IpNet, ObjectName};

use super::Node;

/// While nothing is wrong: nobody tells us of routes that are not ours. What is wrong is looked at with every tick.
const LOOK: Duration = Duration::from_secs(5);

/// What is over sooner is no news: a kubelet reports a Node's addresses after it has made the Node.
const LASTING: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Underlay {
    looked: Option<Instant>,
    in_the_way: Option<Diagnostic>,
    /// By peer.
    out_of_reach: BTreeMap<String, Diagnostic>,
    /// Since when each holds, and whether it was told.
    known: BTreeMap<Diagnostic, (Instant, bool)>,
}

impl Underlay {
    /// Why nothing can be made on this node.
    pub fn in_the_way(&self) -> Option<&Diagnostic> {
        self.in_the_way.as_ref()
    }

    pub fn out_of_reach(&self) -> impl Iterator<Item = &Diagnostic> {
        self.out_of_reach.values()
    }

    /// What holds now, with what is remembered of it, and what of it no longer holds although it was told.
    fn remember(&mut self, mut before: BTreeMap<Diagnostic, (Instant, bool)>) -> Vec<Diagnostic> {
        let now = Instant::now();
        let holds = self.out_of_reach.values().chain(&self.in_the_way).cloned();
        self.known = holds
            .map(|finding| {
                let seen = before.remove(&finding).unwrap_or((now, false));
                (finding, seen)
            })
            .collect();
        before.into_iter().filter(|(_, (_, told))| *told).map(|(finding, _)| finding).collect()
    }

    /// What has lasted and was not told yet; it counts as told from now on.
    fn news(&mut self) -> Vec<Diagnostic> {
        let mut news = Vec::new();
        for (finding, (since, told)) in &mut self.known {
            if !*told && since.elapsed() >= LASTING {
                *told = true;
                news.push(finding.clone());
            }
        }
        news
    }
}

impl Node {
    /// Before anything is made, after Nodes have changed, and now and then.
    pub(super) fn look_for_ways(&mut self) {
        if self.cluster.synced().is_none() {
            return;
        }
        let rest = if self.underlay.known.is_empty() { LOOK } else { LASTING };
        let turned = self.changed.iter().filter(|key| key.kind == Kind::Node);
        let turned: BTreeSet<String> = turned.map(|key| key.name.name.to_string()).collect();
        let due = self.underlay.looked.is_none_or(|at| at.elapsed() >= rest);
        if turned.is_empty() && !due {
            return;
        }
        // One that joins five thousand waits for no look at them all.
        let all = due || turned.contains(&self.base.settings.node);
        let mut ways = self.ways((!all).then_some(&turned));
        let over = ways.remember(std::mem::take(&mut self.underlay.known));
        let news = ways.news();
        self.underlay = ways;
        self.base.metrics.diagnostics("Node", news.len() as i64 - over.len() as i64);
        news.iter().for_each(|finding| self.raise(finding));
        over.iter().for_each(|finding| tracing::info!("no longer: {finding}"));
    }

    /// `only`: what is known of other peers holds until they are looked at again.
    fn ways(&self, only: Option<&BTreeSet<String>>) -> Underlay {
        let looked = if only.is_some() { self.underlay.looked } else { Some(Instant::now()) };
        let mut found = Underlay { looked, ..Underlay::default() };
        let name = &self.base.settings.node;
        let Some(own) = self.cluster.nodes.get(name).and_then(fabric::underlay_ip) else {
            found.in_the_way = Some(no_internal_ip(name, self.cluster.nodes.contains_key(name)));
            return found;
        };
        let socket = match UdpSocket::bind((own, 0)) {
            Ok(socket) => socket,
            Err(error) => {
                found.in_the_way = Some(not_here(name, own, &error));
                return found;
            }
        };
        let args = &self.base.settings.args;
        found.in_the_way = self
            .cluster
            .nodes
            .get(name)
            .and_then(|node| misfit(node, &args.cluster_cidrs, &args.service_cidrs));
        let nodes = &self.cluster.nodes;
        let peers: Vec<&model::Node> = match only {
            Some(names) => {
                let others = self.underlay.out_of_reach.iter().filter(|(peer, _)| !names.contains(*peer));
                found.out_of_reach.extend(others.map(|(peer, finding)| (peer.clone(), finding.clone())));
                names.iter().filter_map(|name| nodes.get(name)).collect()
            }
            None => nodes.values().filter(|peer| peer.name != *name).collect(),
        };
        for peer in peers {
            let Some(address) = fabric::internal_ip(peer, Family::of(own)) else { continue };
            if let Err(error) = socket.connect((address, VXLAN_PORT)) {
                found
                    .out_of_reach
                    .insert(peer.name.clone(), no_way(name, own, (&peer.name, address), &error));
            }
        }
        found
    }
}

/// An address of the node that pods or Services would take, or a pod CIDR that is not of the cluster's: packets between
/// pods would be masqueraded, or the node cut off.
fn misfit(node: &model::Node, pods: &[IpNet], services: &[IpNet]) -> Option<Diagnostic> {
    let next = "give the ranges that the controller manager (--cluster-cidr) and the API server \
                (--service-cluster-ip-range) have: plumb install --cluster-cidr … --service-cidr …; the agent waits";
    for (flag, ranges) in [("--cluster-cidr", pods), ("--service-cidr", services)] {
        let hit = |address: &&IpAddr| ranges.iter().any(|range| range.contains(*address));
        if let Some(address) = node.addresses.iter().find(hit) {
            let message = format!("its address {address} lies in {flag} {}", joined(ranges));
            return Some(about(&node.name, Severity::Error, message, next.to_owned()));
        }
    }
    let known = |cidr: &IpNet| pods.iter().any(|range| range.contains(cidr));
    let cidr = node.pod_cidrs.iter().find(|cidr| !known(cidr))?;
    let message = format!("its pod CIDR {cidr} is not in --cluster-cidr {}", joined(pods));
    let found = about(&node.name, Severity::Error, message, next.to_owned());
    Some(Diagnostic { field: "spec.podCIDRs".to_owned(), ..found })
}

fn joined(ranges: &[IpNet]) -> String {
    ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn about(node: &str, severity: Severity, message: String, next_step: String) -> Diagnostic {
    let object = Key::new(Kind::Node, ObjectName::cluster(node));
    Diagnostic { object, field: "status.addresses".to_owned(), severity, message, next_step }
}

fn no_internal_ip(node: &str, is_known: bool) -> Diagnostic {
    let message =
        if is_known { "the Node has no InternalIP" } else { "the API has no such Node, so no InternalIP" };
    let next = "start its kubelet, or give it --node-ip; the agent waits";
    about(node, Severity::Error, format!("{message}: nothing is made here"), next.to_owned())
}

fn not_here(node: &str, own: IpAddr, error: &io::Error) -> Diagnostic {
    let message = format!(
        "its InternalIP {own} is on no interface of this machine ({error}): no tunnel can begin there"
    );
    let next = format!(
        "give the address to an interface (ip address add {own}/PREFIX dev INTERFACE), or the kubelet the right one \
         (--node-ip); the agent waits"
    );
    about(node, Severity::Error, message, next)
}

fn no_way(node: &str, own: IpAddr, (peer, address): (&str, IpAddr), error: &io::Error) -> Diagnostic {
    let message = format!(
        "no route from {own} to node {peer} at {address} ({error}): its pods are out of reach from here"
    );
    let next =
        format!("give this machine the route (ip route get {address} from {own} shows what is lacking)");
    about(node, Severity::Warning, message, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_do_not_fit_the_node_are_named() {
        let nets = |text: &str| vec![text.parse::<IpNet>().unwrap()];
        let node = model::Node {
            name: "node1".into(),
            addresses: vec!["192.168.1.10".parse().unwrap()],
            pod_cidrs: nets("10.244.1.0/24"),
            ..model::Node::default()
        };
        let found =
            |pods, services| misfit(&node, &nets(pods), &nets(services)).map(|found| found.to_string());
        assert_eq!(found("10.244.0.0/16", "10.96.0.0/12"), None);
        for (pods, services, words) in [
            ("192.168.0.0/16", "10.96.0.0/12", "192.168.1.10 lies in --cluster-cidr 192.168.0.0/16"),
            ("10.244.0.0/16", "192.168.1.0/24", "192.168.1.10 lies in --service-cidr 192.168.1.0/24"),
            ("10.10.0.0/16", "10.96.0.0/12", "10.244.1.0/24 is not in --cluster-cidr 10.10.0.0/16"),
        ] {
            let said = found(pods, services).unwrap_or_default();
            assert!(said.contains(words) && said.contains("the agent waits"), "{said}");
        }
    }
}
