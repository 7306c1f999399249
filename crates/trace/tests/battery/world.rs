//! Random small clusters, as the events that make them. Few names and labels, so that things collide: that is
//! where semantics live.

use std::net::{IpAddr, SocketAddr};

use model::{
    Attachment, Endpoint, EndpointSlice, Event, Hints, HostPort, IntOrName, Kind, NamedPort, Namespace, Node,
    Peer, Phase, Pod, Policy, PolicyPort, PolicyRule, Row, Service, ServicePort, ServiceType, SlicePort,
    Sources, TrafficPolicy,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use semantics::Settings;
use types::selector::{Operator, Requirement};
use types::{Family, IfName, IpNet, Labels, Mac, ObjectName, Protocol, Selector};

pub const NODES: [&str; 3] = ["node1", "node2", "node3"];
const NAMESPACES: [&str; 2] = ["a", "b"];
const PODS: usize = 8;

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address written in a test")
}

/// Pod n of the world: its name, node and address never change.
pub fn pod_name(n: usize) -> ObjectName {
    ObjectName::new(NAMESPACES[n % 2], format!("p{n}"))
}

pub fn pod_node(n: usize) -> &'static str {
    // Half of the pods on node1, whose rules are looked at.
    if n < 4 { NODES[0] } else { NODES[1 + n % 2] }
}

pub fn pod_ip(family: Family, n: usize) -> IpAddr {
    let node = NODES.iter().position(|node| *node == pod_node(n)).expect("one of them") + 1;
    match family {
        Family::V4 => ip(&format!("10.244.{node}.{}", n + 2)),
        Family::V6 => ip(&format!("fd00:10:244:{node}::{:x}", n + 2)),
    }
}

pub fn pod_ips(n: usize) -> Vec<IpAddr> {
    Family::ALL.map(|family| pod_ip(family, n)).to_vec()
}

pub fn service_ip(family: Family, n: usize) -> IpAddr {
    match family {
        // At the cluster's DNS address there may be a Service, too, with ports that are not DNS.
        _ if n == 4 => ip(family.pick(["10.96.0.10", "fd00:10:96::a"])),
        Family::V4 => ip(&format!("10.96.0.{}", n + 20)),
        Family::V6 => ip(&format!("fd00:10:96::{:x}", n + 20)),
    }
}

pub fn node_ip(family: Family, n: usize) -> IpAddr {
    match family {
        Family::V4 => ip(&format!("192.168.1.{}", n + 10)),
        Family::V6 => ip(&format!("fd00:192:168:1::{}", n + 10)),
    }
}

fn nets(texts: [&str; 2]) -> Vec<IpNet> {
    texts.map(|net| net.parse().expect("a prefix")).to_vec()
}

pub fn pod_pools() -> Vec<IpNet> {
    nets(["10.244.0.0/16", "fd00:10:244::/48"])
}

/// Also a network that answers pods by themselves.
pub fn unmasqueraded() -> Vec<IpNet> {
    [pod_pools(), nets(["192.0.2.0/24", "2001:db8:7::/48"])].concat()
}

pub fn service_cidrs() -> Vec<IpNet> {
    nets(["10.96.0.0/12", "fd00:10:96::/112"])
}

pub fn dns_ips() -> Vec<IpAddr> {
    vec![ip("10.96.0.10"), ip("fd00:10:96::a")]
}

/// Where the agents let pods send from; pods, nodes and Services have some of it.
pub fn allow_sources() -> Vec<IpNet> {
    nets(["192.0.0.0/4", "2001:db8::/32"])
}

/// Some of these no pod may have: they are a node's, or hold what a Service wants for itself.
fn source() -> impl Strategy<Value = IpNet> {
    let net = select(vec![
        "198.18.0.7/32",
        "198.18.0.0/24",
        "198.18.0.0/16",
        "198.0.0.0/8",
        "192.168.1.11/32",
        "10.244.1.3/32",
        "2001:db8:18::7/128",
        "2001:db8:18::/48",
        "2001:db8::/32",
    ]);
    net.prop_map(|net| net.parse().expect("a prefix"))
}

fn sources() -> impl Strategy<Value = Option<Box<Sources>>> {
    let asked =
        (0..3_u64, vec(source(), 1..4)).prop_map(|(created, nets)| Box::new(Sources { created, nets }));
    prop_oneof![2 => Just(None), 1 => asked.prop_map(Some)]
}

/// Of the node whose rules are looked at.
pub fn settings() -> Settings {
    Settings {
        service_cidrs: service_cidrs(),
        dns_ips: dns_ips(),
        allow_sources: allow_sources(),
        api: api(),
        unmasqueraded: unmasqueraded(),
        ..Settings::new(NODES[0], pod_pools(), 1450)
    }
}

fn pod_cidrs(n: usize) -> Vec<IpNet> {
    nets([&format!("10.244.{}.0/24", n + 1), &format!("fd00:10:244:{}::/64", n + 1)])
}

fn family() -> impl Strategy<Value = Family> {
    select(Family::ALL.to_vec())
}

fn labels() -> impl Strategy<Value = Labels> {
    let pair = (select(vec!["app", "tier"]), select(vec!["x", "y"]));
    vec(pair, 0..3).prop_map(|pairs| pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

fn selector() -> impl Strategy<Value = Selector> {
    let values = || vec(select(vec!["x".to_owned(), "y".to_owned()]), 1..3);
    let operator = prop_oneof![
        3 => values().prop_map(Operator::In),
        1 => values().prop_map(Operator::NotIn),
        1 => Just(Operator::Exists),
        1 => Just(Operator::DoesNotExist),
    ];
    let requirement = (select(vec!["app", "tier"]), operator)
        .prop_map(|(key, operator)| Requirement { key: key.to_owned(), operator });
    vec(requirement, 0..3).prop_map(|requirements| Selector { requirements })
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![8 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

fn port() -> impl Strategy<Value = u16> {
    select(vec![53_u16, 53, 80, 80, 81, 81, 8080, 8080, 9476])
}

fn node() -> impl Strategy<Value = Row> {
    // An address that Services want, a pod's, a ClusterIP, another node's, a further source: a node may say so of any.
    let others = |family: Family| {
        let further = ip(family.pick(["198.18.0.7", "2001:db8:18::7"]));
        select(vec![
            external_ip(family, 0),
            external_ip(family, 1),
            external_ip(family, 3),
            pod_ip(family, 5),
            service_ip(family, 1),
            node_ip(family, 1),
            further,
        ])
    };
    let others = vec(family().prop_flat_map(others), 0..3);
    (0..NODES.len(), any::<bool>(), select(vec!["z1", "z2"]), others).prop_map(
        |(n, published, zone, others)| {
            Row::Node(Node {
                name: NODES[n].to_owned(),
                addresses: Family::ALL.map(|family| node_ip(family, n)).to_vec(),
                others,
                pod_cidrs: pod_cidrs(n),
                zone: Some(zone.to_owned()),
                announced: model::Announced {
                    vtep_mac: (published || n == 0).then_some(Mac([0x0e, 0, 0, 0, 0, n as u8])),
                },
                network_unavailable: false,
                leaving: false,
            })
        },
    )
}

fn namespace() -> impl Strategy<Value = Row> {
    (select(NAMESPACES.to_vec()), labels())
        .prop_map(|(name, labels)| Row::Namespace(Namespace { name: name.to_owned(), labels }))
}

fn pod() -> impl Strategy<Value = Row> {
    let phase =
        select(vec![Phase::Running, Phase::Running, Phase::Running, Phase::Pending, Phase::Succeeded]);
    let named = (protocol(), port()).prop_map(|(protocol, port)| NamedPort {
        name: "web".to_owned(),
        protocol,
        port,
    });
    (0..PODS, labels(), phase, vec(named, 0..3), any::<[bool; 3]>(), sources()).prop_map(
        |(n, labels, phase, ports, flags, sources)| {
            let host_network = flags.iter().all(|f| *f);
            Row::Pod(Box::new(Pod {
                key: pod_name(n),
                uid: if flags[0] && flags[1] && !flags[2] { "other".to_owned() } else { format!("uid{n}") },
                node: Some(pod_node(n).to_owned()),
                // The API learns a pod's address some time after the node.
                ips: if flags[1] && !host_network && phase == Phase::Pending {
                    Vec::new()
                } else {
                    pod_ips(n)
                },
                host_network,
                labels: labels.into(),
                phase,
                ports,
                sources,
                ..Pod::default()
            }))
        },
    )
}

fn host_port() -> impl Strategy<Value = HostPort> {
    let hosts = ["192.168.1.10", "fd00:192:168:1::10", "10.244.1.1", "0.0.0.0", "::", "127.0.0.1", "::1"];
    let host_ip = proptest::option::of(select(hosts.map(ip).to_vec()));
    (protocol(), port(), host_ip).prop_map(|(protocol, port, host_ip)| HostPort {
        protocol,
        port,
        container_port: 8080,
        host_ip,
    })
}

/// As the agent takes them: no two of one pod clash.
fn host_ports() -> impl Strategy<Value = Vec<HostPort>> {
    vec(host_port(), 0..3).prop_map(|asked| {
        let mut kept: Vec<HostPort> = Vec::new();
        for port in asked {
            if !kept.iter().any(|other| other.clashes(&port)) {
                kept.push(port);
            }
        }
        kept
    })
}

fn attachment() -> impl Strategy<Value = Row> {
    let withheld = prop_oneof![3 => Just(Vec::new()), 1 => source().prop_map(|net| vec![net])];
    (0..4_usize, host_ports(), withheld).prop_map(|(n, host_ports, withheld)| {
        Row::Attachment(Box::new(Attachment {
            wiring: types::Wiring::default(),
            container: format!("c{n}"),
            pod: pod_name(n),
            uid: format!("uid{n}"),
            ips: pod_ips(n),
            host_if: IfName::new(&format!("veth{n}")).expect("a name"),
            mac: Mac::default(),
            host_ports,
            withheld,
        }))
    })
}

fn service_name(n: usize) -> ObjectName {
    ObjectName::new(NAMESPACES[n % 2], format!("s{n}"))
}

/// Where the API is, for the agent: at an address of nobody, and at the node's own.
pub fn api() -> Vec<SocketAddr> {
    let at = |address, port| SocketAddr::new(address, port);
    Family::ALL.iter().flat_map(|f| [at(external_ip(*f, 3), 81), at(node_ip(*f, 0), 8080)]).collect()
}

/// Addresses that Services want for the outside; two may want the same one. The last four are not theirs: a ClusterIP,
/// the cluster's DNS, and those of nodes, of which they get what the nodes do not need.
pub fn external_ip(family: Family, n: usize) -> IpAddr {
    match family {
        _ if n == 4 => service_ip(family, 1),
        _ if n == 5 => service_ip(family, 4),
        _ if n == 6 => node_ip(family, 0),
        _ if n == 7 => node_ip(family, 1),
        Family::V4 => ip(&format!("198.51.100.{}", n + 1)),
        Family::V6 => ip(&format!("2001:db8:51::{:x}", n + 1)),
    }
}

/// The numbers that `port()` has as node ports.
pub fn node_port(port: u16) -> u16 {
    30_000 + port % 100
}

fn source_ranges() -> impl Strategy<Value = Vec<IpNet>> {
    let range = select(vec![
        "203.0.113.0/24",
        "10.244.1.0/24",
        "192.168.1.10/32",
        "0.0.0.0/0",
        "2001:db8::/64",
        "fd00:10:244::/48",
    ]);
    vec(range.prop_map(|range| range.parse().expect("a prefix")), 0..3)
}

fn service_type() -> impl Strategy<Value = ServiceType> {
    use ServiceType::{ClusterIp, LoadBalancer, NodePort};
    select(vec![ClusterIp, NodePort, LoadBalancer, LoadBalancer])
}

fn service() -> impl Strategy<Value = Row> {
    let ports = vec((protocol(), port()), 1..3);
    let families = prop_oneof![
        1 => family().prop_map(|family| vec![family]),
        4 => Just(Family::ALL.to_vec()),
    ];
    let some = |numbers| vec((family(), numbers).prop_map(|(family, n)| external_ip(family, n)), 0..3);
    let outside = (some(0..8_usize), some(1..8), source_ranges());
    (0..5_usize, ports, service_type(), outside, any::<[bool; 5]>(), (families, 0..3_u64)).prop_map(
        |(
            n,
            mut ports,
            kind,
            (external_ips, load_balancer_ips, source_ranges),
            flags,
            (families, created),
        )| {
            ports.sort_unstable();
            ports.dedup();
            let ports = ports.into_iter().enumerate().map(|(at, (protocol, port))| ServicePort {
                name: format!("port{at}"),
                protocol,
                port,
                node_port: (at == 0 || flags[2]).then(|| node_port(port)),
                target: None,
            });
            let policy = |local| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
            let balanced = kind == ServiceType::LoadBalancer;
            Row::Service(Box::new(Service {
                key: service_name(n),
                created,
                kind,
                cluster_ips: families.into_iter().map(|family| service_ip(family, n)).collect(),
                ports: ports.collect(),
                internal_policy: policy(flags[1]),
                external_policy: policy(flags[4]),
                foreign_proxy: flags[1] && flags[2] && flags[3],
                affinity: flags[0].then_some(10),
                external_ips,
                load_balancer_ips: if balanced { load_balancer_ips } else { Vec::new() },
                source_ranges: if balanced { source_ranges } else { Vec::new() },
                // A port that others want at the node's address, too.
                health_check_port: (balanced && flags[4]).then_some(80),
                ..Service::default()
            }))
        },
    )
}

fn endpoint(family: Family) -> impl Strategy<Value = Endpoint> {
    let zones = vec(select(vec!["z1".to_owned(), "z2".to_owned()]), 0..2);
    let special = select(vec![
        ("127.0.0.1", "::1"),
        ("0.0.0.0", "::"),
        ("169.254.1.1", "fe80::1"),
        ("224.0.0.1", "ff02::1"),
    ]);
    (0..PODS + 2, any::<[bool; 4]>(), zones, 0..4_u8, special).prop_map(
        move |(n, flags, zones, hint, (v4, v6))| Endpoint {
            // The last but one is a host's: node2 itself; the last is an address that no endpoint may have.
            address: match n.checked_sub(PODS) {
                None => pod_ip(family, n),
                Some(0) => node_ip(family, 1),
                Some(_) => ip(family.pick([v4, v6])),
            },
            node: Some(if n >= PODS { "node2" } else { pod_node(n) }.into()),
            hostname: None,
            ready: flags[0] || flags[1],
            serving: flags[1] || flags[2],
            terminating: !(flags[0] || flags[1]) && flags[3],
            pod: (n < PODS).then(|| Box::new(pod_name(n))),
            hints: Some(Box::new(Hints { zones, nodes: vec!["node1".to_owned(); usize::from(hint == 0)] })),
        },
    )
}

fn slice() -> impl Strategy<Value = Row> {
    let ports = vec((0..2_usize, protocol(), port()), 1..3);
    let endpoints = family().prop_flat_map(|family| (Just(family), vec(endpoint(family), 0..6)));
    let headless = (0..8_u8).prop_map(|chance| chance == 0);
    (0..5_usize, 0..2_usize, headless, ports, endpoints).prop_map(
        |(n, part, headless, ports, (family, mut endpoints))| {
            let service = service_name(n);
            // One report of an address per slice, as the API server demands; two slices may still differ.
            endpoints.sort_by_key(|e| e.address);
            endpoints.dedup_by_key(|e| e.address);
            Row::EndpointSlice(EndpointSlice {
                key: ObjectName::new(&service.namespace, format!("slice{n}-{part}-{family}")),
                service: service.name.to_string(),
                headless,
                ports: ports
                    .into_iter()
                    .map(|(at, protocol, port)| SlicePort {
                        name: format!("port{at}"),
                        protocol,
                        port: Some(port),
                    })
                    .collect(),
                endpoints,
            })
        },
    )
}

fn peer() -> impl Strategy<Value = Peer> {
    let blocks = select(vec![
        ("0.0.0.0/0", vec!["10.244.0.0/16"]),
        ("10.244.1.0/24", vec!["10.244.1.2/32", "10.244.1.4/31"]),
        ("10.244.0.0/16", vec![]),
        ("192.168.1.0/24", vec!["192.168.1.11/32"]),
        ("10.244.1.3/32", vec![]),
        // The whole block is a hole; host bits are masked (NP-34).
        ("10.244.2.7/24", vec!["10.244.0.0/16"]),
        ("::/0", vec!["fd00:10:244::/48"]),
        ("fd00:10:244:1::/64", vec!["fd00:10:244:1::2/128", "fd00:10:244:1::4/127"]),
        ("fd00:192:168:1::/64", vec!["fd00:192:168:1::11/128"]),
    ]);
    prop_oneof![
        3 => (proptest::option::of(selector()), proptest::option::of(selector()))
            .prop_map(|(namespaces, pods)| Peer::Pods { namespaces, pods }),
        1 => blocks.prop_map(|(cidr, except)| Peer::Block {
            cidr: cidr.parse().expect("a prefix"),
            except: except.into_iter().map(|hole| hole.parse().expect("a prefix")).collect(),
        }),
    ]
}

fn policy_port() -> impl Strategy<Value = PolicyPort> {
    let number = prop_oneof![
        1 => Just(None),
        4 => port().prop_map(|port| Some(IntOrName::Number(port))),
        1 => Just(Some(IntOrName::Name("web".to_owned()))),
    ];
    (protocol(), number, proptest::option::weighted(0.2, select(vec![79_u16, 81, 9000])))
        .prop_map(|(protocol, port, end_port)| PolicyPort { protocol, port, end_port })
}

fn rules() -> impl Strategy<Value = Option<Vec<PolicyRule>>> {
    let rule = || {
        (vec(peer(), 0..4), vec(policy_port(), 0..4)).prop_map(|(peers, ports)| PolicyRule { peers, ports })
    };
    // Few rules are written out, many are merged: both are met.
    proptest::option::of(prop_oneof![3 => vec(rule(), 0..3), 1 => vec(rule(), 3..7)])
}

fn policy() -> impl Strategy<Value = Row> {
    (0..4_usize, selector(), rules(), rules()).prop_map(|(n, pods, ingress, egress)| {
        let key = ObjectName::new(NAMESPACES[n % 2], format!("np{n}"));
        Row::Policy(Box::new(Policy { key, pods, ingress, egress, unsupported: Vec::new() }))
    })
}

fn row() -> impl Strategy<Value = Row> {
    prop_oneof![
        1 => node(),
        1 => namespace(),
        4 => pod(),
        3 => attachment(),
        5 => service(),
        10 => slice(),
        3 => policy(),
    ]
}

/// Comings, goings and relists.
pub fn history() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        8 => row().prop_map(Event::Upsert),
        // A node without a row of its own has no addresses to speak of.
        2 => row()
            .prop_filter("own node", |row| *row.key().name.name != *NODES[0])
            .prop_map(|row| Event::Delete(row.key())),
    ];
    vec(event, 0..60)
}

/// Events that make a cluster synced, before anything else is in it but the three nodes and two namespaces.
pub fn start() -> Vec<Event> {
    let mut events: Vec<_> =
        Kind::ALL.into_iter().flat_map(|kind| [Event::Start(kind), Event::Done(kind)]).collect();
    for (n, name) in NODES.iter().enumerate() {
        events.push(Event::Upsert(Row::Node(Node {
            name: (*name).to_owned(),
            addresses: Family::ALL.map(|family| node_ip(family, n)).to_vec(),
            pod_cidrs: pod_cidrs(n),
            announced: model::Announced { vtep_mac: Some(Mac([0x0e, 0, 0, 0, 0, n as u8])) },
            network_unavailable: false,
            leaving: false,
            ..Node::default()
        })));
    }
    for name in NAMESPACES {
        let labels = Labels::from([("app".to_owned(), "x".to_owned())]);
        events.push(Event::Upsert(Row::Namespace(Namespace { name: name.to_owned(), labels })));
    }
    events
}
