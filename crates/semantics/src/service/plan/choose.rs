//! The endpoints of one Service port, and who of them may take a connection.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use model::{Cluster, Endpoint, EndpointSlice, Key, Kind, ServicePort};
use types::{Family, ObjectName};

use super::Outcome;
use crate::Settings;
use crate::diagnostic::{Diagnostic, Severity};
use crate::service::cause::Lack;
use crate::service::reserved;

/// An endpoint of one port; when two slices list one address, it is one endpoint, and local if either says so
/// (SVC-05).
struct Candidate<'a> {
    endpoint: &'a Endpoint,
    local: bool,
}

/// All endpoints that list a port by name and protocol, sorted by address (EP-07).
pub struct Candidates<'a>(BTreeMap<SocketAddr, Candidate<'a>>);

/// The sets of EP-01 and EP-02; empty where there is nobody.
pub struct Choice {
    cluster: Vec<SocketAddr>,
    local: Vec<SocketAddr>,
    /// Somebody, somewhere, could take a connection (EP-03).
    any: bool,
}

impl Choice {
    pub fn cluster(&self) -> Outcome {
        self.outcome(&self.cluster)
    }

    pub fn local(&self) -> Outcome {
        self.outcome(&self.local)
    }

    fn outcome(&self, set: &[SocketAddr]) -> Outcome {
        match set {
            [] if self.any => Outcome::Without(Lack::LocalEndpoint),
            [] => Outcome::Without(Lack::Endpoint),
            set => Outcome::Spread(set.to_vec()),
        }
    }
}

impl<'a> Candidates<'a> {
    pub fn of(
        (cluster, family): (&'a Cluster, Family),
        settings: &Settings,
        service: &ObjectName,
        port: &ServicePort,
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Self {
        let mut found: BTreeMap<SocketAddr, Candidate<'a>> = BTreeMap::new();
        for slice in cluster.served_slices_of(service) {
            let numbers = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
            for number in numbers.filter_map(|p| p.port).filter(|n| *n != 0) {
                for endpoint in slice.endpoints.iter().filter(|e| Family::of(e.address) == family) {
                    if let Some(finding) = unusable(slice, endpoint) {
                        diagnostics.push(finding);
                        continue;
                    }
                    let local = endpoint.node.as_deref() == Some(&settings.node);
                    let entry = found
                        .entry(SocketAddr::new(endpoint.address, number))
                        .or_insert(Candidate { endpoint, local });
                    entry.local |= local;
                    if rank(endpoint) > rank(entry.endpoint) {
                        entry.endpoint = endpoint;
                    }
                }
            }
        }
        Self(found)
    }

    pub fn choose(&self, zone: Option<&str>, node: &str) -> Choice {
        let of_rank = |rank_wanted: u8, local_only: bool| -> Vec<SocketAddr> {
            self.0
                .iter()
                .filter(|(_, c)| rank(c.endpoint) == rank_wanted && (c.local || !local_only))
                .map(|(address, _)| *address)
                .collect()
        };
        let first = |sets: [Vec<SocketAddr>; 2]| sets.into_iter().find(|set| !set.is_empty());
        Choice {
            cluster: first([self.near(zone, node), of_rank(1, false)]).unwrap_or_default(),
            local: first([of_rank(2, true), of_rank(1, true)]).unwrap_or_default(),
            any: self.0.values().any(|c| rank(c.endpoint) > 0),
        }
    }

    /// The ready endpoints, narrowed by topology hints when every one of them has a hint and one names us (EP-05).
    fn near(&self, zone: Option<&str>, node: &str) -> Vec<SocketAddr> {
        let ready: Vec<_> = self.0.iter().filter(|(_, c)| rank(c.endpoint) == 2).collect();
        let narrowed = |hints: fn(&Endpoint) -> &[String], us: &str| -> Option<Vec<SocketAddr>> {
            let everywhere = ready.iter().all(|(_, c)| !hints(c.endpoint).is_empty());
            let ours = ready.iter().filter(|(_, c)| hints(c.endpoint).iter().any(|hint| hint == us));
            let ours: Vec<_> = ours.map(|(address, _)| **address).collect();
            (everywhere && !ours.is_empty()).then_some(ours)
        };
        narrowed(Endpoint::node_hints, node)
            .or_else(|| narrowed(Endpoint::zone_hints, zone?))
            .unwrap_or_else(|| ready.iter().map(|(address, _)| **address).collect())
    }
}

/// Whether packets may be sent to an endpoint: what an address like 127.0.0.1 leads to is not the Service's.
pub fn serves(endpoint: &Endpoint) -> bool {
    reserved::special(endpoint.address).is_none()
}

fn unusable(slice: &EndpointSlice, endpoint: &Endpoint) -> Option<Diagnostic> {
    let address = endpoint.address;
    reserved::special(address).map(|what| Diagnostic {
        object: Key::new(Kind::EndpointSlice, slice.key.clone()),
        field: "endpoints[].addresses".to_owned(),
        severity: Severity::Warning,
        message: format!("{address} of EndpointSlice {} is {what}: nothing is sent there", slice.key),
        next_step: "list the address of a pod or of a host".to_owned(),
    })
}

/// The better of two reports about one address counts: ready, then serving while terminating.
fn rank(endpoint: &Endpoint) -> u8 {
    if endpoint.ready { 2 } else { u8::from(endpoint.serving && endpoint.terminating) }
}
