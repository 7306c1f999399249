//! A rule kept apart from others: one set of its ports, one of its peers.

use std::collections::{BTreeMap, BTreeSet};

use types::{Family, Protocol};

use super::{Peers, PortMatch, Rule, joined};
use crate::policy::tier::Cause;

/// A rule of many ports and peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apart<'a> {
    pub cause: &'a Cause,
    pub peers: Peers,
    /// None: every port of every protocol.
    pub ports: Option<Ports>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    pub named: BTreeSet<(Protocol, String)>,
    /// Disjoint, sorted, both ends inclusive.
    pub numbers: BTreeMap<Protocol, Vec<(u16, u16)>>,
}

impl<'a> Apart<'a> {
    pub(super) fn of(rule: &'a Rule, family: Family) -> Self {
        let ports = rule.ports.as_deref().map(Ports::of);
        Self { cause: &rule.judgement.cause, peers: Peers::of([rule], family), ports }
    }
}

impl Ports {
    fn of(all: &[PortMatch]) -> Self {
        let mut found = Self::default();
        let mut numbers: BTreeMap<Protocol, Vec<(u128, u128)>> = BTreeMap::new();
        for port in all {
            match port {
                PortMatch::Name { protocol, name } => {
                    found.named.insert((*protocol, name.clone()));
                }
                PortMatch::Numbers { protocol, from, to } => {
                    numbers.entry(*protocol).or_default().push(((*from).into(), (*to).into()));
                }
            }
        }
        let narrow = |(from, to): (u128, u128)| (from as u16, to as u16);
        let joined = |(protocol, all)| (protocol, joined(all).into_iter().map(narrow).collect());
        found.numbers = numbers.into_iter().map(joined).collect();
        found
    }
}
