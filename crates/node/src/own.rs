//! What the node's own Node object means for it. The node outlives the object: `kubectl delete node`, or a kubelet that
//! registers anew without pod CIDR, must not take the network from pods that run.
//!
//! ```text
//!   watch ─ hear ─> rows for the model, where the node is
//!   everything in the kernel, and now and then ─ follow ─> what to announce, where pods' addresses come from
//! ```

use std::net::IpAddr;

use ipam::Pool;
use model::{Announced, Event, Kind, Node, Row};
use semantics::node;
use types::{Family, IpNet};

/// To be performed in their order.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Row(Event),
    /// The node is at these addresses now.
    Presence(Vec<IpAddr>),
    /// The object does not say yet how the node's pods are reached.
    Announce(Announced),
    /// Addresses come from here: [`Input::Subnets`](crate::Input::Subnets).
    Subnets(Vec<IpNet>),
}

/// What the node is known as.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    pub name: &'a str,
    /// As the model has it.
    pub known: Option<&'a Node>,
    /// Where pods' addresses come from, since a process before if need be.
    pub pools: &'a [Pool],
}

impl Own<'_> {
    /// What is left of an event when the node outlives its object.
    pub fn hear(&self, event: Event) -> Vec<Outcome> {
        match event {
            Event::Delete(key) if key.kind == Kind::Node && *key.name.name == *self.name => Vec::new(),
            Event::Upsert(Row::Node(row)) if row.name == self.name => self.keep(row),
            // The list that follows may lack it.
            Event::Start(Kind::Node) => {
                let known = self.known.cloned().map(|known| Event::Upsert(Row::Node(known)));
                [Event::Start(Kind::Node)].into_iter().chain(known).map(Outcome::Row).collect()
            }
            event => vec![Outcome::Row(event)],
        }
    }

    /// What it does not say any more is as it was.
    fn keep(&self, mut row: Node) -> Vec<Outcome> {
        let nothing = Node::default();
        let known = self.known.unwrap_or(&nothing);
        if row.pod_cidrs.is_empty() {
            row.pod_cidrs.clone_from(&known.pod_cidrs);
        }
        if row.pod_cidrs.is_empty() {
            row.pod_cidrs.extend(self.pools.iter().map(Pool::cidr));
        }
        if row.addresses.is_empty() {
            row.addresses.clone_from(&known.addresses);
            if row.others.is_empty() {
                row.others.clone_from(&known.others);
            }
        }
        let is_elsewhere = row.addresses != known.addresses;
        let presence = is_elsewhere.then(|| Outcome::Presence(row.addresses.clone()));
        presence.into_iter().chain([Outcome::Row(Event::Upsert(Row::Node(row)))]).collect()
    }

    /// `announced`: what the object should say of the node.
    pub fn follow(&self, announced: Announced) -> Vec<Outcome> {
        let Some(known) = self.known else { return Vec::new() };
        let announce = (known.announced != announced).then_some(Outcome::Announce(announced));
        let nets = subnets(known);
        let pools = || self.pools.iter().map(Pool::cidr);
        let moves = nets.iter().any(|net| pools().all(|cidr| cidr != *net));
        announce.into_iter().chain(moves.then_some(Outcome::Subnets(nets))).collect()
    }
}

/// The family of the node's first pod CIDR is that of a pod's first address.
fn subnets(own: &Node) -> Vec<IpNet> {
    let mut nets: Vec<IpNet> = node::pod_subnets(own).map(|subnet| subnet.net).collect();
    let place =
        |net: &IpNet| own.pod_cidrs.iter().position(|cidr| Family::of_net(cidr) == Family::of_net(net));
    nets.sort_by_key(place);
    nets
}
