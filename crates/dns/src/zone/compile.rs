//! From rows to names: one service or namespace at a time (Kubernetes DNS specification 1.1.0).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::{Cluster, Endpoint, Key, Kind, Service, ServiceType};
use types::{ObjectName, Protocol};

use super::Settings;
use super::records::{Node, RrSet, push_record};
use crate::name::Name;
use crate::query::{HEADER, Type};

/// The object that a name exists because of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    Namespace(String),
    Service(ObjectName),
}

/// A service's wish for what an address's reverse name says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// The address is a ClusterIP, which goes before endpoints (DNS-25).
    pub cluster_ip: bool,
    pub target: Name,
}

#[derive(Clone, Debug, Default)]
pub struct Records {
    pub names: Vec<(Name, Node)>,
    pub claims: Vec<(IpAddr, Claim)>,
}

/// What some changed keys come to: everything that their objects own from now on.
#[derive(Clone, Debug, Default)]
pub struct Edit {
    pub(super) owners: Vec<(Owner, Records)>,
    /// Every source that names come from has been listed.
    pub(super) listed: bool,
}

impl Edit {
    /// Reads only the objects that `keys` name.
    pub fn compile(settings: &Settings, cluster: &Cluster, keys: &[Key]) -> Self {
        let owners: BTreeSet<Owner> = keys.iter().filter_map(|key| owner(cluster, key)).collect();
        let owners = owners.into_iter().map(|owner| {
            let records = match &owner {
                Owner::Namespace(name) if cluster.namespaces.contains_key(name) => namespace(settings, name),
                Owner::Namespace(_) => Records::default(),
                Owner::Service(key) => match cluster.services.get(key) {
                    Some(row) => service(settings, cluster, row).unwrap_or_default(),
                    None => Records::default(),
                },
            };
            (owner, records)
        });
        let sources = [Kind::Namespace, Kind::Service, Kind::EndpointSlice];
        Self { owners: owners.collect(), listed: !cluster.missing().any(|kind| sources.contains(&kind)) }
    }
}

fn owner(cluster: &Cluster, key: &Key) -> Option<Owner> {
    match key.kind {
        Kind::Namespace => Some(Owner::Namespace(key.name.name.to_string())),
        Kind::Service => Some(Owner::Service(key.name.clone())),
        Kind::EndpointSlice => {
            let slice = cluster.slices.get(&key.name)?;
            Some(Owner::Service(slice.key.sibling(&slice.service)))
        }
        Kind::Node | Kind::Pod | Kind::Policy | Kind::Attachment => None,
    }
}

/// The names that are there before any object is (DNS-01, DNS-21, spec 1.8).
pub fn fixed(settings: &Settings) -> Vec<(Name, Node)> {
    let domain = &settings.domain;
    let child = |of: &Name, label| of.child(label).ok();
    let mut names = Vec::new();
    let ns = child(domain, "dns").and_then(|dns| {
        names.push((dns.clone(), Node::default()));
        child(&dns, "ns")
    });
    let mut apex = Vec::new();
    if let Some(ns) = ns {
        let mut set = RrSet::new(Type::NS, settings.ttl, [ns.wire()]);
        let mut glue = Vec::new();
        for address in &settings.addresses {
            push_address(&mut glue, ns.wire(), settings.ttl, *address);
        }
        set.additional = glue.into();
        apex.push(set);
        names.push((ns, Node::of(RrSet::addresses(settings.ttl, &settings.addresses))));
    }
    names.push((domain.clone(), Node::of(apex)));
    names.extend(["svc", "pod"].iter().filter_map(|l| child(domain, l)).map(|n| (n, Node::default())));
    let version = Node::of([RrSet::new(Type::TXT, 28800, [b"\x051.1.0"])]);
    names.extend(child(domain, "dns-version").map(|name| (name, version)));
    names
}

fn namespace(settings: &Settings, name: &str) -> Records {
    let below = |label| settings.domain.child(label).and_then(|n| n.child(name)).ok();
    let names = ["svc", "pod"].into_iter().filter_map(below).map(|n| (n, Node::default())).collect();
    Records { names, claims: Vec::new() }
}

/// `None` when its names would not fit into DNS, which the API's own limits rule out for usual domains.
fn service(settings: &Settings, cluster: &Cluster, row: &Service) -> Option<Records> {
    let below = settings.domain.child("svc").and_then(|n| n.child(&row.key.namespace)).ok()?;
    let name = below.child(&row.key.name).ok()?;
    if row.kind == ServiceType::ExternalName {
        return Some(Records { names: vec![(name, external(settings, row))], claims: Vec::new() });
    }
    if row.headless {
        return Some(headless(settings, cluster, row, &name));
    }
    if row.cluster_ips.is_empty() {
        return None;
    }
    let mut records = Records::default();
    let ports: Vec<Target> = row
        .ports
        .iter()
        .flat_map(|port| row.cluster_ips.iter().map(move |address| (port, *address)))
        .map(|(port, address)| Target {
            port_name: &port.name,
            protocol: port.protocol,
            port: port.port,
            host: None,
            address,
        })
        .collect();
    let addresses = RrSet::addresses(settings.ttl, &row.cluster_ips);
    push_targets(settings, &name, &ports, addresses, &mut records);
    let claim = Claim { cluster_ip: true, target: name };
    records.claims = row.cluster_ips.iter().map(|address| (*address, claim.clone())).collect();
    Some(records)
}

/// DNS-07: a CNAME, and no record at all for an address written as a name.
fn external(settings: &Settings, row: &Service) -> Node {
    let text = row.external_name.as_deref().unwrap_or_default();
    // The API takes one closing dot.
    let text = text.strip_suffix('.').unwrap_or(text);
    if text.is_empty() || text.parse::<IpAddr>().is_ok() {
        return Node::default();
    }
    match Name::parse(text) {
        Ok(target) => Node {
            sets: [RrSet::new(Type::CNAME, settings.ttl, [target.wire()])].into(),
            alias: Some(target),
        },
        Err(_) => Node::default(),
    }
}

/// One line of an SRV answer before names collapse.
struct Target<'a> {
    port_name: &'a str,
    protocol: Protocol,
    port: u16,
    /// The endpoint's label; `None` is the service itself.
    host: Option<String>,
    address: IpAddr,
}

/// DNS-05: what is ready, by address and by name. Nothing ready: no name.
fn headless(settings: &Settings, cluster: &Cluster, row: &Service, name: &Name) -> Records {
    let mut addresses = BTreeSet::new();
    let mut hosts: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    let mut targets = Vec::new();
    let mut seen = BTreeSet::new();
    for slice in cluster.slices_of(&row.key) {
        // `ready` already says what publishNotReadyAddresses means (DNS-09, EP-01).
        for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.ready) {
            let host = host_label(endpoint);
            addresses.insert(endpoint.address);
            hosts.entry(host.clone()).or_default().insert(endpoint.address);
            for port in &slice.ports {
                let Some(number) = port.port else { continue };
                // The same endpoint in two slices while it moves is one endpoint (spec 1.4).
                if seen.insert((endpoint.address, host.clone(), port.protocol, number, port.name.as_str())) {
                    targets.push(Target {
                        port_name: &port.name,
                        protocol: port.protocol,
                        port: number,
                        host: Some(host.clone()),
                        address: endpoint.address,
                    });
                }
            }
        }
    }
    let mut records = Records::default();
    if addresses.is_empty() {
        return records;
    }
    let addresses: Vec<IpAddr> = addresses.into_iter().collect();
    push_targets(settings, name, &targets, RrSet::addresses(settings.ttl, &addresses), &mut records);
    for (host, addresses) in hosts {
        let Ok(host_name) = name.child(&host) else { continue };
        let addresses: Vec<IpAddr> = addresses.into_iter().collect();
        let claim = Claim { cluster_ip: false, target: host_name.clone() };
        records.claims.extend(addresses.iter().map(|address| (*address, claim.clone())));
        records.names.push((host_name, Node::of(RrSet::addresses(settings.ttl, &addresses))));
    }
    records
}

/// DNS-06: the endpoint's own hostname, else its address with dashes. No label ends in one (`fd00::`), so such an
/// address gets the zero that it leaves out.
fn host_label(endpoint: &Endpoint) -> String {
    match endpoint.hostname.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => name.to_ascii_lowercase(),
        None => {
            let dashed = endpoint.address.to_string().replace(['.', ':'], "-");
            if dashed.ends_with('-') { dashed + "0" } else { dashed }
        }
    }
}

/// The service's own name and its `_port._proto` names.
fn push_targets(
    settings: &Settings,
    name: &Name,
    targets: &[Target<'_>],
    addresses: [RrSet; 2],
    records: &mut Records,
) {
    let all: Vec<&Target<'_>> = targets.iter().collect();
    let own = srv(settings, name, &all, 0);
    records.names.push((name.clone(), Node::of(addresses.into_iter().chain([own]))));
    let mut named: BTreeMap<(Protocol, &str), Vec<&Target<'_>>> = BTreeMap::new();
    for target in targets.iter().filter(|target| !target.port_name.is_empty()) {
        named.entry((target.protocol, target.port_name)).or_default().push(target);
    }
    let protocols: BTreeSet<Protocol> = named.keys().map(|(protocol, _)| *protocol).collect();
    for protocol in protocols {
        // An empty node: `_tcp` exists because something lies below it (RFC 8020).
        records.names.extend(name.child(&format!("_{protocol}")).map(|n| (n, Node::default())));
    }
    for ((protocol, port), targets) in named {
        let labels = (format!("_{protocol}"), format!("_{port}"));
        let Ok(full) = name.child(&labels.0).and_then(|n| n.child(&labels.1)) else { continue };
        let depth = labels.0.len() + labels.1.len() + 2;
        records.names.push((full, Node::of([srv(settings, name, &targets, depth)])));
    }
}

/// DNS-03 and spec 1.3. `depth`: how far behind the start of the question's name the service's name begins, so
/// that the owners in the additional section are pointers. Targets themselves stay uncompressed (RFC 2782).
fn srv(settings: &Settings, service: &Name, targets: &[&Target<'_>], depth: usize) -> RrSet {
    let weight = (100 / targets.len().max(1)).max(1) as u16;
    let pointer = (0xc000 | (HEADER + depth) as u16).to_be_bytes();
    let mut lines = BTreeSet::new();
    let mut hosts = BTreeSet::new();
    for target in targets {
        let host = target.host.as_deref().unwrap_or_default();
        let Ok(name) = (if host.is_empty() { Ok(service.clone()) } else { service.child(host) }) else {
            continue;
        };
        let mut data = vec![0, 0];
        data.extend_from_slice(&weight.to_be_bytes());
        data.extend_from_slice(&target.port.to_be_bytes());
        data.extend_from_slice(name.wire());
        lines.insert(data);
        hosts.insert((host, target.address));
    }
    let mut additional = Vec::new();
    for (host, address) in hosts {
        let mut owner = Vec::with_capacity(host.len() + 3);
        if !host.is_empty() {
            owner.push(host.len() as u8);
            owner.extend_from_slice(host.as_bytes());
        }
        owner.extend_from_slice(&pointer);
        push_address(&mut additional, &owner, settings.ttl, address);
    }
    RrSet { additional: additional.into(), ..RrSet::new(Type::SRV, settings.ttl, lines) }
}

fn push_address(out: &mut Vec<u8>, owner: &[u8], ttl: u32, address: IpAddr) {
    match address {
        IpAddr::V4(address) => push_record(out, owner, Type::A, ttl, &address.octets()),
        IpAddr::V6(address) => push_record(out, owner, Type::AAAA, ttl, &address.octets()),
    }
}

/// DNS-04 and DNS-25: the reverse name's answer from all who claim it.
pub fn pointers<'a>(settings: &Settings, claims: impl Iterator<Item = &'a Claim>) -> Node {
    let claims: BTreeSet<&Claim> = claims.collect();
    let cluster_ip = claims.iter().any(|claim| claim.cluster_ip);
    let targets = claims.iter().filter(|claim| claim.cluster_ip == cluster_ip).map(|c| c.target.wire());
    Node::of([RrSet::new(Type::PTR, settings.ttl, targets)])
}

/// `9.2.244.10.in-addr.arpa`, or the 32 nibbles under `ip6.arpa` (RFC 3596 §2.5).
pub fn reverse_name(address: IpAddr) -> Option<Name> {
    let text = match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let nibbles = address.octets().into_iter().rev().map(|o| format!("{:x}.{:x}.", o & 15, o >> 4));
            nibbles.collect::<String>() + "ip6.arpa"
        }
    };
    Name::parse(&text).ok()
}
