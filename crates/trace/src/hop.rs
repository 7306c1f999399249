//! The stages of a packet's way and what is to be known at each: typed facts, and one line of text for people.
//!
//! ```text
//!   1 resolve  2 socket  3 veth  4 service  5 route  6 policy(egress)  7 masq  8 tunnel │ node of the pod:
//!   9 node     10 policy(ingress)  11 pod                                  12 return
//! ```
//!
//! A stage that does not apply (no name to resolve, no tunnel on one node) is left out; the others keep their
//! numbers, so that one number always means one thing.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use types::{IfName, IpNet, Mac, ObjectName, Protocol};

use crate::expect::own;
use crate::observed::Way;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Resolve,
    Socket,
    Veth,
    Service,
    Route,
    Egress,
    Masq,
    Tunnel,
    Node,
    Ingress,
    Pod,
    Return,
}

impl Stage {
    pub const ALL: [Self; 12] = [
        Self::Resolve,
        Self::Socket,
        Self::Veth,
        Self::Service,
        Self::Route,
        Self::Egress,
        Self::Masq,
        Self::Tunnel,
        Self::Node,
        Self::Ingress,
        Self::Pod,
        Self::Return,
    ];

    pub fn number(self) -> u8 {
        Self::ALL.into_iter().zip(1..).find(|(stage, _)| *stage == self).map_or(0, |(_, n)| n)
    }

    /// The word in the second column.
    pub fn word(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Socket => "socket",
            Self::Veth => "veth",
            Self::Service => "service",
            Self::Route => "route",
            Self::Egress | Self::Ingress => "policy",
            Self::Masq => "masq",
            Self::Tunnel => "tunnel",
            Self::Node => "node",
            Self::Pod => "pod",
            Self::Return => "return",
        }
    }
}

/// One hop, as expected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    pub n: u8,
    pub stage: Stage,
    /// The node on which it happens.
    pub node: String,
    pub text: String,
    pub fact: Fact,
}

impl Hop {
    pub fn new(stage: Stage, node: &str, fact: Fact) -> Self {
        Self { n: stage.number(), stage, node: node.to_owned(), text: fact.to_string(), fact }
    }

    /// With the word of what was told in the end, where the connection ends here.
    pub fn as_told(&self, was_told: bool) -> Self {
        let mut fact = self.fact.clone();
        if let Fact::Refused { rejected, .. } = &mut fact {
            *rejected = was_told;
            return Self::new(self.stage, &self.node, fact);
        }
        self.clone()
    }
}

/// What is expected at a hop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Fact {
    Resolve {
        /// As written.
        name: String,
        /// As answered.
        full_name: String,
        addresses: Vec<IpAddr>,
        /// Which name of the resolver's list it was, from 1, and of how many; the list ends with the name as written.
        step: usize,
        of: usize,
        /// The cluster has no such name, so that the node's own resolvers decide.
        upstream: bool,
        /// The name is there, and why it has no address of the family that is asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lacks: Option<String>,
        /// Where a Service of type ExternalName leads, of which the node's own resolvers know.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        alias: Option<String>,
        /// Why the cluster's DNS rightly fails on it: SERVFAIL.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fails: Option<String>,
        /// From the pod's own /etc/hosts, which is read before anybody is asked.
        #[serde(default)]
        in_file: bool,
        /// What whoever asks should know of the name: a headless Service translates no port.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<String>,
    },
    Socket {
        protocol: Protocol,
        source: IpAddr,
        destination: SocketAddr,
    },
    Veth {
        pod: ObjectName,
        host_if: IfName,
        /// `None`: its packets meet the node's rules on `host_if` itself.
        bridge: Option<IfName>,
    },
    /// Nothing leaves the pod.
    Own {
        host_if: IfName,
        destination: SocketAddr,
        why: String,
    },
    /// Not a Service: the destination stays.
    Direct {
        destination: SocketAddr,
        why: String,
        /// Whose nodePort it is, at another node.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<ObjectName>,
    },
    Service {
        service: ObjectName,
        port: String,
        frontend: SocketAddr,
        /// The one the observed connection took, or the first.
        endpoint: SocketAddr,
        choices: Vec<SocketAddr>,
        /// `plumb/n3`: the chain that draws.
        chain: String,
        /// Seconds for which a client stays at its endpoint (sessionAffinity: ClientIP).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        affinity: Option<u32>,
    },
    /// The connection ends at its frontend: told so, or not. What it was told decides the word, once it was sent.
    Refused {
        frontend: SocketAddr,
        service: Option<ObjectName>,
        rejected: bool,
        why: String,
        /// No rule of the cluster's ends it: whoever has the address outside says how.
        #[serde(default)]
        leaves: bool,
    },
    Route {
        destination: IpAddr,
        /// `None`: the node's own routes, such as its default route.
        prefix: Option<IpNet>,
        via: Option<IpAddr>,
        dev: Option<IfName>,
        onlink: bool,
    },
    /// The node itself takes the packet.
    LocalRoute {
        destination: SocketAddr,
    },
    Policy {
        direction: String,
        pod: ObjectName,
        isolated_by: Vec<ObjectName>,
        /// The rule, from 1, that lets it pass.
        allowed_by: Option<(ObjectName, usize)>,
        /// `None` when allowed; otherwise the reason for each rule of each policy.
        misses: Vec<RuleMiss>,
        allowed: bool,
    },
    Masq {
        /// The address that the packet leaves with; `None`: one of the device it leaves by.
        source: Option<IpAddr>,
        masquerade: bool,
        why: String,
    },
    Tunnel {
        dev: IfName,
        vni: u32,
        outer_source: IpAddr,
        outer_destination: IpAddr,
        outer_port: u16,
        inner_mac: Option<Mac>,
        extra_bytes: u32,
    },
    Node {
        from: Option<IfName>,
        bridge: Option<IfName>,
        host_if: IfName,
    },
    /// What happens on this node only its agent knows, and that could not be asked.
    Unasked {
        why: String,
    },
    /// Who is to answer.
    Pod {
        /// `None`: somebody outside, or the node itself.
        pod: Option<ObjectName>,
        destination: SocketAddr,
        /// The node of the pod, or the one that answers itself.
        on: Option<String>,
    },
    Return {
        /// What the client sees as the answer's source.
        source: SocketAddr,
        source_before: SocketAddr,
        steps: Vec<Step>,
    },
}

/// One step of the way back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub word: String,
    pub node: String,
    pub text: String,
    /// Where the answer is to be seen, in this order.
    pub glimpses: Vec<Glimpse>,
}

/// A place at which the answer passes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Glimpse {
    /// `None`: whichever device tunnelled packets come by.
    pub dev: Option<IfName>,
    pub direction: Way,
    pub source: SocketAddr,
}

impl fmt::Display for Glimpse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.direction {
            Way::In => "into",
            Way::Out => "out by",
        };
        match &self.dev {
            Some(dev) => write!(f, "{way} {dev}"),
            None => write!(f, "{way} the tunnel"),
        }
    }
}

/// Why one rule of a policy did not match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleMiss {
    pub policy: ObjectName,
    /// From 1; 0: the policy has no rules.
    pub rule: usize,
    pub why: String,
}

impl fmt::Display for RuleMiss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            0 => write!(f, "{}: {}", self.policy, self.why),
            rule => write!(f, "{} rule {rule}: {}", self.policy, self.why),
        }
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve { .. } => self.fmt_resolve(f),
            Self::Socket { source, destination, .. } => write!(f, "{source} → {}", shown(destination)),
            Self::Veth { host_if, bridge: Some(bridge), .. } => write!(f, "eth0 → {host_if} on {bridge}"),
            Self::Veth { host_if, bridge: None, .. } => write!(f, "eth0 → {host_if}"),
            Self::Own { destination, why, .. } => write!(f, "none, {} is {why}", destination.ip()),
            Self::Direct { destination, why, .. } => write!(f, "none, {} {why}", shown(destination)),
            Self::Service { service, port, endpoint, .. } => {
                let port = if port.is_empty() { String::new() } else { format!(":{port}") };
                write!(f, "{service}{port} → {endpoint}")
            }
            Self::Refused { frontend, why, leaves: true, .. } => {
                write!(f, "{} leaves the cluster: {why}", shown(frontend))
            }
            Self::Refused { frontend, rejected, why, .. } => {
                let word = if *rejected { "rejected" } else { "dropped" };
                write!(f, "{} is {word}: {why}", shown(frontend))
            }
            Self::Route { prefix: None, .. } => f.write_str("none of Plumb's, the node's own"),
            Self::Route { prefix: Some(prefix), via, dev, onlink, .. } => {
                write!(f, "{prefix}")?;
                if let Some(via) = via {
                    write!(f, " via {via}")?;
                }
                if let Some(dev) = dev {
                    write!(f, " dev {dev}")?;
                }
                f.write_str(if *onlink { " onlink" } else { "" })
            }
            Self::LocalRoute { destination } if own::is_of_link(destination.ip()) => {
                write!(
                    f,
                    "none, {} is of the pod's link alone, whose other end is the node",
                    destination.ip()
                )
            }
            Self::LocalRoute { destination } => write!(f, "{} is the node itself", destination.ip()),
            Self::Policy { .. } => self.fmt_policy(f),
            Self::Masq { masquerade: false, why, .. } => write!(f, "no, {why}"),
            Self::Masq { source: Some(source), .. } => write!(f, "yes, to {source}"),
            Self::Masq { source: None, .. } => f.write_str("yes"),
            Self::Tunnel { vni, outer_source, outer_destination, outer_port, .. } => {
                write!(f, "VXLAN {vni}, {outer_source} → {outer_destination}:{outer_port}")
            }
            Self::Node { from, bridge, host_if } => {
                from.iter().chain(bridge).try_for_each(|link| write!(f, "{link} → "))?;
                write!(f, "{host_if}")
            }
            Self::Unasked { .. } => f.write_str("could not be asked"),
            Self::Pod { pod: Some(pod), .. } => write!(f, "{pod}"),
            Self::Pod { pod: None, destination, on: Some(node) } => {
                write!(f, "{} on {node}", shown(destination))
            }
            Self::Pod { pod: None, destination, on: None } => f.write_str(&shown(destination)),
            Self::Return { source_before, source, .. } if source == source_before => {
                write!(f, "the same way from {}", shown(source))
            }
            Self::Return { source, .. } => write!(f, "the same way, shown as {}", shown(source)),
        }
    }
}

impl Fact {
    /// What belongs beside the text: how, of how many, by what.
    pub fn detail(&self) -> String {
        match self {
            Self::Resolve { in_file: true, .. } => "the pod's /etc/hosts".to_owned(),
            Self::Resolve { step: 0, .. } => String::new(),
            Self::Resolve { step, of, .. } if step == of => "as written".to_owned(),
            Self::Resolve { step, of, .. } => format!("search step {step} of {}", of - 1),
            Self::Socket { protocol, .. } => protocol.to_string().to_uppercase(),
            Self::Service { choices, chain, affinity, .. } => {
                let of = match (choices.len(), affinity) {
                    (1, _) => "the only one".to_owned(),
                    (n, Some(seconds)) => format!("1 of {n}, kept by sessionAffinity ClientIP ({seconds} s)"),
                    (n, None) => format!("1 of {n}, random"),
                };
                if chain.is_empty() { of } else { format!("{of}, nft {chain}") }
            }
            Self::Masq { masquerade: true, why, .. } => why.clone(),
            Self::Tunnel { extra_bytes, .. } => format!("{extra_bytes} bytes more"),
            _ => String::new(),
        }
    }

    fn fmt_resolve(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve { name, fails: Some(why), .. } => write!(f, "{name} has no end: {why}"),
            Self::Resolve { name, lacks: Some(why), .. } => write!(f, "{name} has no {why}"),
            Self::Resolve { name, alias: Some(alias), .. } => {
                write!(f, "{name} leads to {alias} (ExternalName)")
            }
            Self::Resolve { name, addresses, .. } if addresses.is_empty() => {
                write!(f, "{name} is no name of the cluster")
            }
            Self::Resolve { name, addresses, in_file: true, .. } => write!(f, "{name} → {}", list(addresses)),
            Self::Resolve { name, full_name, addresses, note, .. } => {
                let kind = if addresses.iter().any(IpAddr::is_ipv6) { "AAAA" } else { "A" };
                write!(f, "{name} → {full_name}, {kind} {}", list(addresses))?;
                note.iter().try_for_each(|note| write!(f, "; {note}"))
            }
            _ => Ok(()),
        }
    }

    fn fmt_policy(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Policy { direction, pod, isolated_by, allowed_by, allowed, .. } = self else {
            return Ok(());
        };
        match allowed_by {
            Some((policy, rule)) => write!(f, "{direction}: {policy}, rule {rule}, allowed"),
            None if *allowed => write!(f, "{direction}: no policy selects {pod}, allowed"),
            None if isolated_by.is_empty() => write!(f, "{direction}: {pod} is not known yet, denied"),
            None => write!(f, "{direction}: denied, {pod} is isolated by {}", list(isolated_by)),
        }
    }

    /// One line for each rule that did not let the packet pass.
    pub fn misses(&self) -> &[RuleMiss] {
        match self {
            Self::Policy { misses, allowed: false, .. } => misses,
            _ => &[],
        }
    }
}

/// Without the port where there is none, as of an echo.
pub(crate) fn shown(address: &SocketAddr) -> String {
    match address.port() {
        0 => address.ip().to_string(),
        _ => address.to_string(),
    }
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}
