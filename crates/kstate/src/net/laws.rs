//! Law 1 (state is a value, change is a diff) for network state, over random states.

use std::net::{IpAddr, Ipv4Addr};

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use types::{IfName, IpNet, Mac, Vni};

use super::*;

const OURS: [&str; 5] = ["cni0", "br1", "plumb.1", "veth1", "veth2"];

fn name(index: usize) -> IfName {
    IfName::new(OURS.get(index).copied().unwrap_or("lo")).expect("a good name")
}

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 244, 0, last).into()
}

fn link(index: usize) -> impl Strategy<Value = Link> {
    (0..3_u8, 0..3_u8, 0..3_u32, any::<bool>(), 0..6_u8).prop_map(move |(which, mac, mtu, up, port)| {
        let kind = match (index, which) {
            (3.., _) => LinkKind::Veth,
            (_, 0) => LinkKind::Bridge,
            (_, vni) => LinkKind::Vxlan { vni: Vni(vni.into()), local: ip(1), port: 8472 },
        };
        let options =
            [PortOptions::OF_KERNEL, PortOptions::ISOLATED, PortOptions::OF_POD][usize::from(port / 2)];
        let port = (port > 0).then(|| BridgePort::new(name(usize::from(port % 2)), options));
        Link { kind, mac: Some(Mac([2, 0, 0, 0, 0, mac])), mtu: Some(1400 + mtu), up, port }
    })
}

fn links() -> impl Strategy<Value = BTreeMap<IfName, Link>> {
    let all: Vec<_> = (0..OURS.len()).map(|index| proptest::option::of(link(index))).collect();
    all.prop_map(|links| {
        let named = links.into_iter().enumerate();
        named.filter_map(|(index, link)| Some((name(index), link?))).collect()
    })
}

/// Takes out what no kernel could hold: things on absent links, ports of what is no bridge, ports that are bridges.
fn well_formed(mut state: NetState) -> NetState {
    let bridges: BTreeSet<IfName> = state
        .links
        .iter_mut()
        .filter(|(_, link)| link.kind == LinkKind::Bridge)
        .map(|(name, link)| {
            link.port = None;
            name.clone()
        })
        .collect();
    for link in state.links.values_mut() {
        link.port = link.port.take().filter(|port| bridges.contains(&port.bridge));
    }
    let there = |name: &IfName| name.as_str() == "lo" || state.links.contains_key(name);
    state.addresses.retain(|(link, _)| there(link));
    state.neighbours.retain(|(link, _), _| there(link));
    let is_port = |name: &IfName| state.links.get(name).is_some_and(|link| link.port.is_some());
    state.fdb.retain(|(link, _), to| if *to == Forward::Port { is_port(link) } else { there(link) });
    state.routes.retain(|_, route| route.dev.as_ref().is_none_or(there));
    let there =
        |path: &str| sysctl_link(path).is_none_or(|link| state.links.keys().any(|k| k.as_str() == link));
    state.sysctls.retain(|path, _| there(path));
    state
}

pub(in crate::net) fn state() -> impl Strategy<Value = NetState> {
    let device = 0..6_usize;
    let route =
        (proptest::option::of(device.clone()), 0..3_u8, any::<bool>()).prop_map(|(dev, via, onlink)| {
            let kind = if dev.is_some() { RouteKind::Unicast } else { RouteKind::Unreachable };
            let via = dev.filter(|_| via > 0).map(|_| ip(via));
            Route { dev: dev.map(name), via, onlink: onlink && via.is_some(), src: None, kind }
        });
    (
        links(),
        vec((device.clone(), 0..4_u8), 0..6),
        btree_map((device.clone(), 0..4_u8), 0..3_u8, 0..6),
        btree_map((device, 0..3_u8), 0..8_u8, 0..6),
        btree_map(0..4_u8, route, 0..4),
        btree_map(prop_oneof![Just("net/ipv4/ip_forward"), Just("net/ipv4/conf/cni0/x")], 0..2_u8, 2),
    )
        .prop_map(|(links, addresses, neighbours, fdb, routes, sysctls)| {
            let mac = |last| Mac([2, 0, 0, 0, 1, last]);
            let forward = |which| if which < 4 { Forward::Node(ip(which)) } else { Forward::Port };
            well_formed(NetState {
                subnets: BTreeSet::new(),
                links,
                addresses: addresses
                    .into_iter()
                    .map(|(link, last)| (name(link), IpNet::from(ip(last))))
                    .collect(),
                neighbours: neighbours.into_iter().map(|((l, i), m)| ((name(l), ip(i)), mac(m))).collect(),
                fdb: fdb.into_iter().map(|((l, m), i)| ((name(l), mac(m)), forward(i))).collect(),
                routes: routes
                    .into_iter()
                    .map(|(i, route)| (RouteKey { dst: IpNet::from(ip(i)), table: 254 }, route))
                    .collect(),
                sysctls: sysctls.into_iter().map(|(path, value)| (path.into(), value.to_string())).collect(),
            })
        })
}

/// Two states of which the first holds no veth that a diff would have to make.
pub(in crate::net) fn pair() -> impl Strategy<Value = (NetState, NetState)> {
    (state(), state()).prop_map(|(mut desired, actual)| {
        let lost: Vec<IfName> = lost_veths(&desired, &actual).cloned().collect();
        desired.links.retain(|name, _| !lost.contains(name));
        // A sysctl is never unset.
        let general = actual.sysctls.iter().filter(|(path, _)| sysctl_link(path).is_none());
        for (path, value) in general {
            desired.sysctls.entry(path.clone()).or_insert_with(|| value.clone());
        }
        let mut desired = well_formed(desired);
        if desired.links.contains_key(&name(0)) {
            desired.sysctls.entry("net/ipv4/conf/cni0/x".into()).or_insert_with(|| "0".into());
        }
        (desired, actual)
    })
}

proptest! {
    #[test]
    fn a_plan_leads_from_actual_to_desired((desired, actual) in pair()) {
        let plan = diff(&desired, &actual);
        let mut after = actual;
        after.edit(&plan);
        prop_assert_eq!(after, desired, "plan:\n{}", plan);
    }

    #[test]
    fn nothing_is_done_where_nothing_differs(state in state()) {
        prop_assert_eq!(diff(&state, &state), Plan::default());
    }

    #[test]
    fn no_prefix_of_a_plan_refers_to_what_is_not_there((desired, actual) in pair()) {
        let plan = diff(&desired, &actual);
        let mut now = actual;
        for op in plan.ops() {
            let link = op.link().filter(|link| link.as_str() != "lo");
            prop_assert!(link.is_none_or(|link| now.links.contains_key(link)), "{op} in\n{now}");
            let is_new = |name| !now.links.contains_key(name);
            prop_assert!(!matches!(op, Op::AddLink { name, .. } if !is_new(name)), "{op} twice");
            op.perform_on(&mut now);
            prop_assert_eq!(well_formed(now.clone()), now.clone(), "after {}", op);
        }
    }

    #[test]
    fn what_a_wish_leaves_open_is_left_alone((mut desired, actual) in pair()) {
        for link in desired.links.values_mut() {
            (link.mac, link.mtu) = (None, None);
        }
        let mut after = actual.clone();
        after.edit(&diff(&desired, &actual));
        prop_assert_eq!(diff(&desired, &after), Plan::default());
    }
}

#[test]
fn a_changed_vni_makes_the_device_again_with_everything_on_it() {
    let vxlan = |vni| Link {
        kind: LinkKind::Vxlan { vni: Vni(vni), local: ip(1), port: 8472 },
        mac: None,
        mtu: Some(1450),
        up: true,
        port: None,
    };
    let mut actual = NetState::default();
    let device = name(2);
    actual.links.insert(device.clone(), vxlan(1));
    actual.addresses.insert((device.clone(), IpNet::from(ip(0))));
    actual.fdb.insert((device.clone(), Mac([2; 6])), Forward::Node(ip(9)));
    let mut desired = actual.clone();
    desired.links.insert(device, vxlan(2));
    let plan = diff(&desired, &actual);
    assert_eq!(
        plan.to_string(),
        "- link plumb.1\n\
         + link plumb.1 vxlan 2 local 10.244.0.1 port 8472 mtu 1450 up\n\
         + address 10.244.0.0/32 dev plumb.1\n\
         + fdb 02:02:02:02:02:02 dst 10.244.0.9 dev plumb.1\n"
    );
}

/// A link whose MTU somebody changed keeps its neighbours; one whose MAC is put back gets them again in the same plan.
#[test]
fn of_a_link_only_what_differs_is_set() {
    let device = name(2);
    let vxlan = |mac, mtu| Link {
        kind: LinkKind::Vxlan { vni: Vni(1), local: ip(1), port: 8472 },
        mac: Some(Mac([mac; 6])),
        mtu: Some(mtu),
        up: true,
        port: None,
    };
    let of = |link| NetState {
        links: [(device.clone(), link)].into(),
        neighbours: [((device.clone(), ip(9)), Mac([4; 6]))].into(),
        ..NetState::default()
    };
    let desired = of(vxlan(2, 1450));
    assert_eq!(
        diff(&desired, &of(vxlan(2, 1300))).to_string(),
        "~ link plumb.1 vxlan 1 local 10.244.0.1 port 8472 mtu 1450 up\n"
    );
    assert_eq!(
        diff(&desired, &of(vxlan(6, 1450))).to_string(),
        "~ link plumb.1 vxlan 1 local 10.244.0.1 port 8472 mac 02:02:02:02:02:02 up\n\
         + neighbour 10.244.0.9 04:04:04:04:04:04 dev plumb.1\n"
    );
}

#[test]
fn a_sysctl_of_a_module_counts_where_the_module_is() {
    let filter = |value: &str| NetState {
        sysctls: [("net/bridge/bridge-nf-call-iptables".to_owned(), value.to_owned())].into(),
        ..NetState::default()
    };
    assert!(diff(&filter("0"), &NetState::default()).is_empty());
    assert!(diff(&filter("0"), &filter("0")).is_empty());
    let mut actual = filter("1");
    actual.edit(&diff(&filter("0"), &actual.clone()));
    assert_eq!(actual, filter("0"));
}

fn pods_port(options: PortOptions) -> Link {
    let port = Some(BridgePort::new(name(0), options));
    Link { kind: LinkKind::Veth, mac: None, mtu: None, up: true, port }
}

/// A pod of a version before: what it sends while its port is locked must find the entry there.
#[test]
fn a_port_gets_its_entry_before_its_lock_and_its_lock_once_it_is_a_port() {
    let bridge = Link { kind: LinkKind::Bridge, mac: None, mtu: None, up: true, port: None };
    let links = [(name(0), bridge), (name(3), pods_port(PortOptions::OF_POD))].into();
    let mut desired = NetState { links, ..NetState::default() };
    desired.neighbours.insert((name(0), ip(4)), Mac([2; 6]));
    desired.fdb.insert((name(3), Mac([2; 6])), Forward::Port);
    let mut actual = NetState { links: desired.links.clone(), ..NetState::default() };
    actual.links.insert(name(3), pods_port(PortOptions::OF_KERNEL.and(PortOptions::ISOLATED)));
    assert_eq!(
        diff(&desired, &actual).to_string(),
        "+ fdb 02:02:02:02:02:02 static dev veth1\n\
         ~ link veth1 veth up port of cni0, isolated locked group_fwd checksums\n\
         + neighbour 10.244.0.4 02:02:02:02:02:02 dev cni0\n"
    );
    actual.links.insert(name(3), Link { port: None, ..pods_port(PortOptions::OF_POD) });
    assert_eq!(
        diff(&desired, &actual).to_string(),
        "~ link veth1 veth up port of cni0, isolated locked group_fwd checksums\n\
         + neighbour 10.244.0.4 02:02:02:02:02:02 dev cni0\n\
         + fdb 02:02:02:02:02:02 static dev veth1\n"
    );
    let without_the_pod =
        NetState { links: [(name(0), desired.links[&name(0)].clone())].into(), ..NetState::default() };
    assert_eq!(
        diff(&without_the_pod, &desired).to_string(),
        "- neighbour 10.244.0.4 dev cni0\n- link veth1\n",
        "an entry goes with its port"
    );
}

#[test]
fn what_a_kernel_does_not_have_is_not_missed() {
    let mut old = pods_port(PortOptions::OF_POD.without(PortOptions::LOCKED));
    if let Some(port) = &mut old.port {
        port.unknown = PortOptions::LOCKED;
    }
    let wanted = pods_port(PortOptions::OF_POD);
    assert!(wanted.is_met_by(&old));
    assert!(!wanted.is_met_by(&pods_port(PortOptions::OF_POD.without(PortOptions::LOCKED))));
    if let Some(port) = &mut old.port {
        port.options = PortOptions::OF_KERNEL;
    }
    let state = |link| NetState { links: [(name(3), link)].into(), ..NetState::default() };
    let (desired, mut actual) = (state(wanted), state(old));
    actual.edit(&diff(&desired, &actual.clone()));
    assert!(diff(&desired, &actual).is_empty(), "{actual}");
}
