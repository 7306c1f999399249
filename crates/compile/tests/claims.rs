//! Who has an address and port where Services, pods and nodes want it, and what a node may say about its own addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use compile::guard::Guard;
use kstate::nft::ElemData;
use model::{Attachment, Cluster, Event, HostPort, Key, Kind, Node, Pod, Row, Service, ServicePort, Sources};
use model::{ServiceType, TrafficPolicy};
use semantics::Settings;
use semantics::service::plan::{ServicePlan, plan};
use semantics::service::{health, host_port, reserved};
use types::wire::NODE_PORTS;
use types::{Family, IfName, Mac, ObjectName, Protocol};

#[path = "made/made.rs"]
mod made;

use made::Made;

/// ExternalIPs of node2.
const OUTSIDE: [&str; 2] = ["203.0.113.12", "2001:db8::12"];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn settings() -> Settings {
    let nets = |nets: [&str; 2]| nets.map(|net| net.parse().unwrap()).to_vec();
    Settings {
        service_cidrs: nets(["10.96.0.0/12", "fd00:10:96::/112"]),
        allow_sources: nets(["203.0.113.0/24", "2001:db8::/64"]),
        api: vec!["192.168.1.11:6443".parse().unwrap()],
        ..Settings::new("node1", nets(["10.244.0.0/16", "fd00:10:244::/48"]), 1450)
    }
}

/// The others are its ExternalIPs.
fn node(number: u8, others: &[&str]) -> Event {
    Event::Upsert(Row::Node(Node {
        name: format!("node{number}"),
        addresses: vec![[192, 168, 1, 10 + number].into(), ip(&format!("fd00::1{number}"))],
        others: others.iter().map(|other| ip(other)).collect(),
        pod_cidrs: [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")]
            .map(|net| net.parse().unwrap())
            .into(),
        ..Node::default()
    }))
}

fn port(number: u16, node_port: Option<u16>) -> ServicePort {
    ServicePort { name: format!("p{number}"), port: number, node_port, ..ServicePort::default() }
}

/// Balanced, in both families: of pods of its node alone, so that somebody checks whether there are any.
fn service(name: &str, created: u64, health: Option<u16>, ports: Vec<ServicePort>) -> Service {
    let last = name.len() + 1;
    Service {
        key: ObjectName::new("shop", name),
        created,
        kind: ServiceType::LoadBalancer,
        external_policy: TrafficPolicy::Local,
        cluster_ips: vec![ip(&format!("10.96.0.{last}")), ip(&format!("fd00:10:96::{last}"))],
        health_check_port: health,
        ports,
        ..Service::default()
    }
}

fn put(service: Service) -> Event {
    Event::Upsert(Row::Service(Box::new(service)))
}

fn wired(ports: &[(u16, &str)]) -> Attachment {
    let host_port = |(port, host_ip): &(u16, &str)| HostPort {
        protocol: Protocol::Tcp,
        port: *port,
        container_port: 80,
        host_ip: host_ip.parse().ok(),
    };
    Attachment {
        wiring: types::Wiring::default(),
        container: "c/eth0".into(),
        pod: ObjectName::new("a", "p"),
        uid: String::new(),
        ips: vec![ip("10.244.1.4"), ip("fd00:10:244:1::4")],
        host_if: IfName::new("veth1").unwrap(),
        mac: Mac::default(),
        host_ports: ports.iter().map(host_port).collect(),
        withheld: Vec::new(),
    }
}

fn begun(events: impl IntoIterator<Item = Event>) -> (Cluster, Made) {
    let (mut cluster, mut compiler) = (Cluster::default(), Made::new(settings()));
    Kind::ALL.into_iter().for_each(|kind| drop(cluster.apply(Event::Done(kind))));
    events.into_iter().for_each(|event| drop(cluster.apply(event)));
    compiler.update(cluster.synced().unwrap(), &[]);
    (cluster, compiler)
}

/// What becomes known of the pod, and what is over.
fn turn(cluster: &mut Cluster, compiler: &mut Made, event: Event) -> [Vec<String>; 2] {
    let keys = cluster.apply(event);
    let (_, round) = compiler.update(cluster.synced().unwrap(), &keys);
    [round.raised, round.cleared].map(|all| {
        let of_pod = all.into_iter().filter(|found| found.object.kind == Kind::Pod);
        of_pod.map(|found| found.message).collect()
    })
}

/// Addresses at which packets for a TCP port stay with the node, before any host port is asked.
fn kept(compiler: &Made, number: u16) -> BTreeSet<Family> {
    let tables = compiler.nft().tables.values();
    let sets = tables.filter_map(|table| table.sets.get(compile::layout::FRONTENDS));
    let accepts = |data: &ElemData| *data == compile::layout::Lead::Accept.data();
    let keys = sets.flat_map(move |set| set.elements.iter().filter(move |(_, data)| accepts(data)));
    let of = |family: Family, address: IpAddr| {
        let key = kstate::nft::build::encode(&[address.into(), Protocol::Tcp.into(), number.into()]);
        (family, kstate::nft::ElemKey::point(key))
    };
    let own = [of(Family::V4, ip("192.168.1.11")), of(Family::V6, ip("fd00::11"))];
    keys.filter_map(|(key, _)| own.iter().find(|(_, own)| own == key).map(|(family, _)| *family)).collect()
}

/// Younger or older, the Service has the port on every node, and the pod hears of it, whichever came first.
#[test]
fn a_pod_takes_neither_node_ports_nor_health_checks_and_is_told() {
    let ports = [(31_000, ""), (30_080, ""), (31_001, ""), (443, "")];
    let pod = Event::Upsert(Row::Attachment(Box::new(wired(&ports))));
    let (mut cluster, mut compiler) = begun([node(1, &[]), node(2, &[]), pod]);
    assert_eq!(kept(&compiler, 31_000), BTreeSet::new());
    let mut web = service("web", u64::MAX, Some(31_000), vec![port(80, Some(30_080)), port(443, None)]);
    web.external_ips = vec![ip("192.168.1.11")];
    let [raised, cleared] = turn(&mut cluster, &mut compiler, put(web.clone()));
    let told = |number: u16| {
        ["192.168.1.11", "fd00::11"].map(|at| {
            format!("host port {number}/tcp does not lead to this pod at {at}: Service shop/web has it")
        })
    };
    let both: BTreeSet<String> = told(31_000).into_iter().chain(told(30_080)).collect();
    assert_eq!(raised.into_iter().collect::<BTreeSet<_>>(), both);
    assert!(cleared.is_empty(), "{cleared:?}");
    assert_eq!(kept(&compiler, 31_000), Family::ALL.into());
    // Elsewhere the pod has its ports: what it has is not taken from it.
    let fronts = host_port::fronts((&cluster, &settings()), &wired(&ports), Family::V4);
    assert_eq!(fronts.len(), ports.len());

    web.health_check_port = Some(31_002);
    let [raised, cleared] = turn(&mut cluster, &mut compiler, put(web.clone()));
    assert_eq!((raised, cleared.into_iter().collect::<BTreeSet<_>>()), (vec![], told(31_000).into()));
    assert_eq!((kept(&compiler, 31_000), kept(&compiler, 31_002)), (BTreeSet::new(), Family::ALL.into()));
    let gone = Event::Delete(Key::new(Kind::Service, web.key));
    let [raised, cleared] = turn(&mut cluster, &mut compiler, gone);
    assert_eq!((raised, cleared.into_iter().collect::<BTreeSet<_>>()), (vec![], told(30_080).into()));
    assert_eq!(kept(&compiler, 31_002), BTreeSet::new());
}

/// Load balancers that are made of host ports have the nodes' addresses: only a pod that names such a one gets nothing.
#[test]
fn a_host_port_of_one_address_gives_way_to_whatever_service_has_it() {
    let mut web = service("web", 1, None, vec![port(443, None)]);
    web.external_ips = vec![ip("192.168.1.11"), ip("fd00::11")];
    let (cluster, _) = begun([node(1, &[]), put(web)]);
    let said = |host_ip| {
        let found = host_port::findings((&cluster, &settings()), &wired(&[(443, host_ip)]));
        found.into_iter().map(|found| found.message).collect::<Vec<_>>()
    };
    for named in ["192.168.1.11", "fd00::11"] {
        assert!(said(named).len() == 1 && said(named)[0].contains("Service shop/web has it"), "{named}");
    }
    for other in ["", "0.0.0.0", "192.168.1.77", "127.0.0.1"] {
        assert_eq!(said(other), Vec::<String>::new(), "{other}");
    }
}

/// The oldest has it, whether it wants connections or health checks.
#[test]
fn health_checks_are_claims_as_others() {
    let mut balancer = service("balancer", 3, None, vec![port(31_000, None)]);
    balancer.external_ips = vec![ip("192.168.1.11"), ip("fd00::11")];
    let young = service("young", 4, Some(31_000), vec![port(80, None)]);
    let (mut cluster, _) = begun([node(1, &[]), put(balancer), put(young)]);
    let answered = |cluster: &Cluster, name: &str| {
        let name = ObjectName::new("shop", name);
        health::fronts(cluster, &settings(), &name).len()
    };
    let said = |cluster: &Cluster, name: &str| {
        let name = ObjectName::new("shop", name);
        let plans = Family::ALL.map(|family| plan(cluster, &settings(), &name, family).unwrap());
        let found = plans.into_iter().flat_map(|plan| plan.diagnostics);
        let of_checks = found.filter(|found| found.field == "spec.healthCheckNodePort");
        of_checks.map(|found| found.message).collect::<Vec<_>>()
    };
    assert_eq!(answered(&cluster, "young"), 0);
    let told = said(&cluster, "young");
    assert!(told.len() == 2 && told[0].contains("Service shop/balancer has it and comes first"), "{told:?}");
    cluster.apply(put(service("oldest", 2, Some(31_000), vec![port(81, None)])));
    assert_eq!((answered(&cluster, "oldest"), answered(&cluster, "young")), (2, 0));
    let told = said(&cluster, "young");
    assert!(said(&cluster, "oldest").is_empty() && told[0].contains("shop/oldest"), "{told:?}");
}

fn fronts(plan: &ServicePlan) -> Vec<(IpAddr, u16)> {
    plan.ports.iter().flat_map(|port| &port.fronts).map(|front| (front.address, front.port)).collect()
}

/// An ExternalIP is an address of a node for whoever would take it away.
#[test]
fn what_nodes_need_is_kept_at_their_external_addresses_too() {
    let (cluster, _) = begun([node(1, &["203.0.113.11"]), node(2, &OUTSIDE)]);
    let settings = settings();
    let here = (&cluster, &settings);
    for at in OUTSIDE.into_iter().chain(["203.0.113.11"]) {
        for (protocol, number, what) in NODE_PORTS {
            let kept = reserved::front(here, (ip(at), protocol, number)).map(|kept| kept.to_string());
            assert!(kept.is_some_and(|kept| kept.starts_with(what)), "{at} {number}/{protocol}");
        }
        assert_eq!(reserved::front(here, (ip(at), Protocol::Tcp, 443)), None);
    }
    let named = reserved::front(here, (ip(OUTSIDE[0]), Protocol::Tcp, 10_250)).unwrap();
    assert_eq!(named.to_string(), "the kubelet of node node2");
    // The API server is this node's, and so at all of its addresses; what other nodes say moves it nowhere.
    let api = |at| reserved::front(here, (ip(at), Protocol::Tcp, 6443)).is_some();
    assert!(api("192.168.1.11") && api("203.0.113.11") && !api(OUTSIDE[0]));

    let pod = ObjectName::new("a", "p");
    let sources = |net: &str| Sources { created: 1, nets: vec![net.parse().unwrap()] };
    for (net, refused) in [
        ("203.0.113.0/28", true),
        ("2001:db8::12/128", true),
        ("203.0.113.16/28", false),
        ("2001:db8::13/128", false),
    ] {
        let mut cluster = cluster.clone();
        let row = Pod { key: pod.clone(), sources: Some(Box::new(sources(net))), ..Pod::default() };
        cluster.apply(Event::Upsert(Row::Pod(Box::new(row))));
        let found = semantics::further::findings((&cluster, &settings), &wired(&[]));
        assert_eq!(found.iter().any(|found| found.message.contains("an address of node")), refused, "{net}");
    }
}

/// Whoever has the token of node2's kubelet may write any address into its status.
#[test]
fn what_a_node_says_of_its_addresses_gains_and_denies_nothing() {
    let mut web = service("web", 9, None, vec![port(443, Some(30_443)), port(6443, None)]);
    web.external_ips = vec![ip("198.51.100.7"), ip("2001:db8:51::7"), ip("10.244.2.9")];
    let all = ["198.51.100.7", "2001:db8:51::7", "10.96.0.4", "fd00:10:96::4", "10.244.2.9", "192.168.1.11"];
    let settings = settings();
    let [(honest, before), (lies, after)] =
        [&[][..], &all[..]].map(|others| begun([node(1, &[]), node(2, others), put(web.clone())]));
    // Not a rule, not an element differs: no tunnel, no source that is believed, no Service, no pod's address.
    assert_eq!(before.nft(), after.nft());
    assert_eq!(before.compiler.net(), after.compiler.net());
    let mut guards = Guard::ALL.into_iter().flat_map(Guard::tables);
    assert!(guards.all(|table| after.nft().tables.contains_key(&table)));
    for family in Family::ALL {
        let plans = [&honest, &lies].map(|cluster| plan(cluster, &settings, &web.key, family).unwrap());
        assert_eq!(plans[0], plans[1]);
        assert!(fronts(&plans[1]).contains(&(web.external_ips[usize::from(family == Family::V6)], 443)));
        assert!(!fronts(&plans[1]).iter().any(|(at, _)| *at == ip("10.244.2.9")), "it is of pods");
    }
    // It costs Services the ports that a node has, where they are not their own addresses.
    let kubelet = |at| reserved::front((&lies, &settings), (ip(at), Protocol::Tcp, 10_250));
    assert_eq!(
        kubelet("198.51.100.7").map(|kept| kept.to_string()).as_deref(),
        Some("the kubelet of node node2")
    );
    web.ports.push(port(10_250, None));
    let (lies, _) = begun([node(1, &[]), node(2, &all), put(web.clone())]);
    let plan = plan(&lies, &settings, &web.key, Family::V4).unwrap();
    let with: Vec<_> = fronts(&plan).into_iter().filter(|(_, number)| *number == 10_250).collect();
    assert_eq!(with, [(ip("10.96.0.4"), 10_250)], "its ClusterIP it keeps");
}
